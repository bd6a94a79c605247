#include "simulate/kept_victims.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <iostream>
#include <limits>
#include <map>
#include <random>
#include <set>

namespace cairn {
namespace {

// States beside a clock: each is worth something until used again, a tenth less with every quarter of its age.
struct States {
  std::map<CheckpointId, CheckpointRecord> records;
  std::map<CheckpointId, double> merits;
  std::int64_t now_ms = 1'000'000;
  std::int64_t last_id = 0;

  StateWorth worth_at(const CheckpointFacts& record, std::int64_t at_ms) const {
    const std::int64_t age_s = (at_ms - record.last_used_unix_ms) / 1000;
    std::int64_t bound_s = 1;
    StateWorth worth{.tokens_per_s = merits.at(record.id)};
    for (; bound_s <= age_s; bound_s += std::max<std::int64_t>(1, bound_s / 4)) worth.tokens_per_s *= 0.9;
    worth.lasts_s = static_cast<double>(record.last_used_unix_ms + bound_s * 1000 - at_ms) / 1000;
    return worth;
  }
  WorthOf worth = [this](const CheckpointRecord& record) { return worth_at(record, now_ms); };
  const CheckpointRecord& make(std::mt19937& random) {
    CheckpointRecord record;
    record.id = static_cast<CheckpointId>(++last_id);
    record.token_count = 1000;
    record.bytes = 1 + random() % 50;
    record.cost_to_recompute_s = 1 + random() % 3;
    record.last_used_unix_ms = now_ms;
    merits[record.id] = random() % 4;
    return records[record.id] = record;
  }
  std::vector<const CheckpointRecord*> all() const {
    std::vector<const CheckpointRecord*> pointers;
    for (const auto& [id, record] : records) pointers.push_back(&record);
    return pointers;
  }
};

class Looks final : public WorthOverTime {
 public:
  explicit Looks(const States& states) : states_(states) {}
  StateWorth look_at(const CheckpointFacts& record, std::int64_t now_ms) override {
    record_ = &record;
    ++count;
    return states_.worth_at(record, now_ms);
  }
  StateWorth later(std::int64_t at_ms) const override { return states_.worth_at(*record_, at_ms); }
  int count = 0;

 private:
  const States& states_;
  const CheckpointFacts* record_ = nullptr;
};

// Numbers of states that are there at the same time differ, and are used again.
class Numbers {
 public:
  KeptVictims::Number take(CheckpointId id) {
    KeptVictims::Number number = 0;
    while (ids_.contains(number)) ++number;
    ids_[number] = id;
    return number;
  }
  KeptVictims::Number of(CheckpointId id) const {
    return std::find_if(ids_.begin(), ids_.end(), [&](const auto& entry) { return entry.second == id; })->first;
  }
  CheckpointId id(KeptVictims::Number number) const { return ids_.at(number); }
  void give_back(CheckpointId id) { ids_.erase(of(id)); }

 private:
  std::map<KeptVictims::Number, CheckpointId> ids_;
};

TEST(KeptVictims, TheSameGoAsWhenAllScoresAreMadeAnew) {
  const auto seed = std::random_device{}();
  std::cout << "seed " << seed << '\n';
  std::mt19937 random(seed);
  for (const char* name : {"value", "lru", "gdsf", "marconi"}) {
    SCOPED_TRACE(name);
    States states;
    const auto policy = make_policy(name), kept_policy = make_policy(name);
    Looks looks(states);
    Numbers numbers;
    KeptVictims kept(*kept_policy, looks, std::numeric_limits<double>::infinity());
    for (int step = 0; step < 3000; ++step) {
      states.now_ms += 1000 * static_cast<std::int64_t>(random() % 20);
      const auto some = [&] { return std::next(states.records.begin(), static_cast<long>(random() % states.records.size())); };
      const auto what = random() % 8;
      if (states.records.size() < 5 || what < 4) {
        const CheckpointRecord& made = states.make(random);
        kept.add(numbers.take(made.id), made);
      } else if (what == 4) {
        CheckpointRecord& record = some()->second;
        record.last_used_unix_ms = states.now_ms;
        ++record.uses;
        kept.changed(numbers.of(record.id));
      } else if (what == 5) {
        states.merits[some()->first] += 1;  // nobody is told
      } else if (what == 6) {
        const auto lowered = some();
        states.merits[lowered->first] /= 2;
        kept.changed(numbers.of(lowered->first));
      } else {
        const auto gone = some();
        kept.remove(numbers.of(gone->first));
        numbers.give_back(gone->first);
        states.records.erase(gone);
      }
      if (random() % 3 != 0) continue;
      const std::vector<const CheckpointRecord*> candidates = states.all();
      Victims victims(*policy, states.worth, candidates, states.now_ms);
      kept.begin_round(states.now_ms);
      CheckpointRecord incoming = *candidates[random() % candidates.size()];
      const CheckpointId like = incoming.id;
      incoming.id = static_cast<CheckpointId>(1'000'000);
      states.merits[incoming.id] = states.merits.at(like);
      const std::uint64_t below = policy->judges_new_states() ? victims.bytes_below(incoming) : 0;
      if (policy->judges_new_states()) {
        const std::uint64_t enough = random() % 500;
        ASSERT_EQ(std::min(kept.bytes_below(incoming, enough), enough), std::min(below, enough)) << "step " << step;
      }
      for (auto count = random() % 3; count > 0 && !states.records.empty(); --count) {
        const CheckpointRecord* victim = victims.worst();
        ASSERT_EQ(numbers.id(kept.worst()), victim->id) << "step " << step;
        victims.take();
        kept.take();
        numbers.give_back(victim->id);
        states.records.erase(victim->id);
      }
    }
  }
}

// Many that are worth a lot beside some that come and go.
TEST(KeptVictims, WhatIsWorthMuchMoreIsHardlyEverLookedAt) {
  std::mt19937 random(1);
  std::vector<KeptVictims::Number> gone[2];
  int looks[2] = {};
  for (const bool waits : {false, true}) {
    States states;
    ValuePolicy policy;
    Looks seen(states);
    KeptVictims kept(policy, seen, waits ? 4 : std::numeric_limits<double>::infinity());
    const auto add = [&](double merit) {
      CheckpointRecord& record = states.records[states.make(random).id];
      record.bytes = 10;
      record.cost_to_recompute_s = 1;
      states.merits[record.id] = merit;
      kept.add(static_cast<KeptVictims::Number>(record.id), record);
    };
    for (int i = 0; i < 200; ++i) add(1e9);
    for (int i = 0; i < 1000; ++i) {
      states.now_ms += 10'000;
      add(1 + i % 7);
      if (i < 10) continue;
      kept.begin_round(states.now_ms);
      gone[waits].push_back(kept.worst());
      kept.take();
    }
    looks[waits] = seen.count;
  }
  EXPECT_EQ(gone[0], gone[1]);
  EXPECT_LT(looks[1], looks[0]);
}

TEST(KeptVictims, OnesThatHaveRisenBesideAVictimStay) {
  std::mt19937 random(1);
  States states;
  ValuePolicy policy;
  Looks looks(states);
  KeptVictims kept(policy, looks);
  for (KeptVictims::Number number = 0; number < 3; ++number) {
    CheckpointRecord& record = states.records[states.make(random).id];
    record.bytes = 10;
    record.cost_to_recompute_s = 1;
    states.merits[record.id] = number == 2 ? 1 : 0;
    kept.add(number, record);
  }
  kept.begin_round(states.now_ms);
  ASSERT_EQ(kept.worst(), 0u);
  kept.take();
  states.merits[static_cast<CheckpointId>(2)] = 5;  // number 1: its twin is gone
  EXPECT_EQ(kept.worst(), 2u);
  kept.take();
  EXPECT_EQ(kept.worst(), 1u);
  kept.take();
  EXPECT_EQ(kept.worst(), KeptVictims::none);
}

TEST(DueQueue, TakesWhatIsDueAndNothingElse) {
  const auto seed = std::random_device{}();
  std::cout << "seed " << seed << '\n';
  std::mt19937 random(seed);
  DueQueue queue;
  std::multimap<std::int64_t, std::uint32_t> model;
  std::int64_t now_ms = 0;
  const auto push = [&](std::uint32_t number) {
    const std::int64_t at_ms = now_ms + 1 + static_cast<std::int64_t>(random() % (1U << (random() % 24)));
    queue.push(at_ms, number);
    model.emplace(at_ms, number);
  };
  for (std::uint32_t i = 0; i < 20'000; ++i) {
    push(i);
    now_ms += static_cast<std::int64_t>(random() % 3 * (random() % (1U << (random() % 16))));
    const auto not_due = model.upper_bound(now_ms);
    std::multimap<std::int64_t, std::uint32_t> due, taken;
    due.insert(model.begin(), not_due);
    model.erase(model.begin(), not_due);
    for (const DueQueue::Due& it : queue.take_due(now_ms)) {
      taken.emplace(it.at_ms, it.number);
      if (random() % 2 == 0) push(it.number);
    }
    ASSERT_EQ(std::set(due.begin(), due.end()), std::set(taken.begin(), taken.end())) << "at " << now_ms;
    ASSERT_EQ(due.size(), taken.size());
  }
}

}  // namespace
}  // namespace cairn

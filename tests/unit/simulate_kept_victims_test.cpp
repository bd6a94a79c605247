#include "simulate/kept_victims.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <iostream>
#include <limits>
#include <map>
#include <random>

namespace cairn {
namespace {

// States beside a clock: each is worth something until used again, a tenth less with every quarter of its age.
struct States {
  std::map<CheckpointId, CheckpointRecord> records;
  std::map<CheckpointId, double> merits;
  std::int64_t now_ms = 1'000'000;
  std::int64_t last_id = 0;

  KeptVictims::WorthAt worth_at = [this](const CheckpointRecord& record, std::int64_t at_ms) {
    const std::int64_t age_s = (at_ms - record.last_used_unix_ms) / 1000;
    std::int64_t bound_s = 1;
    StateWorth worth{.tokens_per_s = merits.at(record.id)};
    for (; bound_s <= age_s; bound_s += std::max<std::int64_t>(1, bound_s / 4)) worth.tokens_per_s *= 0.9;
    worth.lasts_s = static_cast<double>(record.last_used_unix_ms + bound_s * 1000 - at_ms) / 1000;
    return worth;
  };
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

TEST(KeptVictims, TheSameGoAsWhenAllScoresAreMadeAnew) {
  const auto seed = std::random_device{}();
  std::cout << "seed " << seed << '\n';
  std::mt19937 random(seed);
  for (const char* name : {"value", "lru", "gdsf", "marconi"}) {
    SCOPED_TRACE(name);
    States states;
    const auto policy = make_policy(name), kept_policy = make_policy(name);
    KeptVictims kept(*kept_policy, states.worth_at, std::numeric_limits<double>::infinity());
    for (int step = 0; step < 3000; ++step) {
      states.now_ms += 1000 * static_cast<std::int64_t>(random() % 20);
      const auto some = [&] { return std::next(states.records.begin(), static_cast<long>(random() % states.records.size())); };
      const auto what = random() % 8;
      if (states.records.size() < 5 || what < 4) {
        kept.add(states.make(random));
      } else if (what == 4) {
        CheckpointRecord& record = some()->second;
        record.last_used_unix_ms = states.now_ms;
        ++record.uses;
        kept.changed(record.id);
      } else if (what == 5) {
        states.merits[some()->first] += 1;  // nobody is told
      } else if (what == 6) {
        const auto lowered = some();
        states.merits[lowered->first] /= 2;
        kept.changed(lowered->first);
      } else {
        const auto gone = some();
        kept.remove(gone->first);
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
        ASSERT_EQ(kept.worst(), victim) << "step " << step;
        victims.take();
        kept.take();
        states.records.erase(victim->id);
      }
    }
  }
}

// Many that are worth a lot beside some that come and go.
TEST(KeptVictims, WhatIsWorthMuchMoreIsHardlyEverLookedAt) {
  std::mt19937 random(1);
  std::vector<CheckpointId> gone[2];
  int looks[2] = {};
  for (const bool waits : {false, true}) {
    States states;
    ValuePolicy policy;
    const KeptVictims::WorthAt counted = [&](const CheckpointRecord& record, std::int64_t at_ms) {
      ++looks[waits];
      return states.worth_at(record, at_ms);
    };
    KeptVictims kept(policy, counted, waits ? 4 : std::numeric_limits<double>::infinity());
    const auto add = [&](double merit) {
      CheckpointRecord& record = states.records[states.make(random).id];
      record.bytes = 10;
      record.cost_to_recompute_s = 1;
      states.merits[record.id] = merit;
      kept.add(record);
    };
    for (int i = 0; i < 200; ++i) add(1e9);
    for (int i = 0; i < 1000; ++i) {
      states.now_ms += 10'000;
      add(1 + i % 7);
      if (i < 10) continue;
      kept.begin_round(states.now_ms);
      gone[waits].push_back(kept.worst()->id);
      kept.take();
    }
  }
  EXPECT_EQ(gone[0], gone[1]);
  EXPECT_LT(looks[1], looks[0]);
}

TEST(KeptVictims, OnesThatHaveRisenBesideAVictimStay) {
  std::mt19937 random(1);
  States states;
  ValuePolicy policy;
  KeptVictims kept(policy, states.worth_at);
  std::vector<CheckpointId> ids;
  for (int i = 0; i < 3; ++i) {
    CheckpointRecord& record = states.records[states.make(random).id];
    record.bytes = 10;
    record.cost_to_recompute_s = 1;
    ids.push_back(record.id);
    kept.add(record);
  }
  states.merits = {{ids[0], 0}, {ids[1], 0}, {ids[2], 1}};
  kept.begin_round(states.now_ms);
  ASSERT_EQ(kept.worst()->id, ids[0]);
  kept.take();
  states.merits[ids[1]] = 5;  // its twin is gone
  EXPECT_EQ(kept.worst()->id, ids[2]);
  kept.take();
  EXPECT_EQ(kept.worst()->id, ids[1]);
  kept.take();
  EXPECT_EQ(kept.worst(), nullptr);
}

}  // namespace
}  // namespace cairn

#include "plan/planner.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <iostream>
#include <random>
#include <vector>

namespace cairn {
namespace {

// Learned from a machine of `tokens_per_s`, `bytes_per_s` and 20 kB a token.
CostModel machine(double tokens_per_s, double bytes_per_s, double depth_s = 1e-9, double piece_s = 0.005) {
  CostModel model;
  for (int i = 0; i < 40; ++i) {
    const double from = i % 4 * 5000.0;
    const double tokens = 100.0 + (i * 977) % 9000;
    model.observe_prefill(from, tokens, piece_s + tokens / tokens_per_s + depth_s * tokens * (from + tokens / 2));
    const double bytes = 1e6 + tokens * 20e3;
    model.observe_save(bytes, 0.003 + bytes / bytes_per_s);
    model.observe_restore(bytes, 0.003 + bytes / bytes_per_s);
    model.observe_state(tokens, 0, 0, bytes);
  }
  return model;
}

struct Input {
  std::uint32_t prompt = 0;
  std::vector<SlotOption> slots;
  std::vector<RestoreOption> restores;
  bool can_save = true;
  CostModel costs = machine(1000, 1e9);
  std::vector<WaitOption> waits;
  std::uint32_t in_backend_cache = 0;
  std::uint32_t cache_context_checkpoints = 0;
  std::uint32_t running = 0;
  bool can_empty = false;
  std::uint32_t known = 0;
  PlanInput view() const {
    PlanInput input;
    input.prompt = prompt;
    input.slots = slots;
    input.restores = restores;
    input.waits = waits;
    input.in_backend_cache = in_backend_cache;
    input.cache_context_checkpoints = cache_context_checkpoints;
    input.running = running;
    input.costs = &costs;
    input.can_save = can_save;
    input.can_empty = can_empty;
    input.known = known;
    return input;
  }
};

SlotOption slot(int id, std::uint32_t usable, std::uint32_t held, std::uint32_t recoverable = 0, std::uint64_t last_used = 0) {
  SlotOption option;
  option.slot = id;
  option.usable = usable;
  option.held = held;
  option.recoverable = recoverable;
  option.last_used = last_used;
  return option;
}

RestoreOption saved(std::int64_t id, std::uint32_t usable, double bytes = 0) {
  return RestoreOption{id, usable, bytes > 0 ? bytes : 1e6 + usable * 20e3};
}

// Sixteen clients behind one prefix: each one's fifty tokens were saved before the next went on from the prefix.
TEST(Planner, AFewTokensBeyondTheSharedPrefixAreNotSavedFirst) {
  Input input;
  input.costs = machine(1000, 1e10, 1e-9, 0.3);
  input.prompt = 8050;
  input.slots = {slot(0, 8000, 8050, 8000)};
  input.slots.front().return_chance = 0.95;
  input.slots.front().proven = true;
  const auto plan = make_plan(input.view());
  ASSERT_TRUE(plan);
  EXPECT_EQ(plan->source, Source::live);
  EXPECT_FALSE(plan->save_first);
}

// A slot whose client had left was the cheapest to take: the next prompt waited there, beside an idle one, for whatever that client had asked for.
TEST(Planner, WhereTheBackendStillComputesForNobodyIsWaitedForOnlyWhereThatPays) {
  Input input;
  input.prompt = 1000;
  input.slots = {slot(0, 0, 0, 0, 1), slot(1, 0, 3000, 3000, 2)};
  EXPECT_EQ(make_plan(input.view())->slot, 0) << "empty";
  input.slots[0].wait_s = 2;
  EXPECT_EQ(make_plan(input.view())->slot, 1) << "its state can be brought back";
  input.slots[0].usable = input.slots[0].held = 900;
  EXPECT_EQ(make_plan(input.view())->slot, 1) << "0.1 s after two seconds";
  input.prompt = 5000;
  input.slots[0].usable = input.slots[0].held = 4900;
  const Plan plan = *make_plan(input.view());
  EXPECT_EQ(plan.slot, 0);
  EXPECT_GE(plan.expected_s, 2);
}

TEST(Planner, NoSlotNoPlan) {
  Input input;
  input.prompt = 100;
  input.restores = {saved(1, 50)};
  EXPECT_FALSE(make_plan(input.view()));
}

// Sixteen clients with the same long prefix: each one's 50 tokens were saved while fifteen waited.
TEST(Planner, NothingIsSavedFirstWhileAQueueWaits) {
  Input input;
  input.prompt = 9000;
  SlotOption held = slot(0, 8000, 20'000, 8000);
  held.proven = true;
  input.slots = {held};
  ASSERT_TRUE(make_plan(input.view())->save_first);
  PlanInput busy = input.view();
  busy.waiting = 100;
  EXPECT_FALSE(make_plan(busy)->save_first);
}

// Never repeated prompts were saved before each next one: 3 ms in the backend, it was thought, and 15 ms went by until all was synced.
TEST(Planner, WhoeverIsSavedForWaitsForTheCommitToo) {
  Input input;
  input.prompt = 1000;
  input.slots = {slot(0, 0, 300)};
  input.slots[0].return_chance = 0.3;  // of 300 ms
  ASSERT_TRUE(make_plan(input.view())->save_first);
  for (int i = 0; i < 30; ++i) input.costs.observe_commit(1e6 * (i + 1), 0.2);
  EXPECT_FALSE(make_plan(input.view())->save_first);
}

// A slot of 10,553 tokens was saved in front of a prompt: 84 MB of keys and values, it was thought, and 770 MB with its checkpoints.
TEST(Planner, ContextCheckpointsAreSavedAndBroughtBackToo) {
  Input input;
  input.prompt = 9000;
  input.costs.observe_state(1000, 1, 300e6, 301e6);
  SlotOption held = slot(0, 0, 4000);
  held.proven = true;
  input.slots = {held};
  ASSERT_TRUE(make_plan(input.view())->save_first);
  input.slots[0].context_checkpoints = 30;
  EXPECT_FALSE(make_plan(input.view())->save_first);
}

struct Row {
  const char* what;
  Input input;
  Source source;
  int slot;
  std::uint32_t base;
  std::int64_t checkpoint = 0;
  bool save_first = false;
};

TEST(Planner, Table) {
  const CostModel gpu = machine(100'000, 5e8, 1e-12, 0.001);
  const std::vector<Row> rows{
      {"an empty backend", {1000, {slot(0, 0, 0), slot(1, 0, 0)}, {}}, Source::recompute, 0, 0},
      {"the slot that holds it", {1000, {slot(0, 0, 0), slot(1, 900, 900)}, {}}, Source::live, 1, 900},
      {"the slot that holds most of it", {1000, {slot(0, 500, 500), slot(1, 900, 900)}, {}}, Source::live, 1, 900},
      {"of equal ones the one used longest ago", {1000, {slot(0, 0, 0, 0, 9), slot(1, 0, 0, 0, 3), slot(2, 0, 0, 0, 5)}, {}}, Source::recompute, 1, 0},
      {"an empty slot before one that holds something", {1000, {slot(0, 0, 8000, 0, 1), slot(1, 0, 0, 0, 2)}, {}}, Source::recompute, 1, 0},
      {"a saved state before that", {9000, {slot(0, 0, 0)}, {saved(7, 8000)}}, Source::restore, 0, 8000, 7},
      {"the saved state that reaches furthest", {9000, {slot(0, 0, 0)}, {saved(7, 8000), saved(8, 8500)}}, Source::restore, 0, 8500, 8},
      {"of equal ones the smaller", {9000, {slot(0, 0, 0)}, {saved(7, 8000, 9e8), saved(8, 8000, 1e8)}}, Source::restore, 0, 8000, 8},
      {"a saved state that reaches no further than the slot", {9000, {slot(0, 8000, 8000)}, {saved(7, 8000)}}, Source::live, 0, 8000},
      {"a saved state that reaches hardly further", {9000, {slot(0, 8000, 8000)}, {saved(7, 8010)}}, Source::live, 0, 8000},
      {"a saved state that reaches much further", {9000, {slot(0, 2000, 2000, 2000)}, {saved(7, 8000)}}, Source::restore, 0, 8000, 7},
      {"a state too big to be worth it", {9000, {slot(0, 0, 0)}, {saved(7, 8000, 9e9)}}, Source::recompute, 0, 0},
      {"a restore goes where it overwrites nothing", {9000, {slot(0, 0, 8000, 0, 1), slot(1, 0, 0, 0, 2)}, {saved(7, 8000)}}, Source::restore, 1, 8000, 7},
      {"what is lost is saved first", {9000, {slot(0, 0, 20'000)}, {}}, Source::recompute, 0, 0, 0, true},
      {"unless it is saved already", {9000, {slot(0, 0, 20'000, 20'000)}, {}}, Source::recompute, 0, 0},
      {"a short one is not worth a save", {9000, {slot(0, 0, 3)}, {}}, Source::recompute, 0, 0},
      {"nothing can be saved", {9000, {slot(0, 0, 20'000)}, {}, false}, Source::recompute, 0, 0},
      {"a fast machine with a slow disk recomputes", {9000, {slot(0, 0, 0)}, {saved(7, 8000)}, true, gpu}, Source::recompute, 0, 0},
      {"and saves nothing first", {9000, {slot(0, 0, 20'000)}, {}, true, gpu}, Source::recompute, 0, 0},
      {"a side job takes the empty slot and leaves the conversation", {300, {slot(0, 20, 20'000), slot(1, 0, 0)}, {}}, Source::recompute, 1, 0},
  };
  for (const Row& row : rows) {
    const auto plan = make_plan(row.input.view());
    ASSERT_TRUE(plan) << row.what;
    EXPECT_EQ(plan->source, row.source) << row.what << ": " << to_string(plan->source);
    EXPECT_EQ(plan->slot, row.slot) << row.what;
    EXPECT_EQ(plan->base, row.base) << row.what;
    EXPECT_EQ(plan->checkpoint, row.checkpoint) << row.what;
    EXPECT_EQ(plan->save_first, row.save_first) << row.what;
    EXPECT_FALSE(plan->reason.empty()) << row.what;
  }
}

// One on disk is copied into memory first: that may be dearer than to go on from a shorter one, or to compute.
TEST(Planner, TheWayUpFromTheDiskIsPartOfARestore) {
  Input input;
  input.prompt = 9000;
  input.slots = {slot(0, 0, 0)};
  input.restores = {saved(7, 8500), saved(8, 8000)};
  input.restores[0].ready_s = 0.1;
  EXPECT_EQ(make_plan(input.view())->checkpoint, 7);
  input.restores[0].ready_s = 2;
  EXPECT_EQ(make_plan(input.view())->checkpoint, 8);
  input.restores[1].ready_s = 20;
  EXPECT_EQ(make_plan(input.view())->checkpoint, 7);
  input.restores[0].ready_s = 20;
  EXPECT_EQ(make_plan(input.view())->source, Source::recompute);
}

TEST(Planner, AnUnwashedSlotCostsAToken) {
  Input input;
  input.prompt = 9000;
  input.slots = {slot(0, 0, 0, 0, 1), slot(1, 0, 0, 0, 2)};
  input.slots[0].clean = false;
  input.restores = {saved(7, 8000)};
  EXPECT_EQ(make_plan(input.view())->slot, 1);
  // Recomputing needs no wash.
  input.restores.clear();
  EXPECT_EQ(make_plan(input.view())->slot, 0);
}

TEST(Planner, SaysWhy) {
  Input input;
  input.prompt = 9000;
  input.slots = {slot(0, 0, 0)};
  EXPECT_EQ(make_plan(input.view())->reason, "nothing holds it");
  input.restores = {saved(7, 8000, 9e9)};
  EXPECT_EQ(make_plan(input.view())->reason, "cheaper to recompute");
  input.restores = {saved(7, 8000)};
  EXPECT_EQ(make_plan(input.view())->reason, "a saved state reaches further");
  input.slots = {slot(0, 8500, 8500)};
  EXPECT_EQ(make_plan(input.view())->reason, "the slot holds it");
}

// A conversation goes on and its last answer is rendered otherwise: only the answer is lost, and that is not worth a save
// of the whole state at each turn.
TEST(Planner, WhatThePromptGoesOnFromIsNotLost) {
  Input input;
  input.prompt = 20'300;
  input.slots = {slot(0, 20'000, 20'100)};
  const auto plan = make_plan(input.view());
  EXPECT_EQ(plan->source, Source::live);
  EXPECT_FALSE(plan->save_first);
}

class PlannerProperties : public ::testing::Test {
 protected:
  PlannerProperties() : seed_(chosen()), random_(seed_) {}
  static std::uint32_t chosen() {
    const char* given = std::getenv("CAIRN_TEST_SEED");
    const auto seed = static_cast<std::uint32_t>(given ? std::strtoul(given, nullptr, 10) : std::random_device()());
    std::cout << "CAIRN_TEST_SEED=" << seed << std::endl;
    return seed;
  }
  std::uint32_t below(std::uint32_t limit) { return limit == 0 ? 0 : static_cast<std::uint32_t>(random_() % limit); }
  double log_uniform(double from, double to) {
    return from * std::pow(to / from, std::uniform_real_distribution<double>(0, 1)(random_));
  }

  Input any_input() {
    Input input;
    input.prompt = 1 + below(below(2) ? 50'000 : 500);
    input.can_save = below(2);
    input.costs = below(8) == 0 ? CostModel{}
                                : machine(log_uniform(50, 200'000), log_uniform(1e7, 1e10), log_uniform(1e-13, 1e-7), log_uniform(1e-4, 0.5));
    const int slots = 1 + static_cast<int>(below(4));
    for (int i = 0; i < slots; ++i) {
      SlotOption one = slot(i * 3, below(3) ? below(input.prompt) : 0, 0, 0, below(5));
      one.held = below(3) ? one.usable + below(20'000) : one.usable;
      one.recoverable = below(2) ? below(one.held + 1) : 0;
      one.clean = below(2);
      input.slots.push_back(one);
    }
    input.can_empty = below(2);
    input.known = below(30'000);
    for (std::uint32_t i = below(4); i > 0; --i) input.restores.push_back(saved(100 + i, below(input.prompt), log_uniform(1e4, 1e10)));
    return input;
  }

  std::uint32_t seed_;
  std::mt19937 random_;
};

TEST_F(PlannerProperties, HoldForAnyInput) {
  for (int round = 0; round < 1500; ++round) {
    const Input input = any_input();
    const auto plan = make_plan(input.view());
    ASSERT_TRUE(plan);
    SCOPED_TRACE("round " + std::to_string(round) + ", CAIRN_TEST_SEED=" + std::to_string(seed_));
    // Never more than computing everything.
    const double recompute_all_s = input.costs.prefill_seconds(0, input.prompt);
    ASSERT_LE(plan->expected_s, recompute_all_s * (1 + 1e-9));
    ASSERT_GE(plan->expected_s, 0);
    // A slot and a state that were offered, and what they really hold.
    const auto chosen_slot =
        std::find_if(input.slots.begin(), input.slots.end(), [&](const SlotOption& one) { return one.slot == plan->slot; });
    ASSERT_NE(chosen_slot, input.slots.end());
    if (plan->source == Source::restore) {
      const auto state = std::find_if(input.restores.begin(), input.restores.end(),
                                      [&](const RestoreOption& one) { return one.checkpoint == plan->checkpoint && one.usable == plan->base; });
      ASSERT_NE(state, input.restores.end());
      ASSERT_GT(state->usable, chosen_slot->usable);
      // Only when that beats both.
      const double restored = input.costs.restore_seconds(state->bytes) + input.costs.prefill_seconds(state->usable, input.prompt);
      ASSERT_LT(restored, recompute_all_s);
      ASSERT_LE(restored, input.costs.prefill_seconds(chosen_slot->usable, input.prompt) + 1e-9);
    } else {
      ASSERT_EQ(plan->base, plan->empty_first ? 0 : chosen_slot->usable);
      ASSERT_TRUE(input.can_empty || !plan->empty_first);
      ASSERT_EQ(plan->source == Source::live, plan->base > 0);
      ASSERT_EQ(plan->checkpoint, 0);
    }
    if (plan->save_first) {
      ASSERT_TRUE(input.can_save);
      ASSERT_GT(chosen_slot->held, chosen_slot->recoverable);
    }
    // Pure.
    const auto again = make_plan(input.view());
    ASSERT_EQ(again->slot, plan->slot);
    ASSERT_EQ(again->expected_s, plan->expected_s);
  }
}

TEST_F(PlannerProperties, AnUnsavedStateIsNotOverwrittenWhenAnEquallyGoodEmptySlotIsThere) {
  for (int round = 0; round < 1500; ++round) {
    Input input = any_input();
    for (SlotOption& one : input.slots) {
      one.usable = 0;
      one.held = 100 + below(20'000);
      one.recoverable = below(3) ? 0 : below(one.held);
      one.clean = true;
    }
    SlotOption empty = slot(1, 0, 0, 0, 1000);  // used last of all: only its emptiness speaks for it
    input.slots.insert(input.slots.begin() + below(static_cast<std::uint32_t>(input.slots.size() + 1)), empty);
    const auto plan = make_plan(input.view());
    ASSERT_EQ(plan->slot, 1) << "round " << round << ", CAIRN_TEST_SEED=" << seed_;
    ASSERT_FALSE(plan->save_first);
  }
}

TEST_F(PlannerProperties, MoreToChooseFromIsNeverSlower) {
  for (int round = 0; round < 1000; ++round) {
    Input input = any_input();
    for (SlotOption& one : input.slots) one.held = one.usable = 0;
    const double with = make_plan(input.view())->expected_s;
    input.restores.clear();
    ASSERT_LE(with, make_plan(input.view())->expected_s + 1e-9) << "round " << round << ", CAIRN_TEST_SEED=" << seed_;
  }
}

TEST(Planner, WaitsForABusySlotThatHoldsFarMore) {
  Input input;
  input.prompt = 10'000;
  input.slots = {slot(0, 0, 0)};
  input.waits = {WaitOption{1, 9'000, 2.0}, WaitOption{2, 9'900, 100.0}};
  std::optional<Plan> plan = make_plan(input.view());
  ASSERT_TRUE(plan);
  EXPECT_EQ(plan->source, Source::wait);
  EXPECT_EQ(plan->slot, 1);
  EXPECT_EQ(plan->base, 9'000u);
  input.slots = {slot(0, 8'500, 8'500)};  // not so much more than what an idle one holds
  EXPECT_EQ(make_plan(input.view())->source, Source::live);
}

TEST(Planner, DoesNotWaitOnAGuessThatPromisesLittle) {
  Input input;
  input.prompt = 10'000;
  input.slots = {slot(0, 0, 0)};
  input.waits = {WaitOption{1, 9'000, 8.5}};
  EXPECT_EQ(make_plan(input.view())->source, Source::recompute);
}

TEST(Planner, ASlotIsEmptiedWhereItsStateWouldBeCopiedInVain) {
  const CostModel fast = machine(16000, 2e9, 1e-10, 0.01);  // 20,000 tokens: 400 MB, a copy of 0.1 s
  struct Row {
    const char* why;
    std::uint32_t usable, held, recoverable;
    bool can_empty;
    std::uint32_t known;
    double return_chance;
    bool emptied;
  };
  const Row rows[] = {
      {"nothing in common, and it hardly comes back", 0, 20000, 0, true, 0, 0.01, true},
      {"a few tokens in common, and the file would come back, too", 3, 20000, 20000, true, 3, 0.1, true},
      {"more than a handful of tokens in common", 17, 20000, 20000, true, 17, 0.1, false},
      {"most in common: nothing is copied", 15000, 20000, 20000, true, 15000, 0.1, false},
      {"a small state", 0, 1000, 0, true, 0, 0.01, false},
      {"an empty slot", 0, 0, 0, true, 0, 0.01, false},
      {"an older build", 0, 20000, 0, false, 0, 0.01, false},
      {"it may come back, and nothing else would bring it", 0, 20000, 0, true, 0, 0.5, false},
      {"a template's beginning was seen before", 0, 20000, 20000, true, 16, 0.1, true},
      {"the cache may hold this very prompt, and brings it into no empty slot", 0, 20000, 20000, true, 17, 0.1, false},
  };
  for (const Row& row : rows) {
    Input input;
    input.costs = fast;
    input.prompt = 20000;
    input.can_save = false;
    input.slots = {slot(0, row.usable, row.held, row.recoverable)};
    input.slots[0].return_chance = row.return_chance;
    input.can_empty = row.can_empty;
    input.known = row.known;
    const std::optional<Plan> plan = make_plan(input.view());
    ASSERT_TRUE(plan);
    EXPECT_EQ(plan->empty_first, row.emptied) << row.why;
    EXPECT_EQ(plan->base, row.emptied ? 0 : row.usable) << row.why;
    input.running = 1;  // an erase would wait for what the others compute
    EXPECT_FALSE(make_plan(input.view())->empty_first) << row.why;
  }
}

TEST(Planner, LeavesTheChoiceToTheBackendWhenItsCacheShouldHoldMore) {
  Input input;
  input.prompt = 10'000;
  input.slots = {slot(0, 0, 0)};
  input.in_backend_cache = 9'000;
  EXPECT_EQ(make_plan(input.view())->source, Source::backend);
  input.restores = {saved(1, 9'000)};  // what we can bring back ourselves, we know to be there
  EXPECT_EQ(make_plan(input.view())->source, Source::restore);
  input.restores = {};
  input.slots = {slot(0, 9'000, 9'000)};
  EXPECT_EQ(make_plan(input.view())->source, Source::live);
}

// On a GPU the backend's own cache was priced like a file: every follow-up was computed again beside it.
TEST(Planner, TheBackendsCacheIsMemoryAndCheaperThanAFastPrefill) {
  Input input;
  input.prompt = 6'000;
  input.slots = {slot(0, 1'000, 1'000)};
  input.costs = machine(30'000, 3e8, 1e-12, 0.001);  // 0.16 s to compute again, 0.4 s from a file, 0.03 s from memory
  input.in_backend_cache = 5'900;
  EXPECT_EQ(make_plan(input.view())->source, Source::backend);
}

// On an H100 recorded sessions had 1.16 times as much computed as without Cairn: what a pinned slot computed anew was in the server's cache.
TEST(Planner, WhatTheBackendHoldsIsLeftToItRatherThanComputedAnew) {
  Input input;
  input.prompt = 2'000;
  input.slots = {slot(0, 0, 0)};
  input.costs = machine(12'000, 1e9, 1e-9, 0.1);  // 0.27 s for all, 0.11 s for the rest
  for (int i = 0; i < 200; ++i) input.costs.observe_state(1000, 2, 2 * 77e6, 2 * 77e6 + 10e6);
  input.in_backend_cache = 1'984;
  input.cache_context_checkpoints = 6;
  ASSERT_GT(0.12 + 6 * 77e6 / 4e9, 0.8 * input.costs.prefill_seconds(0, 2'000));
  EXPECT_EQ(make_plan(input.view())->source, Source::backend);
  input.cache_context_checkpoints = 30;  // longer to copy than to compute
  EXPECT_EQ(make_plan(input.view())->source, Source::recompute);
}

// Nothing of it could be saved then.
TEST(Planner, ATemplatesFirstTokensInTheBackendsCacheAreNoReasonToLeaveAPromptToIt) {
  Input input;
  input.prompt = 2'000;
  input.slots = {slot(0, 0, 0)};
  for (const std::uint32_t shared : {1u, 15u, 200u}) {
    input.in_backend_cache = shared;
    EXPECT_EQ(make_plan(input.view())->source, Source::recompute) << shared;
  }
}

TEST(Planner, ARestoreStallsThoseThatRun) {
  Input input;
  input.prompt = 2'000;
  input.slots = {slot(0, 0, 0)};
  input.restores = {saved(1, 1'900, 1e9)};  // a second, and spares 1.9
  EXPECT_EQ(make_plan(input.view())->source, Source::restore);
  input.running = 3;
  EXPECT_EQ(make_plan(input.view())->source, Source::recompute);
}

TEST(Planner, WhatNobodyComesBackToIsNotSavedFirst) {
  Input input;
  input.prompt = 4'000;
  input.slots = {slot(0, 0, 3'000)};
  input.costs = machine(1000, 2e7);  // 3 s to save and as long to restore, 3 s to compute
  input.slots[0].return_chance = 0.9;
  EXPECT_FALSE(make_plan(input.view())->save_first);
  input.costs = machine(1000, 1e9);
  EXPECT_TRUE(make_plan(input.view())->save_first);
  input.slots[0].return_chance = 0.01;
  EXPECT_FALSE(make_plan(input.view())->save_first);
}

// What the disk refused or the budget declined was taken for saved, and overwritten beside an idle slot.
TEST(Planner, WhatCannotBeSavedIsNotTakenForSaved) {
  Input input;
  input.prompt = 12'000;
  // The one that shares 10,000 tokens holds 50,000 more; the other is empty.
  input.slots = {slot(0, 10'000, 60'000), slot(1, 0, 0)};
  input.slots[0].savable = false;
  const std::optional<Plan> plan = make_plan(input.view());
  ASSERT_TRUE(plan);
  EXPECT_EQ(plan->slot, 1);
  EXPECT_FALSE(plan->save_first);
}

TEST(Planner, SaysWhereBringingBackWouldBeDearer) {
  Input input;
  input.prompt = 1000;
  input.costs = machine(1000, 1e6);  // a slow disk
  input.slots = {slot(0, 200, 200)};
  input.restores = {RestoreOption{.checkpoint = 1, .usable = 900, .bytes = 20e6, .ready_s = 0}};
  EXPECT_TRUE(make_plan(input.view())->restore_dearer);
  input.restores[0].usable = 100;
  EXPECT_FALSE(make_plan(input.view())->restore_dearer);
  input.costs = machine(1000, 1e9);
  input.restores[0].usable = 900;
  ASSERT_EQ(make_plan(input.view())->source, Source::restore);
  EXPECT_FALSE(make_plan(input.view())->restore_dearer);
}

}  // namespace
}  // namespace cairn

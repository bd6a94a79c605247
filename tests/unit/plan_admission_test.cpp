#include "plan/admission.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <iostream>
#include <random>

#include "plan/end_offsets.hpp"

namespace cairn {
namespace {

using testing::Contains;
using testing::ElementsAre;
using testing::IsEmpty;
using testing::Not;
using testing::SizeIs;

// `cut_s`: what a cut costs beside copying.
CostModel machine(double tokens_per_s, double cut_s, double context_checkpoint_bytes = 0.5e6) {
  CostModel model;
  const double piece_s = cut_s / 2;
  for (int i = 0; i < 60; ++i) {
    const double tokens = 10.0 + (i * 977) % 4000;
    model.observe_prefill(0, tokens, piece_s + tokens / tokens_per_s);
    model.observe_piece_overhead(0);
    const double inside = 1 + i % 4;
    const double bytes = 1e6 + tokens * 1e3 + inside * context_checkpoint_bytes;
    model.observe_state(tokens, inside, inside * context_checkpoint_bytes, bytes);
    model.observe_save(bytes, 0.002 + bytes / 1e9);
    model.observe_restore(bytes, 0.002 + bytes / 2e9);
  }
  return model;
}

struct Case {
  CheckpointPolicy policy;
  CostModel costs = machine(2000, 0.008);
  AdmissionInput input;
  Case(MemoryKind kind, std::uint32_t base, std::uint32_t prompt) {
    input.kind = kind;
    input.base = input.done = base;
    input.prompt = prompt;
    input.can_save = true;
  }
  std::vector<Stop> admit() {
    input.policy = &policy;
    input.costs = &costs;
    return cairn::admit(input);
  }
  std::vector<std::uint32_t> places() {
    std::vector<std::uint32_t> at;
    for (const Stop& stop : admit()) at.push_back(stop.at);
    return at;
  }
};

TEST(Admission, WherePromptsHardlyEverComeBackInsuranceTakesLess) {
  Case fresh(MemoryKind::checkpointed, 0, 8000);
  const std::size_t unlearned = fresh.places().size();
  ASSERT_GT(unlearned, 1u);
  fresh.input.returning = 0.34;
  EXPECT_EQ(fresh.places().size(), unlearned);
  fresh.input.returning = 0.04;
  EXPECT_LT(fresh.places().size(), unlearned);
  fresh.input.continues = true;
  EXPECT_GE(fresh.places().size(), unlearned);
}

// A cut of 0.7 s of prompt costs about what the budget is: where prompts come back whole seconds depended on a millisecond.
TEST(Admission, WherePromptsAreSeenToComeBackTheBudgetIsLessStrict) {
  Case fresh(MemoryKind::checkpointed, 0, 1400);
  fresh.policy.bound_tokens = 256;
  fresh.costs = machine(2000, 0.024);
  EXPECT_THAT(fresh.places(), IsEmpty());
  fresh.input.returns_often = true;
  EXPECT_EQ(fresh.places().size(), 1u);
  Case longer(MemoryKind::checkpointed, 0, 16'000);
  longer.policy.bound_tokens = 256;
  longer.costs = machine(2000, 0.024);
  const std::size_t strict = longer.places().size();
  longer.input.returns_often = true;
  EXPECT_GT(longer.places().size(), strict);
}

TEST(Admission, AShortPromptThatNothingSpeaksForIsNotCut) {
  Case fresh(MemoryKind::checkpointed, 0, 500);
  fresh.input.before_end = 7;
  fresh.input.overhead_s = 0.003;
  EXPECT_THAT(fresh.places(), IsEmpty());
}

// The second turn of the first chat of a replay was computed anew: what the template says of its end was paid from the budget alone.
TEST(Admission, TheFirstChatOfAllGetsItsEndAndThenItIsLearnedWhetherAnyAreGoneOnFrom) {
  EndOffsets ends;
  const auto places = [&](std::uint32_t prompt, bool end_is_told) {
    ends.observe(EndOffsets::longest + 1);
    Case fresh(MemoryKind::checkpointed, 0, prompt);
    fresh.costs = machine(1000, 0.012);
    fresh.input.before_end = 7;
    fresh.input.overhead_s = 0.005;
    fresh.input.followed = ends.next_turn(false, end_is_told);
    return fresh.places();
  };
  EXPECT_THAT(places(540, true), ElementsAre(533));
  for (int i = 0; i < 4; ++i) (void)places(540, true);
  EXPECT_THAT(places(540, true), IsEmpty());
  ends = {};
  EXPECT_THAT(places(250, true), IsEmpty());
  ends = {};
  EXPECT_THAT(places(540, false), IsEmpty());
}

TEST(Admission, TheEndOfALongPromptIsWithinTheBudget) {
  Case fresh(MemoryKind::checkpointed, 0, 1400);
  fresh.policy.bound_tokens = 1024;
  fresh.input.before_end = 7;
  EXPECT_THAT(fresh.places(), ElementsAre(1393));
}

TEST(Admission, TheEndOfTheSystemPromptIsTheFirstInsuranceButWithinTheBudget) {
  Case session(MemoryKind::checkpointed, 0, 3000);
  session.input.system_end = 2000;
  session.input.sessions = 0.3;
  session.policy.bound_tokens = 100'000;
  EXPECT_THAT(session.places(), ElementsAre(2000));
  Case exact(MemoryKind::exact, 0, 8000);
  exact.input.system_end = 2000;
  exact.input.sessions = 0.3;
  EXPECT_THAT(exact.places(), Contains(2000));
  Case known(MemoryKind::checkpointed, 2000, 3000);  // another session has it already
  known.input.system_end = 2000;
  known.input.sessions = 0.3;
  EXPECT_THAT(known.places(), IsEmpty());
  Case brief(MemoryKind::checkpointed, 0, 600);
  brief.costs = machine(2000, 0.02);
  brief.input.system_end = 300;
  brief.input.sessions = 0.3;
  EXPECT_THAT(brief.places(), IsEmpty());
  brief.input.sessions_seen = true;
  EXPECT_THAT(brief.places(), ElementsAre(300));
}

TEST(Admission, TheWidestGapIsWhatAnEditCostsAtWorst) {
  const std::vector<std::uint32_t> points{100, 900, 1000, 1300, 5000};
  EXPECT_EQ(widest_gap(0, 2000, points), 800u);
  EXPECT_EQ(widest_gap(950, 2000, points), 700u);
  EXPECT_EQ(widest_gap(0, 2000, {}), 2000u);
}

// Status said 978 for 16,000 tokens, where 5,700 new ones were left with 3,500 in one piece.
TEST(Admission, TheIntervalHoldsForShorterPromptsToo) {
  Case prompt(MemoryKind::checkpointed, 0, 16'000);
  const std::uint32_t interval = interval_for(16'000, MemoryKind::checkpointed, 512, true, prompt.policy, prompt.costs, 5e-6);
  for (std::uint32_t tokens = 500; tokens <= 16'000; tokens += 500) {
    Case shorter(MemoryKind::checkpointed, 0, tokens);
    shorter.input.overhead_s = 5e-6 * tokens;
    std::uint32_t last = 0, widest = 0;
    for (const std::uint32_t at : shorter.places()) {
      widest = std::max(widest, at - last);
      last = at;
    }
    EXPECT_LE(std::max(widest, tokens - last), interval + 512 + 64) << tokens;
  }
}

TEST(Admission, AConversationThatGoesOnGetsItsEndWhateverTheBudget) {
  Case turn(MemoryKind::checkpointed, 900, 1000);
  turn.input.before_end = 7;
  turn.input.continues = true;
  turn.input.followed = 0.5;
  EXPECT_THAT(turn.places(), ElementsAre(993));
  turn.input.followed = 0;  // nobody ever came back
  EXPECT_THAT(turn.places(), IsEmpty());
}

TEST(Admission, TheBackendLeavesTheVeryEndByItself) {
  Case turn(MemoryKind::checkpointed, 900, 1000);
  turn.input.before_end = 4;
  turn.input.followed = 0.9;
  EXPECT_THAT(turn.places(), IsEmpty());
  turn.input.kind = MemoryKind::exact;  // such a one cannot go back a single token
  EXPECT_THAT(turn.admit(), ElementsAre(Stop{996, true}));
}

TEST(Admission, CutsKeepTheWorstRecomputationWithinTheBound) {
  Case fresh(MemoryKind::checkpointed, 0, 16000);
  const std::vector<std::uint32_t> places = fresh.places();
  ASSERT_THAT(places, SizeIs(15));
  std::uint32_t before = 0;
  for (const std::uint32_t at : places) {
    // Each piece leaves a context checkpoint an ubatch before its end, too.
    EXPECT_LE(at - before, fresh.policy.bound_tokens + 512);
    before = at;
  }
  EXPECT_LE(16000 - before, fresh.policy.bound_tokens + 512);
}

TEST(Admission, WhereEachCutIsAWholeStateThereAreHalfAsMany) {
  Case fresh(MemoryKind::exact, 0, 16000);
  fresh.costs = machine(100, 0.008);  // slow: the budget pays for them all
  const std::vector<std::uint32_t> places = fresh.places();
  ASSERT_THAT(places, SizeIs(16));
  EXPECT_LE(places.front(), 2 * fresh.policy.bound_tokens);
}

TEST(Admission, CutsStayWithinTheBudget) {
  for (const double piece_s : {0.001, 0.008, 0.05, 0.2, 1.0}) {
    for (const std::uint32_t prompt : {500u, 2000u, 8000u, 16000u, 65000u}) {
      for (const MemoryKind kind : {MemoryKind::checkpointed, MemoryKind::exact}) {
        Case fresh(kind, 0, prompt);
        fresh.costs = machine(2000, piece_s);
        double cost = 0;
        for (const Stop& stop : fresh.admit()) {
          cost += fresh.costs.boundary_seconds();
          if (stop.save) cost += fresh.costs.save_seconds(fresh.costs.state_bytes(stop.at, 0));
        }
        EXPECT_LE(cost, 0.03 * fresh.costs.prefill_seconds(0, prompt) * 1.01) << piece_s << " " << prompt;
      }
    }
  }
}

TEST(Admission, AFastGpuWithDearContextCheckpointsIsNotCut) {
  // 3B hybrid on an H100: 17,402 tokens in 1.5 s, 76 MB a context checkpoint (build 11669).
  Case fresh(MemoryKind::checkpointed, 0, 17402);
  fresh.costs = machine(12000, 0.005, 76e6);
  EXPECT_THAT(fresh.places(), IsEmpty());
}

TEST(Admission, WhatWasSpentIsNotSpentAgain) {
  Case fresh(MemoryKind::checkpointed, 0, 16000);
  fresh.input.done = 8000;
  const std::size_t free = fresh.places().size();
  fresh.input.pieces = 45;
  EXPECT_LT(fresh.places().size(), free);
  fresh.input.pieces = 1000;
  EXPECT_THAT(fresh.places(), IsEmpty());
}

// Found on the SWE replay: the first piece took longer than thought, and the stop before the end was given up for it.
TEST(Admission, AKeptStopIsNotTakenBackByADearerEstimate) {
  Case fresh(MemoryKind::checkpointed, 0, 2087);
  fresh.input.before_end = 7;
  fresh.input.policy = &fresh.policy;
  fresh.input.costs = &fresh.costs;
  const std::vector<std::uint32_t> kept = marked_places(fresh.input);
  EXPECT_THAT(kept, ElementsAre(2080));
  fresh.costs = machine(2000, 0.008, 375e6);  // half a second to copy
  EXPECT_THAT(fresh.places(), IsEmpty());
  fresh.input.kept = kept;
  fresh.input.done = 1043;
  EXPECT_THAT(fresh.places(), ElementsAre(2080));
}

TEST(Admission, ABranchIsWorthAStopWhenItSparesMoreThanItCosts) {
  Case second(MemoryKind::checkpointed, 0, 900);
  second.input.branch = 600;
  EXPECT_THAT(second.places(), ElementsAre(600));
  second.input.branch = 8;  // shared by chance
  EXPECT_THAT(second.places(), IsEmpty());
}

TEST(Admission, CreditIsForThoseThatContinue) {
  Case turn(MemoryKind::checkpointed, 0, 3000);
  turn.costs = machine(2000, 0.008, 150e6);
  turn.input.credit_s = 5;
  EXPECT_THAT(turn.places(), IsEmpty());
  turn.input.continues = true;
  EXPECT_THAT(turn.places(), Not(IsEmpty()));
}

// Found on the Magagent replay: prompts that share a path leave each other in its midst, more often than at its end.
TEST(Admission, WhereOthersLeaveInsideItIsCutBeyondTheBudget) {
  Case turn(MemoryKind::checkpointed, 1000, 3500);
  turn.costs = machine(2000, 0.03);
  turn.input.overhead_s = 0.03;
  EXPECT_THAT(turn.places(), IsEmpty());
  turn.input.branches = 0.4;
  EXPECT_THAT(turn.places(), Not(IsEmpty()));
  turn.input.branches = 0.01;
  EXPECT_THAT(turn.places(), IsEmpty());
}

TEST(Admission, AFixedGridIsObeyed) {
  Case fixed(MemoryKind::checkpointed, 0, 4200);
  fixed.costs = machine(2000, 10);
  fixed.policy.adaptive = false;
  fixed.policy.interval_tokens = 1024;
  fixed.input.before_end = 7;
  EXPECT_THAT(fixed.places(), ElementsAre(1024, 2048, 3072, 4096, 4193));
  fixed.policy.interval_tokens = 0;
  EXPECT_THAT(fixed.places(), ElementsAre(4193));
}

TEST(Admission, WhoWaitsForASharedPrefixGetsASavedStopOnAnyKind) {
  const std::vector<Stop> shared{{3000, true}};
  for (const MemoryKind kind : {MemoryKind::truncatable, MemoryKind::checkpointed, MemoryKind::exact, MemoryKind::unknown}) {
    Case leader(kind, 0, 3050);
    leader.input.shared = shared;
    EXPECT_THAT(leader.admit(), Contains(Stop{3000, true})) << to_string(kind);
    leader.input.can_save = false;
    EXPECT_THAT(leader.admit(), Not(Contains(Stop{3000, true}))) << to_string(kind);
  }
}

// It computed the prefix twice on a single slot: behind such a stop an older build keeps nothing of it.
TEST(Admission, WhereOnlyItsEndCanBeGoneOnFromAStopForAnotherIsSavedOrNotMade) {
  const std::vector<Stop> in_the_slot{{3000, false}};
  Case leader(MemoryKind::exact, 0, 4000);
  leader.input.shared = in_the_slot;
  EXPECT_THAT(leader.places(), Not(Contains(3000)));
  leader.input.kind = MemoryKind::checkpointed;
  EXPECT_THAT(leader.places(), Contains(3000));
}

// Sixteen clients waited for each insurance of the first prompt of theirs.
TEST(Admission, NothingIsInsuredWhileOthersWaitForTheSharedPrefix) {
  const std::vector<Stop> shared{{8000, true}};
  Case leader(MemoryKind::checkpointed, 0, 8050);
  ASSERT_THAT(leader.places(), Contains(testing::Lt(8000u)));
  leader.input.shared = shared;
  EXPECT_THAT(leader.places(), ElementsAre(8000));
}

TEST(Admission, WhoWaitsForTheSlotItselfNeedsNoFile) {
  const std::vector<Stop> shared{{3000, false}};
  Case leader(MemoryKind::checkpointed, 0, 3050);
  leader.input.shared = shared;
  EXPECT_THAT(leader.admit(), Contains(Stop{3000, false}));
  leader.input.kind = MemoryKind::truncatable;  // it can go back anywhere
  EXPECT_THAT(leader.admit(), IsEmpty());
}

TEST(Admission, ATruncatablePromptIsCutOnlyWhenOthersAreAbout) {
  Case alone(MemoryKind::truncatable, 0, 9000);
  EXPECT_THAT(alone.places(), IsEmpty());
  alone.input.others = true;
  EXPECT_THAT(alone.places(), ElementsAre(2048));
}

TEST(Admission, OfManyThatComeTogetherTheFirstIsAloneForAMoment) {
  Case first(MemoryKind::truncatable, 0, 9000);
  first.input.others_may_come = true;
  EXPECT_THAT(first.places(), ElementsAre(2048));
  first.input.done = 2048;
  first.input.pieces = 1;
  EXPECT_THAT(first.places(), IsEmpty()) << "nobody came";
  first.input.others = true;
  EXPECT_THAT(first.places(), ElementsAre(4096));
}

TEST(Admission, APromptThatIsAloneIsNotCutWhereACutShows) {
  Case fast(MemoryKind::truncatable, 0, 9000);
  fast.input.others_may_come = true;
  fast.costs = machine(16000, 0.01);
  EXPECT_THAT(fast.places(), IsEmpty());
}

// `place` is one of those that `any` is told of: 1,452 tokens, seen often in the end, when there is no budget either.
void expect_a_guess_until_seen_often(Case& any, LeavingPlace& place, double chance) {
  place.at = 1452;
  place.chance = chance;
  EXPECT_THAT(any.places(), Contains(1452u));
  any.policy.budget = 0;
  EXPECT_THAT(any.places(), IsEmpty()) << "a guess is paid from the budget";
  place.seen_often = true;
  EXPECT_THAT(any.places(), Contains(1452u));
}

TEST(Admission, WhereLaterPromptsAreSeenToLeaveAStateIsLeft) {
  Case block(MemoryKind::checkpointed, 0, 2400);
  EXPECT_THAT(block.places(), Not(Contains(1452u)));
  expect_a_guess_until_seen_often(block, block.input.mark, 0.6);
  block.policy = CheckpointPolicy{};
  block.input.mark.chance = 0.01;
  EXPECT_THAT(block.places(), Not(Contains(1452u)));
  block.input.mark.chance = 0.6;
  block.input.branch = 1440;
  EXPECT_THAT(block.places(), Not(Contains(1452u))) << "a state is left just before it anyway";
}

TEST(Admission, BeforeTheLastMessageIsABetterPlaceThanACut) {
  Case ledger(MemoryKind::checkpointed, 0, 2400);
  expect_a_guess_until_seen_often(ledger, ledger.input.message, 0.125);
  ledger.input.branch = 1247;
  ledger.input.message.chance = 0.6;
  EXPECT_THAT(ledger.places(), ElementsAre(1247u, 1452u)) << "200 tokens each time cost more than a stop";
  ledger.input.mark = ledger.input.message;
  EXPECT_THAT(ledger.places(), ElementsAre(1247u, 1452u)) << "once";
}

TEST(Admission, AGridIsNoOrderToLeaveAStateAtAMark) {
  Case grid(MemoryKind::exact, 0, 2400);
  grid.policy.adaptive = false;
  grid.policy.interval_tokens = 1000;
  grid.input.mark.at = 1452;
  grid.input.mark.chance = 0.6;
  EXPECT_THAT(grid.places(), ElementsAre(1000, 2000, 2399));
}

TEST(Admission, TheBoundMayBeATime) {
  Case fresh(MemoryKind::exact, 0, 16000);
  fresh.policy.budget = 1;
  fresh.policy.bound_s = 2;  // 4,000 tokens
  EXPECT_THAT(fresh.places(), SizeIs(testing::AllOf(testing::Ge(3u), testing::Le(5u))));
}

TEST(Admission, TheIntervalSaysWhatAnEditCosts) {
  const CheckpointPolicy policy;
  const CostModel cheap = machine(2000, 0.008);
  EXPECT_LE(interval_for(16000, MemoryKind::checkpointed, 512, true, policy, cheap), 1024u);
  EXPECT_GE(interval_for(16000, MemoryKind::checkpointed, 512, true, policy, machine(12000, 0.1, 76e6)), 15000u);
  EXPECT_EQ(interval_for(16000, MemoryKind::truncatable, 512, true, policy, cheap), 1u);
}

TEST(Admission, AnyInputGivesAscendingStopsAhead) {
  const char* given = std::getenv("CAIRN_TEST_SEED");
  const unsigned seed = given != nullptr ? static_cast<unsigned>(std::atol(given)) : std::random_device{}();
  std::cout << "CAIRN_TEST_SEED=" << seed << "\n";
  std::mt19937 random(seed);
  const auto up_to = [&](std::uint32_t most) { return static_cast<std::uint32_t>(random() % (most + 1)); };
  for (int i = 0; i < 3000; ++i) {
    Case any(static_cast<MemoryKind>(random() % 4), 0, up_to(40000));
    any.costs = machine(50 + up_to(20000), 0.0001 + up_to(1000) / 1000.0);
    any.input.base = up_to(any.input.prompt);
    any.input.done = any.input.base + up_to(any.input.prompt - any.input.base);
    any.input.before_end = up_to(300);
    any.input.branch = up_to(41000);
    any.input.continues = random() % 2 != 0;
    any.input.followed = up_to(100) / 100.0;
    any.input.can_save = random() % 4 != 0;
    any.input.others = random() % 2 != 0;
    any.input.others_may_come = random() % 2 != 0;
    any.input.credit_s = up_to(3);
    any.input.mark.at = up_to(20000);
    any.input.mark.chance = up_to(100) / 100.0;
    any.input.mark.seen_often = random() % 2 != 0;
    any.input.message.at = up_to(41000);
    any.input.message.chance = up_to(100) / 100.0;
    any.input.message.seen_often = random() % 2 != 0;
    any.policy.adaptive = random() % 4 != 0;
    any.policy.interval_tokens = up_to(2) * 700;
    const std::vector<Stop> shared{{up_to(20000), random() % 2 != 0}, {20000 + up_to(21000), random() % 2 != 0}};
    any.input.shared = shared;
    std::uint32_t before = any.input.done;
    for (const Stop& stop : any.admit()) {
      ASSERT_GT(stop.at, before);
      ASSERT_LT(stop.at, any.input.prompt);
      before = stop.at;
    }
  }
}

}  // namespace
}  // namespace cairn

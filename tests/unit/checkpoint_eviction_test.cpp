#include "checkpoint/eviction.hpp"

#include <gtest/gtest.h>

#include <map>

#include "unit/checkpoint_support.hpp"

namespace cairn {
namespace {

CheckpointRecord state(int id, std::uint64_t bytes, double cost_s, std::int64_t used_ms, std::uint64_t uses = 0) {
  CheckpointRecord record;
  record.id = static_cast<CheckpointId>(id);
  record.token_count = 1000;
  record.bytes = bytes;
  record.cost_to_recompute_s = cost_s;
  record.last_used_unix_ms = used_ms;
  record.uses = uses;
  return record;
}

struct Case {
  const char* what;
  const char* policy;
  CheckpointRecord first, second;
  StateWorth first_worth, second_worth;
  int goes;
};

TEST(EvictionPolicies, WhoGoes) {
  const StateWorth some{.tokens_per_s = 10};
  const Case cases[] = {
      {"unused longest", "lru", state(1, 10, 9, 100, 9), state(2, 10, 1, 200), some, some, 1},
      {"least seconds a byte", "gdsf", state(1, 10, 1, 200), state(2, 10, 5, 100), some, some, 1},
      {"fewer uses", "gdsf", state(1, 10, 5, 100, 3), state(2, 10, 5, 200, 0), some, some, 2},
      {"old and cheap", "marconi", state(1, 10, 1, 100), state(2, 10, 5, 200), some, some, 1},
      {"what others branch from stays", "marconi", state(1, 10, 1, 100), state(2, 10, 5, 200), {.tokens_per_s = 1, .branched_from = true}, some, 2},
      {"spares less", "value", state(1, 10, 5, 200), state(2, 10, 5, 100), {.tokens_per_s = 1}, some, 1},
      {"as much for more bytes", "value", state(1, 10, 5, 100), state(2, 99, 5, 200), some, some, 2},
      {"cheap to compute", "value", state(1, 10, 5, 100), state(2, 10, 1, 200), some, some, 2},
      {"useless beside another", "value", state(1, 10, 500, 900, 50), state(2, 99, 5, 100), {}, some, 1},
      {"equal: unused longest", "value", state(1, 10, 5, 200), state(2, 10, 5, 100), some, some, 2},
      {"equal: oldest", "value", state(1, 10, 5, 100), state(2, 10, 5, 100), some, some, 1},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(std::string{c.policy} + ": " + c.what);
    const auto policy = make_policy(c.policy);
    const WorthOf worth = [&](const CheckpointRecord& record) { return record.id == c.first.id ? c.first_worth : c.second_worth; };
    const CheckpointRecord* candidates[] = {&c.first, &c.second};
    Victims victims(*policy, worth, candidates, 1000);
    ASSERT_NE(victims.worst(), nullptr);
    EXPECT_EQ(static_cast<int>(victims.worst()->id), c.goes);
    victims.take();
    EXPECT_NE(static_cast<int>(victims.worst()->id), c.goes);
    victims.take();
    EXPECT_EQ(victims.worst(), nullptr);
  }
}

TEST(EvictionPolicies, GdsfForgetsOldMeritsAsItsFloorRises) {
  GdsfPolicy policy;
  const CheckpointRecord old = state(1, 10, 40, 0);
  EXPECT_GT(policy.score(old, {}, 0), policy.score(state(2, 10, 20, 0), {}, 0));
  policy.evicted(state(3, 10, 30, 0), 5.0);
  EXPECT_LT(policy.score(old, {}, 0), policy.score(state(4, 10, 20, 0), {}, 0));
  // Used again, it stands on the new floor.
  EXPECT_GT(policy.score(state(1, 10, 40, 0, 1), {}, 0), policy.score(state(4, 10, 20, 0), {}, 0));
}

TEST(EvictionPolicies, UnknownNamesAreNone) { EXPECT_EQ(make_policy("fifo"), nullptr); }

TEST(Victims, AStateIsWorthMoreOnceItsTwinIsGone) {
  const CheckpointRecord one = state(1, 10, 5, 100), two = state(2, 10, 5, 200), other = state(3, 10, 5, 300);
  std::map<int, bool> gone;
  const WorthOf worth = [&](const CheckpointRecord& record) {
    const int id = static_cast<int>(record.id);
    if (id == 3) return StateWorth{.tokens_per_s = 1};
    return StateWorth{.tokens_per_s = gone[1] || gone[2] ? 5.0 : 0.0};
  };
  ValuePolicy policy;
  const CheckpointRecord* candidates[] = {&one, &two, &other};
  Victims victims(policy, worth, candidates, 1000);
  ASSERT_EQ(victims.worst(), &one);
  victims.take();
  gone[1] = true;
  EXPECT_EQ(victims.worst(), &other);
}

TEST(Victims, NothingOfMoreValueIsGivenUpForAnIncomingState) {
  const CheckpointRecord poor = state(1, 10, 5, 100), rich = state(2, 70, 500, 100), incoming = state(3, 10, 20, 100);
  const WorthOf worth = [](const CheckpointRecord&) { return StateWorth{.tokens_per_s = 1}; };
  ValuePolicy policy;
  const CheckpointRecord* candidates[] = {&poor, &rich};
  const Victims victims(policy, worth, candidates, 1000);
  EXPECT_EQ(victims.bytes_below(incoming), 10u);
}

// A disk with little more than the floor left, on which five states lie.
class FloorOfFreeDisk : public testing::Test {
 protected:
  test::ScratchDirectory scratch;
  test::FaultyLayer files;
  test::StoreFixture fixture{scratch, files};
  CheckpointStore& store() { return *fixture.store; }
  void SetUp() override {
    fixture.options.min_free_bytes = 1'000'000;
    files.pretended_space = DiskSpace{2'000'000, 4'000'000};
    ASSERT_TRUE(fixture.open());
    for (Token salt = 0; salt < 5; ++salt) ASSERT_TRUE(fixture.save(test::tokens_of_length(50, salt), 9000, 10));
    files.pretended_space = DiskSpace{1'005'000, 4'000'000};
  }
  bool judge(std::uint64_t bytes, double cost_s, bool pinned = false) {
    CheckpointRecord incoming = state(1 << 30, bytes, cost_s, fixture.now_ms);
    incoming.pinned = pinned;
    return fixture.await(store().worth_its_room(incoming));
  }
};

TEST_F(FloorOfFreeDisk, AWorthlessStateDoesNotDriveOutBetterOnes) {
  EXPECT_FALSE(judge(9000, 0.001));
  EXPECT_EQ(store().counters().declined, 1u);
  EXPECT_TRUE(judge(4000, 0.001)) << "there is room";
  EXPECT_TRUE(judge(9000, 1e6)) << "it is worth more than they are";
  EXPECT_TRUE(judge(9000, 0.001, true)) << "it is pinned";
  EXPECT_TRUE(judge(900'000, 0.001)) << "nothing would help: reserve() says so";
  EXPECT_EQ(fixture.await(store().reserve(900'000)).error().code, ErrorCode::no_space);
  EXPECT_EQ(store().counters().declined, 1u);
  EXPECT_EQ(store().counters().files, 5u);
}

TEST_F(FloorOfFreeDisk, WhereDeletingFreesNothingOnlyOneRoundIsGivenUp) {
  EXPECT_EQ(fixture.await(store().reserve(9000)).error().code, ErrorCode::no_space);
  EXPECT_EQ(store().counters().evictions, 1u);
  EXPECT_EQ(store().counters().files, 4u);
}

// A file system that frees what was deleted a while later: each save that was tried meanwhile evicted once more.
TEST_F(FloorOfFreeDisk, WhereDeletingFreesLateOneRoundIsGivenUpUntilThatShows) {
  int refused = 0;
  store().on_saving([&](const Error* trouble) { refused += trouble != nullptr; });
  for (int attempt = 0; attempt < 5; ++attempt) {
    EXPECT_EQ(fixture.await(store().reserve(9000)).error().code, ErrorCode::no_space);
    fixture.now_ms += 10'000;
  }
  EXPECT_EQ(store().counters().evictions, 1u);
  EXPECT_EQ(refused, 1);
  EXPECT_TRUE(judge(9000, 0.001)) << "it drives nothing out any more";
  files.pretended_space->free_bytes += 9300;
  EXPECT_TRUE(fixture.await(store().reserve(9000)));
  EXPECT_EQ(store().counters().evictions, 1u);
}

TEST_F(FloorOfFreeDisk, MoreIsGivenUpWhenWhatWasDeletedDoesNotComeForAMinute) {
  EXPECT_FALSE(fixture.await(store().reserve(9000)));
  fixture.now_ms += LateSpace::longest_ms;
  EXPECT_FALSE(fixture.await(store().reserve(9000)));
  EXPECT_EQ(store().counters().evictions, 2u);
}

TEST(LateSpaceTest, CountsWhatIsNotShownYet) {
  LateSpace late;
  EXPECT_EQ(late.coming(100, 0), 0u);
  late.deleted(50, 100, 150, 0);
  EXPECT_EQ(late.coming(150, 0), 0u) << "at once, on most";
  late.deleted(50, 150, 160, 10);
  EXPECT_EQ(late.coming(160, 20), 40u);
  EXPECT_EQ(late.coming(130, 20), 40u) << "somebody has written";
  EXPECT_EQ(late.coming(155, 30), 15u);
  late.deleted(10, 155, 170, 30);
  EXPECT_EQ(late.coming(170, 30), 10u);
  EXPECT_EQ(late.coming(170, 10 + LateSpace::longest_ms), 0u);
  late.deleted(7, 170, 170, 100'000);
  EXPECT_EQ(late.coming(170, 99'999), 0u) << "the clock was set back";
}

}  // namespace
}  // namespace cairn

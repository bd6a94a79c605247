#include "slots/backend_ram_cache.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

namespace cairn {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

constexpr MemoryKind kind = MemoryKind::truncatable;

// `count` tokens of a prompt that shares nothing with those of other numbers.
Tokens prompt(std::size_t count, int number = 0) {
  Tokens tokens(count);
  std::iota(tokens.begin(), tokens.end(), 100'000 * number);
  return tokens;
}

TEST(BackendRamCache, OffersWhatItWasToldOfAndNoSmallPartOfIt) {
  BackendRamCache cache;
  EXPECT_EQ(cache.offer(prompt(2'000), kind).tokens, 0u);
  cache.note(prompt(1'000), {400, 900});
  EXPECT_EQ(cache.offer(prompt(2'000), kind).tokens, 1'000u);
  EXPECT_EQ(cache.offer(prompt(2'000), kind).context_checkpoints, 2u);
  EXPECT_EQ(cache.offer(prompt(2'000), MemoryKind::checkpointed).tokens, 900u) << "an answer may follow, which is not known";
  EXPECT_EQ(cache.offer(prompt(600), MemoryKind::checkpointed).tokens, 400u);
  EXPECT_EQ(cache.offer(prompt(249), kind).tokens, 0u) << "less than a quarter is not given away";
  EXPECT_EQ(cache.offer(prompt(2'000, 1), kind).tokens, 0u);
}

TEST(BackendRamCache, KeepsOneOfAConversation) {
  BackendRamCache cache;
  cache.note(prompt(500), {});
  cache.note(prompt(1'000), {});
  cache.note(prompt(700), {});
  cache.remove(prompt(1'000));
  EXPECT_EQ(cache.offer(prompt(2'000), kind).tokens, 0u);
}

TEST(BackendRamCache, WhatItGivesBackIsThereNoMore) {
  BackendRamCache cache;
  cache.note(prompt(1'000), {400, 900});
  const auto learnt = cache.learn(prompt(1'200), 1'000, 950, {});
  EXPECT_THAT(learnt.resume_points, ElementsAre(400, 900));
  EXPECT_FALSE(learnt.distrusted);
  EXPECT_EQ(cache.offer(prompt(1'200), kind).tokens, 0u);
}

// A guess that was off by a piece, twice, switched it off for as long as the backend ran.
TEST(BackendRamCache, ALittleLessThanPromisedIsNoFailure) {
  BackendRamCache cache;
  for (int number = 0; number < 5; ++number) {
    cache.note(prompt(20'000, number), {});
    EXPECT_FALSE(cache.learn(prompt(21'000, number), 20'000, 19'400, {}).distrusted);
  }
  EXPECT_TRUE(cache.trusted({}));
}

// It stayed so until Cairn was restarted, and what was missing went on to be offered.
TEST(BackendRamCache, TwoFailuresCostSomeMinutesOfTrust) {
  BackendRamCache cache;
  BackendRamCache::Time now{};
  now += std::chrono::hours(1);
  for (int number = 0; number < 3; ++number) cache.note(prompt(1'000, number), {});
  const auto first = cache.learn(prompt(1'200, 0), 1'000, 0, now);
  EXPECT_FALSE(first.distrusted);
  EXPECT_THAT(first.resume_points, IsEmpty());
  EXPECT_EQ(cache.offer(prompt(1'200, 0), kind).tokens, 0u) << "it had to make room";
  EXPECT_EQ(cache.offer(prompt(1'200, 1), kind).tokens, 1'000u);
  EXPECT_TRUE(cache.learn(prompt(1'200, 1), 1'000, 30, now).distrusted);
  EXPECT_FALSE(cache.trusted(now));
  EXPECT_TRUE(cache.trusted(now + std::chrono::hours(1)));
  EXPECT_EQ(cache.offer(prompt(1'200, 2), kind).tokens, 1'000u);
}

TEST(BackendRamCache, ASuccessBetweenTwoFailuresCounts) {
  BackendRamCache cache;
  for (int number = 0; number < 3; ++number) {
    cache.note(prompt(1'000, number), {});
    EXPECT_FALSE(cache.learn(prompt(1'200, number), 1'000, number == 1 ? 1'000 : 0, {}).distrusted);
  }
}

TEST(BackendRamCache, AFewTokensPromiseNothing) {
  BackendRamCache cache;
  for (int time = 0; time < 5; ++time) EXPECT_FALSE(cache.learn(prompt(100), 16, 0, {}).distrusted);
}

TEST(BackendRamCache, AnotherProcessHasNone) {
  BackendRamCache cache;
  cache.note(prompt(1'000), {});
  cache.note(prompt(1'000, 1), {});
  (void)cache.learn(prompt(1'200), 1'000, 0, {});
  cache.clear();
  EXPECT_EQ(cache.offer(prompt(1'200, 1), kind).tokens, 0u);
  cache.note(prompt(1'000), {});
  EXPECT_FALSE(cache.learn(prompt(1'200), 1'000, 0, {}).distrusted) << "the strike was the other's";
}

}  // namespace
}  // namespace cairn

#include "checkpoint/evicted_states.hpp"

#include <gtest/gtest.h>

#include <numeric>

namespace cairn {
namespace {

constexpr NamespaceId here{1}, elsewhere{2};

Tokens counting(std::size_t count, Token from = 0) {
  Tokens tokens(count);
  std::iota(tokens.begin(), tokens.end(), from);
  return tokens;
}

TEST(EvictedStates, SaysWhetherOneWouldHaveServedThePrompt) {
  EvictedStates evicted;
  const std::vector<std::uint32_t> inside{200, 400};
  evicted.add(here, counting(500), inside);
  const Tokens longer = counting(600);
  EXPECT_TRUE(evicted.would_have_served(here, longer, 0));
  EXPECT_TRUE(evicted.would_have_served(here, longer, 499));
  EXPECT_FALSE(evicted.would_have_served(here, longer, 500));
  EXPECT_FALSE(evicted.would_have_served(elsewhere, longer, 0));
  Tokens parts = counting(600);
  parts[450] = -7;  // goes on differently after 450: the state inside would have served
  EXPECT_TRUE(evicted.would_have_served(here, parts, 399));
  EXPECT_FALSE(evicted.would_have_served(here, parts, 400));
  EXPECT_FALSE(evicted.would_have_served(here, counting(600, 5), 0));
  EXPECT_FALSE(evicted.would_have_served(here, counting(500), 400));  // one token is always computed
  EXPECT_FALSE(evicted.would_have_served(here, {}, 0));
}

TEST(EvictedStates, ForgetsTheOldest) {
  EvictedStates evicted;
  evicted.add(here, counting(50, 9), {});
  for (Token i = 0; i < 8192; ++i) evicted.add(here, counting(40, 10 + i), {});
  EXPECT_FALSE(evicted.would_have_served(here, counting(60, 9), 0));
  EXPECT_TRUE(evicted.would_have_served(here, counting(60, 10), 0));
}

}  // namespace
}  // namespace cairn

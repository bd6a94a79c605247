#include "request/behaviour.hpp"

#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

namespace cairn {
namespace {

const std::vector<TopLogprob> seen{{7, -0.5}, {3, -1.25}, {90000, -2.5}, {11, -3}};

TEST(Behaviour, OfTheSameWeightsDiffersALittle) {
  EXPECT_TRUE(same_behaviour(pack_logprobs(seen), seen));
  std::vector<TopLogprob> again = seen;
  for (TopLogprob& one : again) one.logprob += 0.02;
  EXPECT_TRUE(same_behaviour(pack_logprobs(seen), again));
  std::swap(again[0], again[1]);  // two that are about as likely
  EXPECT_TRUE(same_behaviour(pack_logprobs(seen), again));
}

TEST(Behaviour, OnlyTheLikelierHalfCounts) {
  std::vector<TopLogprob> tail = seen;
  tail[2] = {5, -2.6};
  tail[3].logprob = -9;
  EXPECT_TRUE(same_behaviour(pack_logprobs(seen), tail));
  std::vector<TopLogprob> value = seen;
  value[1].logprob -= 0.05;
  EXPECT_FALSE(same_behaviour(pack_logprobs(seen), value));
  std::vector<TopLogprob> token = seen;
  token[0].token = 8;
  EXPECT_FALSE(same_behaviour(pack_logprobs(seen), token));
}

TEST(Behaviour, OfNothingIsNobodys) {
  const std::string packed = pack_logprobs(seen);
  EXPECT_FALSE(same_behaviour("", seen));
  EXPECT_FALSE(same_behaviour(packed, {}));
  EXPECT_FALSE(same_behaviour(packed.substr(0, packed.size() / 4 - 1), seen));  // not even one
}

}  // namespace
}  // namespace cairn

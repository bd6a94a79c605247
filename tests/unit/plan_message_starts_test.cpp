#include "plan/message_starts.hpp"

#include <gtest/gtest.h>

namespace cairn {
namespace {

TEST(MessageStarts, AreAGuessUntilTwoWereLeftThere) {
  MessageStarts starts;
  const double unlearned = starts.chance();
  EXPECT_GT(unlearned, 0.05);
  EXPECT_LT(unlearned, 0.2);
  starts.offered();
  EXPECT_LT(starts.chance(), unlearned);
  starts.left();
  EXPECT_FALSE(starts.seen_often());
  starts.offered();
  starts.left();
  EXPECT_TRUE(starts.seen_often());
  EXPECT_GT(starts.chance(), 0.35);
}

TEST(MessageStarts, WhereNobodyLeavesThemAreForgottenAndComeBack) {
  MessageStarts starts;
  for (int i = 0; i < 40; ++i) starts.offered();
  EXPECT_LT(starts.chance(), 0.02);
  for (int i = 0; i < 100; ++i) {
    starts.offered();
    starts.left();
    EXPECT_LE(starts.chance(), 1.0);
  }
  EXPECT_GT(starts.chance(), 0.8);
}

TEST(MessageStarts, AreKept) {
  MessageStarts starts, other;
  for (int i = 0; i < 5; ++i) starts.offered();
  starts.left();
  EXPECT_TRUE(other.load(starts.to_text()));
  EXPECT_NEAR(other.chance(), starts.chance(), 0.01);
  for (const char* text : {"", "x", "1", "2 1", "-1 4", "nan 4", "0 1e9"}) EXPECT_FALSE(other.load(text)) << text;
  EXPECT_NEAR(other.chance(), starts.chance(), 0.01);
}

}  // namespace
}  // namespace cairn

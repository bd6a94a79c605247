#include "plan/end_offsets.hpp"

#include <gtest/gtest.h>

namespace cairn {
namespace {

TEST(EndOffsets, BeforeTheFirstTurnItSaysWhatItIsGiven) {
  const EndOffsets none;
  EXPECT_EQ(none.advised(7), 7u);
  EXPECT_DOUBLE_EQ(none.followed(0.5), 0.5);
  EXPECT_DOUBLE_EQ(none.followed(0), 0);
}

TEST(EndOffsets, ServesMostTurns) {
  EndOffsets offsets;
  for (int i = 0; i < 50; ++i) offsets.observe(i % 20 == 0 ? 90 : 11);
  EXPECT_EQ(offsets.advised(7), 11u);
  for (int i = 0; i < 50; ++i) offsets.observe(i % 2 == 0 ? 30 : 11);  // the client has changed its ways
  EXPECT_EQ(offsets.advised(7), 30u);
}

TEST(EndOffsets, WhatHardlyAnyTurnSharesIsUnneeded) {
  EndOffsets offsets;
  for (int i = 0; i < 4; ++i) offsets.observe(3);
  EXPECT_EQ(offsets.unneeded(), 0u);  // too few to tell
  for (int i = 0; i < 100; ++i) offsets.observe(i % 20 == 0 ? 0 : 3);
  EXPECT_EQ(offsets.unneeded(), 3u);
  for (int i = 0; i < 100; ++i) offsets.observe(i % 4 == 0 ? 1 : 3);
  EXPECT_EQ(offsets.unneeded(), 1u);
}

TEST(EndOffsets, KnowsHowManyPromptsAreGoneOnFrom) {
  EndOffsets offsets;
  for (int i = 0; i < 40; ++i) offsets.observe(EndOffsets::longest + 1);
  EXPECT_LT(offsets.followed(0.5), 0.06);
  EXPECT_EQ(offsets.advised(7), 7u);
  for (int i = 0; i < 100; ++i) offsets.observe(i % 4 == 0 ? EndOffsets::longest + 1 : 3);
  EXPECT_NEAR(offsets.followed(0.5), 0.7, 0.1);
  EXPECT_EQ(offsets.advised(7), 3u);
}

TEST(EndOffsets, KnowsHowManyPromptsLeaveOthersInside) {
  EndOffsets offsets;
  EXPECT_NEAR(offsets.branches(), 0.3, 0.01);
  for (int i = 0; i < 100; ++i) {
    offsets.observe(3);
    offsets.observe_branch(false);
  }
  EXPECT_LT(offsets.branches(), 0.05);
  for (int i = 0; i < 100; ++i) {
    offsets.observe(EndOffsets::longest + 1);
    offsets.observe_branch(i % 2 == 0);
  }
  EXPECT_NEAR(offsets.branches(), 0.5, 0.1);
}

TEST(EndOffsets, KeptAndTakenBack) {
  EndOffsets offsets;
  for (int i = 0; i < 30; ++i) offsets.observe(i % 3 == 0 ? 200 : 5);
  EndOffsets again;
  ASSERT_TRUE(again.load(offsets.to_text())) << offsets.to_text();
  EXPECT_EQ(again.advised(7), offsets.advised(7));
  EXPECT_NEAR(again.followed(0.5), offsets.followed(0.5), 0.01);
  for (const char* bad : {"", "x", "-1", "3", "3 x", "3 -1", "3 0 5", "3 0 5:", "3 0 999:1", "3 0 5:-1", "3 0 5;1", "nan 0"}) {
    EXPECT_FALSE(again.load(bad)) << bad;
    EXPECT_EQ(again.advised(7), offsets.advised(7));
  }
}

TEST(EndOffsets, ReturningFallsWhilePromptsShareNothing) {
  EndOffsets offsets;
  EXPECT_DOUBLE_EQ(offsets.returning(), 1);
  for (int i = 0; i < 40; ++i) offsets.observe(EndOffsets::longest + 1);
  EXPECT_LT(offsets.returning(), 0.15);
  offsets.observe(3);
  offsets.observe(EndOffsets::longest + 1);
  offsets.observe_branch(true);
  EXPECT_GT(offsets.returning(), 0.15);
}

// The eleventh conversation in turn was believed not to come back, before the first had had its second turn.
TEST(EndOffsets, AHeavierPriorOutlastsADozenConversationsThatHaveJustBegun) {
  EndOffsets offsets;
  for (int i = 0; i < 11; ++i) offsets.observe(EndOffsets::longest + 1);
  EXPECT_GT(offsets.followed(0.5, 4), 1.5 * offsets.followed(0.5));
}

// A chat with a side job between any two turns: its end seemed half as likely to be gone on from, and was not stopped for on a busy machine.
TEST(EndOffsets, AConversationGoesOnWhateverComesBetweenItsTurns) {
  EndOffsets offsets;
  EXPECT_GE(offsets.next_turn(true, true), 0.8);
  for (int i = 0; i < 10; ++i) {
    offsets.observe(3);
    offsets.observe(EndOffsets::longest + 1);
  }
  EXPECT_GE(offsets.next_turn(true, true), 0.8);
  EXPECT_LT(offsets.next_turn(false, true), 0.6);
}

TEST(EndOffsets, OftenIsSaidOfWhatWasSeenAlone) {
  EndOffsets offsets;
  EXPECT_FALSE(offsets.returns_often());
  offsets.observe(3);
  EXPECT_FALSE(offsets.returns_often());  // one says little
  for (int i = 0; i < 3; ++i) offsets.observe(3);
  EXPECT_TRUE(offsets.returns_often());
  for (int i = 0; i < 30; ++i) offsets.observe(EndOffsets::longest + 1);
  EXPECT_FALSE(offsets.returns_often());
}

}  // namespace
}  // namespace cairn

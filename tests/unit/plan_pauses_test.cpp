#include "plan/pauses.hpp"

#include <gtest/gtest.h>

namespace cairn {
namespace {

TEST(Pauses, NothingIsKnownAtFirst) {
  EXPECT_DOUBLE_EQ(Pauses{}.quiet_before(3, 6, 0.1), 3);
}

// An agent whose tools take four seconds each turn: a save of six, begun after three, kept every turn waiting.
TEST(Pauses, NoSaveBeginsInTheMiddleOfAClientsRhythm) {
  Pauses pauses;
  for (int turn = 0; turn < 10; ++turn) pauses.note(4.0 + turn * 0.01);
  EXPECT_DOUBLE_EQ(pauses.quiet_before(3, 6, 0.1), 4.09);
  EXPECT_DOUBLE_EQ(pauses.quiet_before(3, 0.5, 0.1), 3) << "it ends before the next one comes";
  EXPECT_DOUBLE_EQ(pauses.quiet_before(5, 6, 0.1), 5);
  EXPECT_DOUBLE_EQ(pauses.quiet_before(3, 6, 6), 3) << "who asks for so much bears it";
}

TEST(Pauses, OneInManyIsBorne) {
  Pauses pauses;
  for (int turn = 0; turn < 31; ++turn) pauses.note(0.01);
  pauses.note(4);
  EXPECT_DOUBLE_EQ(pauses.quiet_before(3, 6, 0.2), 3) << "5 s of one request in 32";
  EXPECT_DOUBLE_EQ(pauses.quiet_before(3, 6, 0.1), 4);
}

TEST(Pauses, TheLatestCount) {
  Pauses pauses;
  for (int turn = 0; turn < 10; ++turn) pauses.note(50);
  EXPECT_DOUBLE_EQ(pauses.quiet_before(3, 48, 0.1), 50);
  for (std::size_t turn = 0; turn < Pauses::remembered; ++turn) pauses.note(0);
  EXPECT_DOUBLE_EQ(pauses.quiet_before(3, 48, 0.1), 3);
}

TEST(Pauses, NothingWaitsForEver) {
  Pauses pauses;
  for (int turn = 0; turn < 10; ++turn) pauses.note(70);
  EXPECT_DOUBLE_EQ(pauses.quiet_before(3, 100, 0.1), Pauses::longest_s);
  EXPECT_DOUBLE_EQ(pauses.quiet_before(200, 100, 0.1), 200);
}

}  // namespace
}  // namespace cairn

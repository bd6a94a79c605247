#include "plan/leaving_marks.hpp"

#include <gtest/gtest.h>

namespace cairn {
namespace {

constexpr Token block = 7000;  // how each block of instructions begins

// `before` tokens, the block's first, and `behind` more; none but that one is the same as another.
Tokens prompt(std::uint32_t before, std::uint32_t behind, Token seed) {
  Tokens tokens;
  for (std::uint32_t i = 0; i < before; ++i) tokens.push_back(seed + static_cast<Token>(i));
  tokens.push_back(block);
  for (std::uint32_t i = 0; i < behind; ++i) tokens.push_back(seed + 100'000 + static_cast<Token>(i));
  return tokens;
}

TokenSpan rest_of(const Tokens& tokens, std::uint32_t from) { return TokenSpan{tokens}.subspan(from); }

TEST(LeavingMarks, WhereABlockWasLeftTheNextPromptWillBeLeft) {
  LeavingMarks marks;
  const Tokens one = prompt(900, 940, 10'000), two = prompt(1200, 55, 30'000), next = prompt(2000, 400, 50'000);
  EXPECT_EQ(marks.offer(one, 0).at, 0u);
  marks.left(rest_of(one, 900));
  const LeavingPlace once = marks.offer(two, 0);
  EXPECT_EQ(once.at, 1200u);
  EXPECT_LT(once.chance, 0.3);
  EXPECT_FALSE(once.seen_often) << "it may be chance";
  marks.left(rest_of(two, 1200));
  const LeavingPlace place = marks.offer(next, 0);
  EXPECT_EQ(place.at, 2000u);
  EXPECT_GT(place.chance, 0.3);
  EXPECT_TRUE(place.seen_often);
  EXPECT_EQ(marks.offer(next, 2001).at, 0u) << "it lies in what was known before";
  EXPECT_EQ(marks.offer(Tokens{1, 2, 3}, 0).at, 0u);
  EXPECT_EQ(marks.offer(Tokens{}, 0).at, 0u);
}

TEST(LeavingMarks, TheLastOfItsKindCounts) {
  LeavingMarks marks;
  for (int i = 0; i < 3; ++i) marks.left(Tokens{block, 1, 2});
  Tokens history = prompt(100, 50, 10'000);
  const Tokens turn = prompt(300, 20, 30'000);
  history.insert(history.end(), turn.begin(), turn.end());
  EXPECT_EQ(marks.offer(history, 0).at, 100u + 51 + 300);
}

TEST(LeavingMarks, ATokenThatIsAllOverThePlaceIsNone) {
  LeavingMarks marks;
  for (int i = 0; i < 5; ++i) marks.left(Tokens{5, 1, 2, 5, 3});
  EXPECT_EQ(marks.offer(Tokens{9, 5, 9}, 0).at, 0u);
}

TEST(LeavingMarks, AMarkThatHardlyAnyPromptIsLeftAtIsUnlikely) {
  LeavingMarks marks;
  marks.left(Tokens{5, 1});
  marks.left(Tokens{5, 2});
  for (int i = 0; i < 30; ++i) marks.offer(Tokens{9, 5, 9}, 0);
  EXPECT_LT(marks.offer(Tokens{9, 5, 9}, 0).chance, 0.1);
}

TEST(LeavingMarks, AFewOfManyAreKept) {
  LeavingMarks marks;
  for (Token token = 0; token < 1000; ++token) marks.left(Tokens{token, -1});
  marks.left(Tokens{999, -1});
  EXPECT_EQ(marks.offer(Tokens{3, 999, 4}, 0).at, 1u);
  EXPECT_LT(marks.to_text().size(), 400u);
}

TEST(LeavingMarks, IsKeptAsText) {
  LeavingMarks marks;
  for (int i = 0; i < 3; ++i) marks.left(Tokens{block, 1, 2});
  LeavingMarks again;
  ASSERT_TRUE(again.load(marks.to_text()));
  EXPECT_EQ(again.to_text(), marks.to_text());
  EXPECT_EQ(again.offer(Tokens{1, 2, block, 3}, 0).at, 2u);
  for (const char* bad : {"x", "1", "1:2", "1:2:", "1:2:x", "1:-2:3", "1:3:2", "1:nan:2"}) EXPECT_FALSE(again.load(bad)) << bad;
  EXPECT_TRUE(again.load(""));
}

}  // namespace
}  // namespace cairn

#include "checkpoint/state_values.hpp"

#include <gtest/gtest.h>

#include <numeric>

namespace cairn {
namespace {

Tokens counting(std::size_t count, Token first) {
  Tokens tokens(count);
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

Tokens joined(Tokens a, const Tokens& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

struct Fixture {
  PrefixTree tree;
  StateValues values;

  NodeId prompt(const Tokens& tokens, double now_s) {
    const auto inserted = tree.insert(tokens, static_cast<std::int64_t>(now_s * 1000));
    values.observe(tree, inserted, static_cast<std::uint32_t>(tokens.size()), now_s);
    return inserted.leaf;
  }
  void save(NodeId leaf, std::uint32_t at, std::uint32_t mark) { ASSERT_TRUE(tree.attach(leaf, at, mark, 1)); }
  StateWorth worth(NodeId leaf, std::uint32_t at, std::uint32_t mark, double now_s, MemoryKind kind = MemoryKind::truncatable) {
    return values.worth(tree, {leaf, {&at, 1}, mark, kind, 0, now_s}, now_s);
  }
};

TEST(StateValues, AStateThatALongerOneCoversIsWorthNothing) {
  Fixture it;
  const Tokens first = counting(100, 1);
  const NodeId early = it.prompt(first, 0);
  it.save(early, 100, 1);
  EXPECT_GT(it.worth(early, 100, 1, 1).tokens_per_s, 0);
  const NodeId late = it.prompt(joined(first, counting(50, 1000)), 10);
  it.save(late, 150, 2);
  EXPECT_EQ(it.worth(early, 100, 1, 11).tokens_per_s, 0);
  EXPECT_GT(it.worth(late, 150, 2, 11).tokens_per_s, 0);
}

TEST(StateValues, WhereStatesCannotBeCutTheShorterOneKeepsItsWorth) {
  Fixture it;
  const Tokens first = counting(100, 1);
  const NodeId early = it.prompt(first, 0);
  it.save(early, 100, 1);
  const NodeId other = it.prompt(joined(counting(90, 1), counting(50, 1000)), 10);
  it.save(other, 140, 2);
  // What both share counts for neither where states can be cut, and for each where not.
  EXPECT_GT(it.worth(other, 140, 2, 11, MemoryKind::exact).tokens_per_s, it.worth(other, 140, 2, 11).tokens_per_s);
  EXPECT_GT(it.worth(early, 100, 1, 11, MemoryKind::exact).tokens_per_s, it.worth(early, 100, 1, 11).tokens_per_s);
}

TEST(StateValues, WhatTheNextTurnLeftIsNotWorthKeeping) {
  Fixture it;
  const NodeId first = it.prompt(counting(100, 1), 0);
  it.save(first, 100, 1);
  // The next turn leaves the last ten tokens, and its own state is not kept.
  it.prompt(joined(counting(90, 1), counting(60, 1000)), 10);
  const StateWorth shared = it.worth(first, 100, 1, 10);
  Fixture same;
  const NodeId again = same.prompt(counting(100, 1), 0);
  same.save(again, 100, 1);
  same.prompt(joined(counting(100, 1), counting(60, 1000)), 10);
  EXPECT_NEAR(shared.tokens_per_s / same.worth(again, 100, 1, 10).tokens_per_s, 0.9, 0.001);
}

TEST(StateValues, AStateWithItsAnswerIsStillThatPrompts) {
  Fixture it;
  const Tokens prompt = counting(100, 1);
  it.prompt(prompt, 0);
  for (int turn = 0; turn < 200; ++turn) it.prompt(counting(50, 10'000 + turn * 100), turn);
  const auto answer = it.tree.insert(joined(prompt, counting(20, 500)), 300);
  it.save(answer.leaf, 120, 1);
  const double fresh = it.worth(answer.leaf, 120, 1, 200).tokens_per_s;
  EXPECT_GT(fresh, it.worth(answer.leaf, 120, 1, 20'000).tokens_per_s);  // by the prompt's age, not by last use
}

TEST(StateValues, APlaceThatPromptsKeepLeavingAddsToTheOneStateThatHoldsIt) {
  Fixture it, alone;
  const Tokens system = counting(400, 1);
  const NodeId leaf = it.prompt(joined(system, counting(1000, 1000)), 0);
  it.save(leaf, 1400, 1);
  const NodeId other = alone.prompt(joined(system, counting(1000, 1000)), 0);
  alone.save(other, 1400, 1);
  for (int i = 1; i < 50; ++i) {
    it.prompt(joined(system, counting(1000, 10'000 * (i + 1))), i);
    alone.prompt(counting(1400, 10'000 * (i + 1)), i);
  }
  EXPECT_TRUE(it.worth(leaf, 1400, 1, 50).branched_from);
  EXPECT_FALSE(alone.worth(other, 1400, 1, 50).branched_from);
  EXPECT_GT(it.worth(leaf, 1400, 1, 50).tokens_per_s, alone.worth(other, 1400, 1, 50).tokens_per_s);
}

TEST(StateValues, ALookAheadIsWorthTheSameAtAnyTime) {
  Fixture it;
  const Tokens system = counting(400, 1);
  const NodeId leaf = it.prompt(joined(system, counting(1000, 1000)), 0);
  it.save(leaf, 1400, 1);
  for (int i = 1; i < 50; ++i) it.prompt(joined(system, counting(1000, 10'000 * (i + 1))), i);
  const std::uint32_t end = 1400;
  Prospects prospects;
  it.values.look_ahead(it.tree, {leaf, {&end, 1}, 1, MemoryKind::truncatable, 0, 50}, prospects);
  for (const double now_s : {50.0, 61.5, 1000.0, 1e6}) {
    const StateWorth now = it.worth(leaf, end, 1, now_s), ahead = prospects.at(now_s);
    EXPECT_EQ(now.tokens_per_s, ahead.tokens_per_s);
    EXPECT_EQ(now.lasts_s, ahead.lasts_s);
    EXPECT_EQ(now.branched_from, ahead.branched_from);
  }
}

TEST(StateValues, ConversationsAreLearnedToReturn) {
  Fixture it;
  double now_s = 0;
  for (int chat = 0; chat < 40; ++chat) {
    Tokens tokens = counting(200, 100'000 * (chat + 1));
    for (int turn = 0; turn < 5; ++turn) {
      it.prompt(tokens, now_s += 10);
      tokens = joined(std::move(tokens), counting(20, 100'000 * (chat + 1) + 1000 * (turn + 1)));
    }
    it.prompt(counting(240, 50'000'000 + chat * 1000), now_s);
  }
  const NodeId single = it.prompt(counting(240, 90'000'000), now_s + 10);
  const Tokens chat = counting(200, 95'000'000);
  it.prompt(chat, now_s);
  // Of the same age.
  const NodeId second_turn = it.prompt(joined(chat, counting(40, 96'000'000)), now_s + 10);
  it.save(single, 240, 1);
  it.save(second_turn, 240, 2);
  EXPECT_GT(it.worth(second_turn, 240, 2, now_s + 10).tokens_per_s, it.worth(single, 240, 1, now_s + 10).tokens_per_s);
}

}  // namespace
}  // namespace cairn

#include "prefix/prefix_tree.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <iostream>
#include <numeric>
#include <random>

#include "unit/prefix_tree_model.hpp"

namespace cairn {
namespace {

using testing::ElementsAre;

constexpr NodeId kNone = PrefixTree::kNone;
constexpr NodeId kRoot = PrefixTree::kRoot;

Tokens counting(std::size_t count, Token first = 0) {
  Tokens tokens(count);
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

Tokens joined(Tokens a, const Tokens& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

std::vector<std::pair<std::uint32_t, std::uint32_t>> marks_on_path(const PrefixTree& tree, const Tokens& tokens) {
  std::vector<std::pair<std::uint32_t, std::uint32_t>> seen;
  tree.for_each_mark_on_path(tree.match(tokens), [&](const PrefixTree::Mark& m) {
    seen.push_back({m.position_tokens, m.mark});
    return true;
  });
  return seen;
}

std::vector<std::pair<std::uint32_t, std::uint32_t>> marks_below(const PrefixTree& tree, const Tokens& tokens) {
  std::vector<std::pair<std::uint32_t, std::uint32_t>> seen;
  tree.for_each_mark_below(tree.match(tokens), [&](const PrefixTree::Mark& m) {
    seen.push_back({m.position_tokens, m.mark});
    return true;
  });
  return seen;
}

TEST(PrefixTree, EmptyTreeKnowsNothing) {
  PrefixTree tree;
  EXPECT_EQ(tree.match(counting(5)).matched_tokens, 0u);
  EXPECT_EQ(tree.match(counting(5)).node, kRoot);
  EXPECT_EQ(tree.nodes(), 1u);
  EXPECT_EQ(tree.insert({}, 1).leaf, kRoot);
  EXPECT_EQ(tree.trim(0), 0u);
  EXPECT_EQ(tree.check_invariants(), "");
}

TEST(PrefixTree, FirstPromptIsOneEdge) {
  PrefixTree tree;
  const auto result = tree.insert(counting(10), 7);
  EXPECT_EQ(result.matched_tokens, 0u);
  EXPECT_EQ(result.branch, kNone);
  EXPECT_EQ(tree.begin_tokens(result.leaf), 0u);
  EXPECT_EQ(tree.end_tokens(result.leaf), 10u);
  EXPECT_EQ(tree.parent(result.leaf), kRoot);
  EXPECT_EQ(tree.visits(result.leaf), 1u);
  EXPECT_EQ(tree.last_use_ms(result.leaf), 7);
  EXPECT_EQ(tree.tokens_to(result.leaf, 4), counting(4));
  EXPECT_EQ(tree.match(counting(4)).node, result.leaf);
  EXPECT_EQ(tree.match(counting(4)).matched_tokens, 4u);
}

TEST(PrefixTree, LeavingInMidEdgeMakesABranchAndKeepsTheLowerId) {
  PrefixTree tree;
  const NodeId first = tree.insert(counting(10), 1).leaf;
  const auto second = tree.insert(joined(counting(6), {100, 101}), 2);
  EXPECT_EQ(second.matched_tokens, 6u);
  ASSERT_NE(second.branch, kNone);
  EXPECT_TRUE(second.branch_is_new);
  EXPECT_EQ(tree.end_tokens(second.branch), 6u);
  EXPECT_EQ(tree.children(second.branch), 2u);
  EXPECT_EQ(tree.visits(second.branch), 2u);
  EXPECT_EQ(tree.parent(first), second.branch);
  EXPECT_EQ(tree.edge_tokens(first), counting(4, 6));
  EXPECT_EQ(tree.tokens_to(first), counting(10));
  EXPECT_THAT(tree.path_to(first), ElementsAre(second.branch, first));

  const auto third = tree.insert(joined(counting(6), {200}), 3);
  EXPECT_EQ(third.branch, second.branch);
  EXPECT_FALSE(third.branch_is_new);
}

TEST(PrefixTree, ExtendingOrRepeatingAPromptIsNoBranch) {
  PrefixTree tree;
  const NodeId first = tree.insert(counting(10), 1).leaf;
  EXPECT_EQ(tree.insert(counting(12), 2).branch, kNone);
  EXPECT_EQ(tree.insert(counting(12), 3).branch, kNone);
  EXPECT_EQ(tree.insert(counting(10), 4).leaf, first);
  EXPECT_EQ(tree.insert(counting(3), 5).branch, kNone);
  const auto leaves = tree.insert(joined(counting(10), {77}), 6);  // where the first prompt ended
  EXPECT_EQ(leaves.branch, first);
  EXPECT_TRUE(leaves.branch_is_new);
}

TEST(PrefixTree, NothingSharedIsNoBranch) {
  PrefixTree tree;
  tree.insert(counting(10), 1);
  tree.insert(counting(10, 50), 2);
  EXPECT_EQ(tree.insert(counting(10, 90), 3).branch, kNone);
}

TEST(PrefixTree, MarksMoveWithSplits) {
  PrefixTree tree;
  const NodeId leaf = tree.insert(counting(10), 1).leaf;
  EXPECT_TRUE(tree.attach(leaf, 10, 1, 0));
  EXPECT_TRUE(tree.attach(leaf, 6, 1, 0));
  EXPECT_TRUE(tree.attach(leaf, 3, 1, 0));
  EXPECT_FALSE(tree.attach(leaf, 0, 1, 0));
  EXPECT_FALSE(tree.attach(leaf, 11, 1, 0));
  const NodeId branch = tree.insert(joined(counting(6), {100}), 2).branch;
  EXPECT_EQ(tree.marks_in_subtree(leaf), 1u);
  EXPECT_EQ(tree.marks_in_subtree(branch), 3u);
  EXPECT_EQ(tree.check_invariants(), "");
  EXPECT_THAT(marks_on_path(tree, counting(10)), ElementsAre(std::pair(10, 1), std::pair(6, 1), std::pair(3, 1)));
  EXPECT_THAT(marks_on_path(tree, joined(counting(6), {100})), ElementsAre(std::pair(6, 1), std::pair(3, 1)));
  EXPECT_THAT(marks_on_path(tree, counting(5)), ElementsAre(std::pair(3, 1)));
  EXPECT_THAT(marks_below(tree, counting(5)), ElementsAre(std::pair(6, 1), std::pair(10, 1)));
  EXPECT_TRUE(tree.detach(leaf, 6, 1));  // found above the leaf
  EXPECT_FALSE(tree.detach(leaf, 6, 1));
  EXPECT_EQ(tree.marks(), 2u);
}

TEST(PrefixTree, SeveralStatesAtOnePlace) {
  PrefixTree tree;
  const NodeId leaf = tree.insert(counting(10), 1).leaf;
  tree.attach(leaf, 5, 1, 0);
  tree.attach(leaf, 5, 2, 0);
  tree.attach(leaf, 5, 2, 9);
  EXPECT_EQ(tree.marks(), 2u);
  EXPECT_TRUE(tree.detach(leaf, 5, 1));
  std::uint32_t kind = 0;
  tree.for_each_mark_on_path(tree.match(counting(10)), [&](const PrefixTree::Mark& m) {
    kind = m.kind;
    return true;
  });
  EXPECT_EQ(kind, 9u);
}

TEST(PrefixTree, MarksBelowNearestFirstAndBounded) {
  PrefixTree tree;
  for (Token branch = 0; branch < 100; ++branch) {
    const Tokens tokens = joined(counting(8), counting(static_cast<std::size_t>(200 - branch), 1000 * (branch + 1)));
    const NodeId leaf = tree.insert(tokens, 1).leaf;
    if (branch % 2) tree.attach(leaf, tree.end_tokens(leaf), static_cast<std::uint32_t>(branch), 0);
  }
  const auto all = marks_below(tree, counting(8));
  ASSERT_EQ(all.size(), 50u);
  EXPECT_EQ(all.front(), std::pair(109u, 99u));
  EXPECT_TRUE(std::is_sorted(all.begin(), all.end()));
  std::size_t seen = 0;
  tree.for_each_mark_below(tree.match(counting(8)), [&](const PrefixTree::Mark&) { return ++seen < 3; });
  EXPECT_EQ(seen, 3u);
  seen = 0;
  tree.for_each_mark_below(tree.match(counting(8)), [&](const PrefixTree::Mark&) { return ++seen > 0; }, 10);
  EXPECT_EQ(seen, 10u);
}

TEST(PrefixTree, MarksDoNotDecideWhichChildIsTheLatest) {
  PrefixTree tree;
  const NodeId first = tree.insert(Tokens{1, 2}, 1).leaf;
  const NodeId second = tree.insert(Tokens{1, 3}, 5).leaf;
  const NodeId third = tree.insert(Tokens{1, 4}, 5).leaf;
  const NodeId parent = tree.parent(first);
  EXPECT_EQ(tree.latest_child(parent, kNone), second);
  EXPECT_EQ(tree.latest_child(parent, second), third);
  tree.attach(third, 2, 1, 0);  // comes first among the children now
  EXPECT_EQ(tree.latest_child(parent, kNone), second);
  tree.insert(Tokens{1, 2}, 6);
  EXPECT_EQ(tree.latest_child(parent, kNone), first);
}

TEST(PrefixTree, TrimTakesTheLeastRecentlyUsedAndJoinsWhatIsLeft) {
  PrefixTree tree;
  const NodeId kept = tree.insert(counting(10), 1).leaf;
  tree.insert(joined(counting(6), counting(5, 100)), 2);
  tree.insert(counting(10), 3);
  EXPECT_EQ(tree.nodes(), 4u);
  EXPECT_EQ(tree.trim(12), 5u);
  EXPECT_EQ(tree.nodes(), 2u);
  EXPECT_EQ(tree.tokens_to(kept), counting(10));
  EXPECT_EQ(tree.begin_tokens(kept), 0u);
  EXPECT_EQ(tree.check_invariants(), "");
}

TEST(PrefixTree, AShortPromptInUseDoesNotGoWithItsOldContinuation) {
  PrefixTree tree;
  const NodeId often = tree.insert(counting(6), 1).leaf;
  tree.insert(counting(10), 2);
  tree.insert(joined(counting(6), counting(3, 100)), 3);
  tree.insert(counting(6), 4);
  EXPECT_EQ(tree.trim(6), 7u);
  EXPECT_TRUE(tree.is_live(often));
  EXPECT_EQ(tree.match(counting(10)).matched_tokens, 6u);
}

TEST(PrefixTree, MarksAndPinsKeepTheirPathThroughTrim) {
  PrefixTree tree;
  const NodeId marked = tree.insert(counting(10), 1).leaf;
  const NodeId pinned = tree.insert(counting(10, 100), 2).leaf;
  const NodeId free = tree.insert(counting(10, 200), 3).leaf;
  tree.attach(marked, 4, 1, 0);
  EXPECT_TRUE(tree.pin(pinned));
  EXPECT_TRUE(tree.pin(pinned));
  EXPECT_EQ(tree.trim(0), 10u);
  EXPECT_FALSE(tree.is_live(free));
  EXPECT_FALSE(tree.pin(free));
  EXPECT_FALSE(tree.attach(free, 1, 1, 0));
  EXPECT_TRUE(tree.unpin(pinned));
  EXPECT_EQ(tree.trim(0), 0u);
  EXPECT_TRUE(tree.unpin(pinned));
  EXPECT_FALSE(tree.unpin(pinned));
  EXPECT_TRUE(tree.detach(marked, 4, 1));
  EXPECT_EQ(tree.trim(0), 20u);
  EXPECT_EQ(tree.nodes(), 1u);
}

TEST(PrefixTree, MemoryComesBackAfterTrim) {
  PrefixTree tree;
  const std::uint64_t empty_bytes = tree.bytes_held();
  std::mt19937 random(1);
  for (int i = 0; i < 2000; ++i) {
    Tokens tokens(1000);
    for (Token& token : tokens) token = static_cast<Token>(random());
    tree.insert(tokens, i);
  }
  EXPECT_GT(tree.bytes_held(), 8'000'000u);
  tree.trim(100'000);
  EXPECT_EQ(tree.edge_tokens_held(), 100'000u);
  EXPECT_LT(tree.bytes_held(), 2'500'000u);
  tree.trim(0);
  EXPECT_LT(tree.bytes_held() - empty_bytes, 600'000u);
  EXPECT_EQ(tree.check_invariants(), "");
}

// Every other prompt goes: all blocks are half empty and compaction has to move what stays.
TEST(PrefixTree, CompactionKeepsContents) {
  PrefixTree tree(PrefixTree::Options{.arena_block_log2 = 8});
  std::vector<Tokens> kept;
  std::mt19937 random(2);
  for (int i = 0; i < 2000; ++i) {
    Tokens tokens(1 + random() % 700);
    for (Token& token : tokens) token = static_cast<Token>(random());
    const NodeId leaf = tree.insert(tokens, i).leaf;
    if (i % 2) continue;
    tree.pin(leaf);
    kept.push_back(tokens);
  }
  tree.trim(0);
  EXPECT_LT(tree.bytes_held(), tree.edge_tokens_held() * 4 * 3 / 2 + 400'000);
  for (const Tokens& tokens : kept) ASSERT_EQ(tree.match(tokens).matched_tokens, tokens.size());
  EXPECT_EQ(tree.check_invariants(), "");
}

TEST(PrefixTree, WideRoot) {
  PrefixTree tree;
  for (Token i = 0; i < 200'000; ++i) tree.insert(Tokens{i, 1, 2}, i);
  EXPECT_EQ(tree.children(kRoot), 200'000u);
  for (Token i = 0; i < 200'000; i += 1000) ASSERT_EQ(tree.match(Tokens{i, 1, 5}).matched_tokens, 2u);
  tree.trim(30);
  EXPECT_EQ(tree.children(kRoot), 10u);
  EXPECT_EQ(tree.match(Tokens{199'999, 1, 2}).matched_tokens, 3u);
}

TEST(PrefixTree, FiftyThousandNodesDeep) {  // a recursion would need more stack than there is
  constexpr std::uint32_t kDepth = 50'000;
  PrefixTree tree;
  const Tokens tokens = counting(kDepth);
  const NodeId leaf = tree.insert(tokens, 1).leaf;
  tree.attach(leaf, kDepth, 1, 0);
  // From the far end down, so that each insert walks one edge only.
  for (std::uint32_t cut = kDepth - 1; cut > 0; --cut) tree.insert(TokenSpan(tokens).first(cut), 1);
  EXPECT_EQ(tree.nodes(), kDepth + 1u);
  const auto match = tree.match(tokens);
  EXPECT_EQ(match.matched_tokens, kDepth);
  EXPECT_EQ(match.node, leaf);
  EXPECT_EQ(tree.path_to(leaf).size(), kDepth);
  EXPECT_EQ(tree.tokens_to(leaf), tokens);
  EXPECT_EQ(marks_on_path(tree, tokens).size(), 1u);
  EXPECT_EQ(tree.check_invariants(), "");
  EXPECT_TRUE(tree.detach(leaf, kDepth, 1));
  EXPECT_EQ(tree.trim(0), kDepth);
}

TEST(PrefixTree, MovesAsAWhole) {
  PrefixTree tree;
  tree.insert(counting(10), 1);
  PrefixTree other = std::move(tree);
  EXPECT_EQ(other.match(counting(10)).matched_tokens, 10u);
  EXPECT_EQ(other.check_invariants(), "");
}

TEST(PrefixTree, AnnouncingChangesNothing) {
  PrefixTree announced(PrefixTree::Options{4}), plain(PrefixTree::Options{4});
  std::mt19937 random(7);
  std::vector<Tokens> prompts;
  for (int i = 0; i < 400; ++i) prompts.push_back(counting(1 + random() % 20, static_cast<Token>(random() % 50)));
  announced.announce(prompts.front());  // in an empty tree
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    if (i + PrefixTree::kAnnouncedAhead < prompts.size()) announced.announce(prompts[i + PrefixTree::kAnnouncedAhead]);
    if (i % 7 == 0) announced.announce({});
    const auto left = announced.insert(prompts[i], static_cast<std::int64_t>(i));
    const auto right = plain.insert(prompts[i], static_cast<std::int64_t>(i));
    ASSERT_EQ(left.leaf, right.leaf);
    ASSERT_EQ(left.matched_tokens, right.matched_tokens);
    if (i % 50 == 49) ASSERT_EQ(announced.trim(100), plain.trim(100));
    ASSERT_EQ(announced.check_invariants(), "");
  }
}

TEST(PrefixTree, DoesWhatTheNaiveTreeDoes) {
  const char* given = std::getenv("CAIRN_TEST_SEED");
  const auto seed = static_cast<std::uint32_t>(given ? std::strtoul(given, nullptr, 10) : std::random_device()());
  std::cout << "CAIRN_TEST_SEED=" << seed << std::endl;
  std::mt19937 random(seed);
  for (int walk = 0; walk < 60; ++walk) {
    test::PrefixTreeTrial trial(
        [&](std::uint32_t below) { return below ? static_cast<std::uint32_t>(random() % below) : 0; });
    for (int step = 0; step < 150; ++step) {
      ASSERT_NO_THROW(trial.step()) << "walk " << walk << ", step " << step << ", CAIRN_TEST_SEED=" << seed;
    }
  }
}

}  // namespace
}  // namespace cairn

#include "checkpoint/state_values.hpp"

#include <algorithm>

namespace cairn {

namespace {
// Who shares at least half of an earlier prompt has gone on from it.
constexpr std::uint32_t good_part = 2;
// Nodes looked at for a prompt that went on, or for the end of what a state holds alone.
constexpr int most_steps = 64;
// Where more prompts part than this, what they share is a template and no conversation.
constexpr std::uint32_t most_children = 64;
}  // namespace

const StateValues::Place* StateValues::at(const PrefixTree& tree, NodeId node) const {
  const auto found = places_.find(node);
  // Trimmed meanwhile, and perhaps another node now?
  if (found == places_.end() || !tree.is_live(node) || tree.end_tokens(node) != found->second.length) return nullptr;
  return &found->second;
}

// The prompt that a state was saved for: with its answer the state reaches beyond it, cut before its end it stays short of it.
const StateValues::Place* StateValues::prompt_near(const PrefixTree& tree, NodeId leaf) const {
  const Place* best = nullptr;
  NodeId node = leaf;
  for (int step = 0; step < most_steps && node != PrefixTree::kRoot && best == nullptr; ++step, node = tree.parent(node)) {
    const Place* place = at(tree, node);
    if (place != nullptr && place->visits == 0) best = place;
  }
  node = leaf;
  for (int step = 0; step < most_steps && tree.children(node) > 0 && tree.children(node) <= most_children; ++step) {
    node = tree.latest_child(node, PrefixTree::kNone);
    const Place* place = at(tree, node);
    if (place == nullptr || place->visits > 0) continue;
    if (best == nullptr || place->seen_s > best->seen_s) best = place;
    break;
  }
  return best;
}

// The known prompt that shares the most with a new one: on its path, or just beyond the place where it left.
NodeId StateValues::predecessor(const PrefixTree& tree, const PrefixTree::InsertResult& inserted, std::uint32_t length) const {
  const std::uint32_t shared = inserted.matched_tokens;
  if (inserted.branch != PrefixTree::kNone) {
    NodeId node = inserted.branch;
    for (int step = 0; step < most_steps; ++step) {
      if (tree.children(node) > most_children) break;
      node = tree.latest_child(node, inserted.leaf);
      if (node == PrefixTree::kNone) break;
      const Place* place = at(tree, node);
      if (place == nullptr || place->visits > 0) continue;
      if (std::uint64_t{shared} * good_part >= place->length) return node;
      break;
    }
  }
  NodeId node = inserted.leaf;
  if (tree.end_tokens(node) > shared || shared < length) node = tree.parent(node);
  for (int step = 0; step < most_steps && node != PrefixTree::kRoot && node != PrefixTree::kNone; ++step, node = tree.parent(node)) {
    const Place* place = at(tree, node);
    if (place != nullptr && place->watch != ReturnTimes::none && place->visits == 0) return node;
  }
  return PrefixTree::kNone;
}

std::optional<std::uint32_t> StateValues::observe(const PrefixTree& tree, const PrefixTree::InsertResult& inserted,
                                                  std::uint32_t length, double now_s, std::uint32_t tokens_a_unit) {
  std::optional<std::uint32_t> left_before_end;
  if (length == 0) return left_before_end;
  if (places_.size() >= forget_at_) forget_some(tree);
  Place fresh;
  fresh.traits.prompt_tokens = length * tokens_a_unit;
  fresh.traits.fresh_tokens = (length - std::min(length, inserted.matched_tokens)) * tokens_a_unit;
  const NodeId before = predecessor(tree, inserted, length);
  if (before != PrefixTree::kNone) {
    Place& earlier = places_.at(before);
    returns_.returned(earlier.watch, now_s);
    fresh.traits.turn = earlier.traits.turn + 1;
    fresh.traits.gap_s = now_s - earlier.seen_s;
    fresh.traits.mean_gap_s = (earlier.traits.mean_gap_s * earlier.traits.turn + fresh.traits.gap_s) / fresh.traits.turn;
    const std::uint32_t shared = std::min(inserted.matched_tokens, earlier.length);
    fresh.traits.last_answer_tokens = earlier.traits.answer_tokens;
    fresh.traits.kept = static_cast<double>(shared) / earlier.length;
    left_before_end = earlier.length - shared;
    if (before != inserted.leaf) {
      earlier.next = inserted.leaf;
      earlier.left_at = inserted.matched_tokens;
    }
  }
  // A place where prompts part that did not go on from one another.
  if (inserted.branch != PrefixTree::kNone && (before == PrefixTree::kNone || !inserted.branch_is_new)) {
    const bool known = at(tree, inserted.branch) != nullptr;
    Place& parting = places_[inserted.branch];
    if (!known) parting = Place{.length = inserted.matched_tokens, .visits = 1};
    if (parting.visits > 0) {
      returns_.returned(parting.watch, now_s);
      parting.of = ReturnTimes::kind_of_branch(parting.visits++);
      parting.seen_s = now_s;
      parting.watch = returns_.begin(parting.of, now_s);
    }
  }
  fresh.of = ReturnTimes::kind_of(fresh.traits);
  fresh.seen_s = now_s;
  fresh.length = length;
  fresh.watch = returns_.begin(fresh.of, now_s);
  places_[inserted.leaf] = fresh;
  return left_before_end;
}

void StateValues::answered(NodeId leaf, std::uint32_t answer_tokens) {
  const auto found = places_.find(leaf);
  if (found == places_.end() || found->second.visits > 0) return;
  found->second.traits.answer_tokens = answer_tokens;
  found->second.of = ReturnTimes::kind_of(found->second.traits);
  returns_.reclassify(found->second.watch, found->second.of);
}

StateWorth StateValues::worth(const PrefixTree& tree, NodeId leaf, std::span<const std::uint32_t> positions, std::uint32_t mark,
                              MemoryKind kind, std::uint64_t uses, double last_used_s, double now_s) const {
  StateWorth worth;
  if (positions.empty() || !tree.is_live(leaf)) return worth;
  const std::uint32_t end = positions.back();

  // What others offer on this path without it: a resume point, or, where states can be cut, whatever they share.
  std::uint32_t offered = 0;
  const PrefixTree::MarkVisitor foreign = [&](const PrefixTree::Mark& other) {
    if (other.mark == mark) return true;
    offered = other.position_tokens;
    return false;
  };
  tree.for_each_mark_on_path(PrefixTree::Match{end, leaf}, foreign);
  if (kind == MemoryKind::truncatable) {
    for (NodeId node = leaf; node != PrefixTree::kRoot && tree.end_tokens(node) > offered; node = tree.parent(node)) {
      const auto own = positions.end() - std::upper_bound(positions.begin(), positions.end(), tree.begin_tokens(node));
      if (tree.marks_in_subtree(node) <= static_cast<std::uint32_t>(own)) continue;
      offered = std::max(offered, std::min(tree.end_tokens(node), end));
      break;
    }
  }

  const auto add = [&](std::uint32_t until, const ReturnTimes::Kind& kind_of_place, double age_s) {
    if (until <= offered) return;
    worth.tokens_per_s += (until - offered) * returns_.rate(kind_of_place, age_s);
    worth.lasts_s = std::min(worth.lasts_s, ReturnTimes::rate_lasts_s(age_s));
  };
  // The prompt that it was saved for, or the one that went on from there since.
  const Place* place = prompt_near(tree, leaf);
  std::uint32_t shared = end;
  if (place == nullptr) {
    // Known from the index alone.
    add(end, ReturnTimes::kind_of_saved(uses, end), now_s - last_used_s);
  } else {
    for (int step = 0; step < most_steps && place->next != PrefixTree::kNone; ++step) {
      const Place* next = at(tree, place->next);
      if (next == nullptr) break;
      shared = std::min(shared, place->left_at);
      place = next;
    }
    add(shared, place->of, now_s - place->seen_s);
  }
  // Others that leave the path inside what only this state holds.
  int steps = 0;
  for (NodeId node = leaf; node != PrefixTree::kRoot && tree.end_tokens(node) > offered && steps < most_steps; node = tree.parent(node), ++steps) {
    const Place* parting = at(tree, node);
    if (parting == nullptr || parting->visits == 0 || node == leaf) continue;
    worth.branched_from = worth.branched_from || parting->visits > 1;
    add(std::min(parting->length, end), parting->of, now_s - parting->seen_s);
  }
  return worth;
}

// The tree has trimmed what was unused longest; its places go with it.
void StateValues::forget_some(const PrefixTree& tree) {
  std::erase_if(places_, [&](const auto& entry) { return at(tree, entry.first) == nullptr; });
  forget_at_ = std::max<std::size_t>(1 << 16, places_.size() * 2);
}

}  // namespace cairn

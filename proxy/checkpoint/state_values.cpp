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

StateWorth Prospects::at(double now_s) const {
  StateWorth worth{.branched_from = branched_from_};
  for (const Part& part : parts_) {
    const double age_s = now_s - part.seen_s;
    worth.tokens_per_s += part.tokens * part.curve.rate(age_s);
    worth.lasts_s = std::min(worth.lasts_s, ReturnTimes::rate_lasts_s(age_s));
  }
  return worth;
}

const StateValues::Place* StateValues::at(const PrefixTree& tree, NodeId node) const {
  if (node >= places_.size() || !tree.is_live(node)) return nullptr;
  const Place& place = places_[node];
  // Trimmed meanwhile, and another node now?
  return place.length > 0 && tree.end_tokens(node) == place.length ? &place : nullptr;
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
  const std::size_t nodes = std::size_t{std::max(inserted.leaf, inserted.branch == PrefixTree::kNone ? 0 : inserted.branch)} + 1;
  if (nodes > places_.size()) {
    places_.resize(nodes);
    traits_.resize(nodes);
  }
  PromptTraits traits;
  traits.prompt_tokens = length * tokens_a_unit;
  traits.fresh_tokens = (length - std::min(length, inserted.matched_tokens)) * tokens_a_unit;
  const NodeId before = predecessor(tree, inserted, length);
  if (before != PrefixTree::kNone) {
    Place& earlier = places_[before];
    const PromptTraits& earlier_traits = traits_[before];
    returns_.returned(earlier.watch, now_s);
    traits.turn = earlier_traits.turn + 1;
    traits.gap_s = now_s - earlier.seen_s;
    traits.mean_gap_s = (earlier_traits.mean_gap_s * earlier_traits.turn + traits.gap_s) / traits.turn;
    const std::uint32_t shared = std::min(inserted.matched_tokens, earlier.length);
    traits.last_answer_tokens = earlier_traits.answer_tokens;
    traits.kept = static_cast<double>(shared) / earlier.length;
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
  Place& fresh = places_[inserted.leaf];
  fresh = Place{.length = length, .seen_s = now_s, .of = ReturnTimes::kind_of(traits)};
  fresh.watch = returns_.begin(fresh.of, now_s);
  traits_[inserted.leaf] = traits;
  return left_before_end;
}

void StateValues::answered(NodeId leaf, std::uint32_t answer_tokens) {
  if (leaf >= places_.size() || places_[leaf].length == 0 || places_[leaf].visits > 0) return;
  traits_[leaf].answer_tokens = answer_tokens;
  places_[leaf].of = ReturnTimes::kind_of(traits_[leaf]);
  returns_.reclassify(places_[leaf].watch, places_[leaf].of);
}

// What others offer on this path without it: a resume point, or, where states can be cut, whatever they share.
std::uint32_t StateValues::offered_by_others(const PrefixTree& tree, const State& state) {
  const std::uint32_t end = state.positions.back();
  if (state.kind == MemoryKind::truncatable) {
    for (NodeId node = state.leaf; node != PrefixTree::kRoot; node = tree.parent(node)) {
      const auto own = state.positions.end() - std::upper_bound(state.positions.begin(), state.positions.end(), tree.begin_tokens(node));
      if (tree.marks_in_subtree(node) > static_cast<std::uint32_t>(own)) return std::min(tree.end_tokens(node), end);
    }
    return 0;
  }
  std::uint32_t offered = 0;
  const PrefixTree::MarkVisitor foreign = [&](const PrefixTree::Mark& other) {
    if (other.mark == state.mark) return true;
    offered = other.position_tokens;
    return false;
  };
  tree.for_each_mark_on_path(PrefixTree::Match{end, state.leaf}, foreign);
  return offered;
}

template <class Part>
bool StateValues::for_each_part(const PrefixTree& tree, const State& state, Part part) const {
  if (state.positions.empty() || !tree.is_live(state.leaf)) return false;
  const std::uint32_t end = state.positions.back();
  const std::uint32_t offered = offered_by_others(tree, state);
  if (offered >= end) return false;
  const auto add = [&](std::uint32_t until, const ReturnTimes::Kind& kind, double seen_s) {
    if (until > offered) part(until - offered, kind, seen_s);
  };
  // The prompt that it was saved for, or the one that went on from there since.
  const Place* place = prompt_near(tree, state.leaf);
  if (place == nullptr) {
    // Known from the index alone.
    add(end, ReturnTimes::kind_of_saved(state.uses, end), state.last_used_s);
  } else {
    std::uint32_t shared = end;
    for (int step = 0; step < most_steps && place->next != PrefixTree::kNone; ++step) {
      const Place* next = at(tree, place->next);
      if (next == nullptr) break;
      shared = std::min(shared, place->left_at);
      place = next;
    }
    add(shared, place->of, place->seen_s);
  }
  // Others that leave the path inside what only this state holds.
  bool branched_from = false;
  NodeId node = tree.parent(state.leaf);
  for (int step = 1; step < most_steps && node != PrefixTree::kRoot && tree.end_tokens(node) > offered; ++step, node = tree.parent(node)) {
    const Place* parting = at(tree, node);
    if (parting == nullptr || parting->visits == 0) continue;
    branched_from = branched_from || parting->visits > 1;
    add(std::min(parting->length, end), parting->of, parting->seen_s);
  }
  return branched_from;
}

StateWorth StateValues::worth(const PrefixTree& tree, const State& state, double now_s) const {
  StateWorth worth;
  worth.branched_from = for_each_part(tree, state, [&](std::uint32_t tokens, const ReturnTimes::Kind& kind, double seen_s) {
    worth.tokens_per_s += tokens * returns_.rate(kind, now_s - seen_s);
    worth.lasts_s = std::min(worth.lasts_s, ReturnTimes::rate_lasts_s(now_s - seen_s));
  });
  return worth;
}

void StateValues::look_ahead(const PrefixTree& tree, const State& state, Prospects& prospects) const {
  prospects.parts_.clear();
  prospects.branched_from_ = for_each_part(tree, state, [&](std::uint32_t tokens, const ReturnTimes::Kind& kind, double seen_s) {
    prospects.parts_.push_back({tokens, seen_s, returns_.curve(kind)});
  });
}

}  // namespace cairn

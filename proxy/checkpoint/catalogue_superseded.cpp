// Which saved states a new one makes useless: those that it goes on from, and those that end in an answer which did not come back.
#include <algorithm>
#include <unordered_set>
#include <utility>
#include <vector>

#include "checkpoint/catalogue.hpp"

namespace cairn {

namespace {

bool offers(const CheckpointRecord& record, std::uint32_t position) {
  return position == record.token_count || std::binary_search(record.resume_positions.begin(), record.resume_positions.end(), position);
}

bool ends_with(TokenSpan tokens, TokenSpan end) {
  return tokens.size() >= end.size() && std::equal(end.begin(), end.end(), tokens.end() - static_cast<std::ptrdiff_t>(end.size()));
}
}  // namespace

std::vector<CheckpointId> Catalogue::add(CheckpointId id, TokenSpan tokens, std::int64_t now_ms) {
  std::vector<CheckpointId> useless;
  const CheckpointRecord* record = store_.find(id);
  if (record == nullptr) return useless;
  attach(*record, tokens, now_ms);

  const PrefixTree& tree = *trees_.at(record->namespace_id);
  const PrefixTree::Match match = tree.match(tokens);
  std::vector<CheckpointId> ancestors;
  const PrefixTree::MarkVisitor collect = [&](const PrefixTree::Mark& mark) {
    if (mark.kind == MarkKind::end && id_of(mark.mark) != id) ancestors.push_back(id_of(mark.mark));
    return true;
  };
  tree.for_each_mark_on_path(match, collect);
  const auto is_offered = [&](std::uint32_t position) { return offers(*record, position); };
  for (const CheckpointId other_id : ancestors) {
    const CheckpointRecord* other = store_.find(other_id);
    if (other == nullptr || other->pinned || other->kind != record->kind) continue;
    bool replaced = false;
    if (other->token_count == record->token_count) {
      // The same tokens saved again: the newer one has what the older one had, or the slot was computed anew.
      replaced = other->resume_positions.size() <= record->resume_positions.size();
    } else if (record->kind == CheckpointKind::truncatable) {
      replaced = true;
    } else if (record->kind == CheckpointKind::checkpointed) {
      replaced = std::all_of(other->resume_positions.begin(), other->resume_positions.end(), is_offered) &&
                 // Its end: replaced when a resume point lies close before it, or it was only an answer's end.
                 (is_offered(other->token_count) || !other->resume_positions.empty());
    }
    if (replaced) useless.push_back(other_id);
  }
  add_those_with_answers_left(*record, useless);
  return useless;
}

// Clients and templates drop or rewrite what was answered (its reasoning, say): the next turn's state leaves the one before it behind its
// prompt, and what that one has beyond is of use to nobody. All that is asked here is whether it is that one's own answer.
void Catalogue::add_those_with_answers_left(const CheckpointRecord& record, std::vector<CheckpointId>& useless) const {
  const auto recent = recent_.find(record.namespace_id);
  if (recent == recent_.end() || (record.kind != CheckpointKind::truncatable && record.kind != CheckpointKind::checkpointed)) return;
  const PrefixTree& tree = *trees_.at(record.namespace_id);
  const std::vector<NodeId> nodes = tree.path_to(places_.at(record.id).leaf);
  const std::unordered_set<NodeId> path(nodes.begin(), nodes.end());
  const auto shared_by = [&](NodeId node) {
    while (node != PrefixTree::kRoot && !path.contains(node)) node = tree.parent(node);
    return node == PrefixTree::kRoot ? 0 : tree.end_tokens(node);
  };
  std::vector<const Recent::Prompt*> prompts;  // newest first
  for (const Recent::Prompt& prompt : recent->second.prompts) {
    if (tree.is_live(prompt.leaf) && tree.end_tokens(prompt.leaf) == prompt.tokens) prompts.push_back(&prompt);
  }
  // Where the next turn leaves a prompt before its end, what is left out is a part of what opens the answer. So end most prompts, whatever
  // they ask: another question after the same system prompt, or about the same document, is no next turn.
  const auto is_opening = [&](TokenSpan tokens) {
    constexpr std::size_t least = 3;
    const auto alike = std::ranges::count_if(prompts, [&](const Recent::Prompt* one) { return ends_with(one->ending, tokens); });
    return static_cast<std::size_t>(alike) >= std::max(least, prompts.size() / 2 + 1);
  };

  for (auto at = prompts.begin(); at != prompts.end(); ++at) {
    const Recent::Prompt& asked = **at;
    // Of several answers it is not known which one was left.
    if (std::ranges::count(prompts, asked.leaf, &Recent::Prompt::leaf) > 1) continue;
    const std::uint32_t shared = shared_by(asked.leaf);
    const std::uint32_t left_out = asked.tokens - shared;
    if (left_out >= Recent::Prompt::kept_ending) continue;
    // The prompt that went on from it.
    std::uint32_t next = 0;
    for (auto later = prompts.begin(); later != at; ++later) {
      if (path.contains((*later)->leaf)) next = std::max(next, (*later)->tokens);
    }
    if (next <= asked.tokens) continue;
    // With a token that both have: who speaks next.
    const std::size_t unlike = std::min<std::size_t>(left_out + 1, asked.ending.size());
    if (left_out > 0 && !is_opening(TokenSpan(asked.ending).last(unlike))) continue;
    const PrefixTree::MarkVisitor judge = [&](const PrefixTree::Mark& mark) {
      if (mark.position_tokens < asked.tokens) return false;
      const CheckpointRecord* other = mark.kind == MarkKind::end ? store_.find(id_of(mark.mark)) : nullptr;
      const auto place = other == nullptr ? places_.end() : places_.find(other->id);
      if (place == places_.end() || other->pinned || other->kind != record.kind) return true;
      const NodeId leaf = place->second.leaf;
      const std::uint32_t parted = shared_by(leaf);
      if (parted >= other->token_count || parted >= next || parted >= asked.tokens + Recent::Prompt::kept_ending) return true;
      // Whatever was asked or saved since the prompt came has left its mark in the tree: from what ends in one piece, with nothing
      // below, nobody went on, nor did anybody come back to it. What is older may be a whole conversation.
      const bool is_answer = other->created_unix_ms >= asked.at_ms && tree.children(leaf) == 0 &&
                             (leaf == asked.leaf || tree.begin_tokens(leaf) <= std::max(parted, asked.tokens));
      const bool all_offered = record.kind == CheckpointKind::truncatable || std::ranges::all_of(other->resume_positions, [&](std::uint32_t position) {
        return position > parted || offers(record, position);
      });
      if (is_answer && all_offered && std::ranges::find(useless, other->id) == useless.end()) useless.push_back(other->id);
      return true;
    };
    constexpr std::size_t most_nodes = 256;
    const PrefixTree::Match prompt_end{asked.tokens, asked.leaf};
    tree.for_each_mark_on_path(prompt_end, judge);
    tree.for_each_mark_below(prompt_end, judge, most_nodes);
  }
}

}  // namespace cairn

// PrefixTree: pins, the recency list, trimming and compaction.
//
// The recency list holds every node that may be removed, the least recently inserted first; a node stands before its
// parent. Protected nodes may be off it: trim() drops them when it meets them, offer() puts them back.
#include "prefix/prefix_tree.hpp"

namespace cairn {

namespace {

// Joining two edges that do not lie side by side copies both; longer ones are not worth a node's 72 bytes.
constexpr std::uint32_t kMaxCopiedTokens = 4096;

}  // namespace

bool PrefixTree::pin(NodeId node) {
  if (!is_live(node)) return false;
  ++pins_[node];  // ancestors are safe already: only leaves go, and only pinless nodes are joined
  return true;
}

bool PrefixTree::unpin(NodeId node) {
  if (!is_live(node) || !is_pinned(node)) return false;
  if (--pins_.at(node) == 0) pins_.erase(node);
  offer(node);
  return true;
}

std::uint64_t PrefixTree::trim(std::uint64_t max_edge_tokens) {
  const std::uint64_t before = edge_tokens_held();
  while (edge_tokens_held() > max_edge_tokens && oldest_ != kNone) {
    const NodeId id = oldest_;
    if (is_removable(id)) {
      remove_leaf(id);
    } else {
      unlist(id);
    }
  }
  compact_if_worth_it();
  return before - edge_tokens_held();
}

bool PrefixTree::is_removable(NodeId id) const {
  const Node& node = at(id);
  return id != kRoot && node.child_count == 0 && node.subtree_marks == 0 && !is_pinned(id);
}

void PrefixTree::offer(NodeId id) {
  if (is_removable(id) && !is_listed(id)) list_oldest(id);
}

void PrefixTree::remove_leaf(NodeId id) {
  const NodeId parent = at(id).parent;
  children_.remove(hash_of(id), id);
  unlink_child(id);
  arena_.release(at(id).edge_offset, at(id).edge_length);
  unlist(id);
  at(id).parent = kFree;
  nodes_.give(id);
  --node_count_;
  if (at(parent).child_count == 1) {
    merge_into_only_child(parent);
  } else {
    offer(parent);
  }
}

// A later last use of the upper node is its own prompt's: joining the two would let it go with the older child.
void PrefixTree::merge_into_only_child(NodeId id) {
  const Node& upper = at(id);
  if (id == kRoot || upper.first_mark != kNone || is_pinned(id)) return;
  const NodeId child = upper.first_child;
  Node& lower = at(child);
  if (lower.last_use_ms != upper.last_use_ms) return;

  const std::uint32_t length = upper.edge_length + lower.edge_length;
  const bool side_by_side = std::uint64_t{upper.edge_offset} + upper.edge_length == lower.edge_offset;
  if (!side_by_side && length > kMaxCopiedTokens) return;

  TokenArena::Offset offset = upper.edge_offset;
  if (!side_by_side) {
    Tokens joined(length);
    arena_.read(upper.edge_offset, upper.edge_length, joined.data());
    arena_.read(lower.edge_offset, lower.edge_length, joined.data() + upper.edge_length);
    offset = arena_.allocate(joined);
  }
  const std::uint32_t upper_hash = hash_of(id);
  children_.remove(hash_of(child), child);
  children_.replace(upper_hash, id, child);
  if (!side_by_side) {
    arena_.release(upper.edge_offset, upper.edge_length);
    arena_.release(lower.edge_offset, lower.edge_length);
  }
  lower.edge_offset = offset;
  lower.edge_length = length;
  lower.begin = upper.begin;
  lower.parent = upper.parent;
  replace_child(id, child);
  if (is_listed(id)) unlist(id);
  at(id).parent = kFree;
  nodes_.give(id);
  --node_count_;
}

// Moves the edges that touch half-empty blocks to new ones, which empties the old. O(nodes) plus what is moved, and a
// quarter of all tokens has gone since the last time: amortised, a few operations a removed token.
void PrefixTree::compact_if_worth_it() {
  children_.shrink();
  const std::uint64_t unused = arena_.capacity_tokens() - arena_.live_tokens();
  if (unused <= arena_.live_tokens() / 4 + 4 * std::uint64_t{arena_.block_tokens()}) return;
  arena_.start_fresh_block();
  for (NodeId id = 1; id < nodes_.used; ++id) {
    Node& node = at(id);
    if (node.parent == kFree || !arena_.is_sparse(node.edge_offset, node.edge_length)) continue;
    const TokenArena::Offset moved = arena_.copy(node.edge_offset, node.edge_length);
    arena_.release(node.edge_offset, node.edge_length);
    node.edge_offset = moved;
  }
}

void PrefixTree::list_newest(NodeId id) {
  at(id).older = newest_;
  at(id).newer = kNone;
  (newest_ == kNone ? oldest_ : at(newest_).newer) = id;
  newest_ = id;
}

void PrefixTree::list_oldest(NodeId id) {
  at(id).older = kNone;
  at(id).newer = oldest_;
  (oldest_ == kNone ? newest_ : at(oldest_).older) = id;
  oldest_ = id;
}

void PrefixTree::unlist(NodeId id) {
  Node& node = at(id);
  (node.older == kNone ? oldest_ : at(node.older).newer) = node.newer;
  (node.newer == kNone ? newest_ : at(node.newer).older) = node.older;
  node.older = node.newer = id;
}

}  // namespace cairn

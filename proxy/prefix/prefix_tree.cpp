#include "prefix/prefix_tree.hpp"

#include <algorithm>
#include <array>
#include <limits>
#include <stdexcept>

namespace cairn {

namespace {
constexpr std::size_t kHopsAhead = 16;  // a node's record is asked for so long before it is needed
constexpr std::size_t kHopsApart = 8;   // and its tokens so long after that, when the record is there
}  // namespace

// On the way down a long path cache misses are the cost: fetches what lies some hops ahead, where the last insert went. Hints
// only: a path that turns elsewhere pays for its misses.
class PrefixTree::Lookahead {
 public:
  explicit Lookahead(const PrefixTree& tree) : tree_(tree) { coming_.fill(kNone); }
  void arrive_at(NodeId id) {
    const NodeId ahead = tree_.at(id).ahead;
    if (ahead != kNone) __builtin_prefetch(&tree_.at(ahead));
    coming_[hops_ % kHopsAhead] = ahead;
    const NodeId fetched = coming_[(hops_ + kHopsAhead - kHopsApart) % kHopsAhead];
    if (fetched != kNone) tree_.arena_.prefetch<7>(tree_.at(fetched).edge_offset);
    ++hops_;
  }
  // What the path may go on with; any id, or kNone.
  NodeId guess() const { return coming_[hops_ % kHopsAhead]; }

 private:
  const PrefixTree& tree_;
  std::array<NodeId, kHopsAhead> coming_;
  std::size_t hops_ = 0;
};

PrefixTree::PrefixTree(Options options) : arena_(options.arena_block_log2) {
  new_node(kNone, 0);
}

PrefixTree::InsertResult PrefixTree::insert(TokenSpan tokens, std::int64_t now_ms) {
  if (tokens.size() > std::numeric_limits<std::uint32_t>::max()) {
    throw std::length_error("prefix tree: a sequence of more than 2^32 tokens");
  }
  InsertResult result;
  NodeId node = kRoot;
  std::size_t depth = 0;
  Lookahead lookahead(*this);
  while (depth < tokens.size()) {
    const NodeId child = find_child(node, tokens[depth], lookahead.guess());
    if (child == kNone) break;
    lookahead.arrive_at(child);
    const std::uint32_t length = at(child).edge_length;
    const std::uint32_t common = common_with_edge(child, tokens.subspan(depth));
    depth += common;
    node = common == length ? child : split(child, static_cast<std::uint32_t>(depth));
    if (common < length) break;
  }
  result.matched_tokens = static_cast<std::uint32_t>(depth);
  if (depth < tokens.size()) {
    if (node != kRoot && at(node).child_count > 0) {
      result.branch = node;
      result.branch_is_new = at(node).child_count == 1;
    }
    const TokenSpan rest = tokens.subspan(depth);
    const TokenArena::Offset offset = arena_.allocate(rest);
    const NodeId leaf = new_node(node, static_cast<std::uint32_t>(depth));
    at(leaf).edge_offset = offset;
    at(leaf).edge_length = static_cast<std::uint32_t>(rest.size());
    children_.add(hash_of(leaf), leaf);
    link_child(leaf);
    node = leaf;
  }
  touch_path(node, now_ms);
  result.leaf = node;
  return result;
}

// Each step needs what the one before has fetched: the table's slot, then the node, then its tokens and neighbours.
void PrefixTree::announce(TokenSpan tokens) {
  if (tokens.empty() || children_.size() == 0) return;
  constexpr std::size_t apart = kAnnouncedAhead / 3;
  const auto child = [&](std::size_t announced_before) {
    const std::uint32_t hash = announced_[(announcements_ - announced_before) % kAnnouncedAhead];
    return children_.find(hash, [](NodeId) { return true; });
  };
  const std::uint32_t hash = ChildTable::hash(kRoot, tokens.front());
  announced_[++announcements_ % kAnnouncedAhead] = hash;
  children_.prefetch(hash);
  if (const NodeId near = child(apart); near != kNone) __builtin_prefetch(&at(near));
  if (const NodeId next = child(2 * apart); next != kNone) {
    const Node& node = at(next);
    arena_.prefetch<1>(node.edge_offset);
    for (const NodeId neighbour : {node.previous_sibling, node.next_sibling, node.older, node.newer}) {
      if (neighbour < nodes_.used) __builtin_prefetch(&at(neighbour));
    }
  }
}

PrefixTree::Match PrefixTree::match(TokenSpan tokens) const {
  Match match;
  std::size_t depth = 0;
  Lookahead lookahead(*this);
  while (depth < tokens.size()) {
    const NodeId child = find_child(match.node, tokens[depth], lookahead.guess());
    if (child == kNone) break;
    lookahead.arrive_at(child);
    const std::uint32_t length = at(child).edge_length;
    const std::uint32_t common = common_with_edge(child, tokens.subspan(depth));
    depth += common;
    match.node = child;
    if (common < length) break;
  }
  match.matched_tokens = static_cast<std::uint32_t>(depth);
  return match;
}

std::vector<NodeId> PrefixTree::path_to(NodeId node) const {
  std::vector<NodeId> path;
  for (; node != kRoot; node = at(node).parent) path.push_back(node);
  std::reverse(path.begin(), path.end());
  return path;
}

Tokens PrefixTree::edge_tokens(NodeId node) const {
  Tokens tokens(at(node).edge_length);
  arena_.read(at(node).edge_offset, at(node).edge_length, tokens.data());
  return tokens;
}

NodeId PrefixTree::latest_child(NodeId node, NodeId except) const {
  NodeId latest = kNone;
  for (NodeId id = at(node).first_child; id != kNone; id = at(id).next_sibling) {
    if (id == except) continue;
    const bool later = latest == kNone || at(id).last_use_ms > at(latest).last_use_ms;
    if (later || (at(id).last_use_ms == at(latest).last_use_ms && id < latest)) latest = id;
  }
  return latest;
}

Tokens PrefixTree::latest_continuation(NodeId node, Token except, std::size_t count) const {
  const NodeId latest = latest_child(node, find_child(node, except));
  if (latest == kNone) return {};
  Tokens tokens(std::min<std::size_t>(at(latest).edge_length, count));
  arena_.read(at(latest).edge_offset, static_cast<std::uint32_t>(tokens.size()), tokens.data());
  return tokens;
}

Tokens PrefixTree::tokens_to(NodeId node) const { return tokens_to(node, end_tokens(node)); }

Tokens PrefixTree::tokens_to(NodeId node, std::uint32_t end) const {
  Tokens tokens(std::min(end, end_tokens(node)));
  for (; node != kRoot; node = at(node).parent) {
    const Node& edge = at(node);
    if (edge.begin >= tokens.size()) continue;
    const auto wanted = static_cast<std::uint32_t>(std::min<std::size_t>(edge.edge_length, tokens.size() - edge.begin));
    arena_.read(edge.edge_offset, wanted, tokens.data() + edge.begin);
  }
  return tokens;
}

std::uint64_t PrefixTree::bytes_held() const {
  return sizeof(*this) + arena_.bytes() + nodes_.bytes() + marks_.bytes() + children_.bytes();
}

NodeId PrefixTree::find_child(NodeId parent, Token first, NodeId guess) const {
  // Both were fetched already: by Lookahead, by common_with_edge().
  const NodeId likeliest = at(parent).first_child;
  const auto is_it = [&](NodeId id) { return at(id).parent == parent && first_token(at(id)) == first; };
  if (guess != kNone && is_it(guess)) return guess;
  if (likeliest == kNone || first_token(at(likeliest)) == first) return likeliest;
  return children_.find(ChildTable::hash(parent, first), is_it);
}

// Compares the edge with what is left of a sequence. What comes next if all of the edge fits is fetched meanwhile: the
// likeliest child (the one split off, which stays first, and whose tokens follow in the arena) and, where no hint leads on, the
// table's slot: on every hop of a long path those misses would cost as much as all the rest.
std::uint32_t PrefixTree::common_with_edge(NodeId id, TokenSpan rest) const {
  const Node& node = at(id);
  if (node.edge_length < rest.size() && node.child_count > 0) {
    if (node.ahead == kNone) children_.prefetch(ChildTable::hash(id, rest[node.edge_length]));
    __builtin_prefetch(&at(node.first_child));
    arena_.prefetch(std::uint64_t{node.edge_offset} + node.edge_length);
  }
  return arena_.common_prefix(node.edge_offset, node.edge_length, rest);
}

NodeId PrefixTree::new_node(NodeId parent, std::uint32_t begin) {
  const NodeId id = nodes_.take();
  at(id) = Node{.edge_offset = 0,
                .edge_length = 0,
                .begin = begin,
                .parent = parent,
                .first_child = kNone,
                .next_sibling = kNone,
                .previous_sibling = id,
                .child_count = 0,
                .last_use_ms = 0,
                .visits = 0,
                .ahead = kNone,
                .first_mark = kNone,
                .subtree_marks = 0,
                .older = id,
                .newer = id};
  ++node_count_;
  return id;
}

// Cuts the edge of `id` at `depth` (inside it) and returns the new upper node. It is not on the recency list yet:
// insert() touches it next.
NodeId PrefixTree::split(NodeId id, std::uint32_t depth) {
  const NodeId upper = new_node(at(id).parent, at(id).begin);
  Node& high = at(upper);
  Node& low = at(id);
  const std::uint32_t high_length = depth - low.begin;

  high.edge_offset = low.edge_offset;
  high.edge_length = high_length;
  high.last_use_ms = low.last_use_ms;
  high.visits = low.visits;
  high.ahead = low.ahead;
  high.subtree_marks = low.subtree_marks;
  replace_child(id, upper);
  children_.replace(hash_of(upper), id, upper);

  low.edge_offset += high_length;
  low.edge_length -= high_length;
  low.begin = depth;
  low.parent = upper;
  std::uint32_t* link = &low.first_mark;
  while (*link != kNone && marks_[*link].position > depth) link = &marks_[*link].next;
  high.first_mark = *link;
  *link = kNone;
  for (std::uint32_t m = high.first_mark; m != kNone; m = marks_[m].next) --low.subtree_marks;
  children_.add(hash_of(id), id);
  link_child(id);
  offer(id);  // its protecting marks may all have gone up
  return upper;
}

// From the leaf up, so that on the recency list every node stands before its parent.
void PrefixTree::touch_path(NodeId leaf, std::int64_t now_ms) {
  std::array<NodeId, kHopsAhead> below;
  std::size_t hops = 0;
  for (NodeId id = leaf;; id = at(id).parent) {
    Node& node = at(id);
    ++node.visits;
    node.last_use_ms = now_ms;
    if (hops >= kHopsAhead) node.ahead = below[hops % kHopsAhead];
    below[hops++ % kHopsAhead] = id;
    if (id == kRoot) return;
    if (is_listed(id)) unlist(id);
    list_newest(id);
  }
}

void PrefixTree::link_child(NodeId child) {
  Node& node = at(child);
  Node& parent = at(node.parent);
  const NodeId first = parent.first_child;
  ++parent.child_count;
  node.next_sibling = kNone;
  node.previous_sibling = child;
  if (first == kNone) {
    parent.first_child = child;
    return;
  }
  node.previous_sibling = at(first).previous_sibling;
  at(first).previous_sibling = child;
  if (node.subtree_marks > 0) {
    node.next_sibling = first;
    parent.first_child = child;
  } else {
    at(node.previous_sibling).next_sibling = child;
  }
}

void PrefixTree::unlink_child(NodeId child) {
  const Node& node = at(child);
  Node& parent = at(node.parent);
  --parent.child_count;
  if (parent.first_child == child) {
    parent.first_child = node.next_sibling;
  } else {
    at(node.previous_sibling).next_sibling = node.next_sibling;
  }
  const NodeId after = node.next_sibling != kNone ? node.next_sibling : parent.first_child;
  if (after != kNone) at(after).previous_sibling = node.previous_sibling;
}

// new_child stands where old_child stood in the same parent's list.
void PrefixTree::replace_child(NodeId old_child, NodeId new_child) {
  const Node& old_node = at(old_child);
  Node& fresh = at(new_child);
  Node& parent = at(old_node.parent);
  fresh.next_sibling = old_node.next_sibling;
  fresh.previous_sibling = old_node.previous_sibling == old_child ? new_child : old_node.previous_sibling;
  if (parent.first_child == old_child) {
    parent.first_child = new_child;
  } else {
    at(old_node.previous_sibling).next_sibling = new_child;
  }
  at(old_node.next_sibling != kNone ? old_node.next_sibling : parent.first_child).previous_sibling = new_child;
}

}  // namespace cairn

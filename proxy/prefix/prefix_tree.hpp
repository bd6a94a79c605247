// PrefixTree: a radix tree over token sequences; it knows every prompt seen and which saved states lie on its path.
// Thread: one at a time; const calls may run side by side.
// Errors: insert() throws std::length_error past 2^32 edge tokens; calls given a dead NodeId or an impossible position
//         return false, 0 or kNone. Nothing here recurses: a path may be a million nodes deep.
//
// A node stands for the edge that leads to it: tokens (begin, end] of every sequence through it, counted from 1.
// NodeIds are plain indexes without generations. An id stays valid until its node is removed, and only trim() removes;
// it never removes (or merges away) a node that holds a mark or a pin. So whoever keeps an id across a trim() pins the
// node or has a mark at the node's end; a mark at the end of a node stays with that very id through every split.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/populated_memory.hpp"
#include "prefix/child_table.hpp"
#include "prefix/token_arena.hpp"
#include "prefix/tokens.hpp"

namespace cairn {

using NodeId = std::uint32_t;

class PrefixTree {
 public:
  static constexpr NodeId kRoot = 0;
  static constexpr NodeId kNone = 0xffffffff;

  struct Options {
    unsigned arena_block_log2 = 16;  // tests use tiny blocks
  };

  struct InsertResult {
    NodeId leaf = kRoot;               // ends exactly at the sequence's last token; it may have children
    std::uint32_t matched_tokens = 0;  // shared with what was there before
    NodeId branch = kNone;             // ends at matched_tokens, if this insert left a known path there for its own
    bool branch_is_new = false;        // nothing had branched there before (split now, or it had one child)
  };

  struct Match {
    std::uint32_t matched_tokens = 0;
    NodeId node = kRoot;  // begin(node) < matched_tokens <= end(node), or the root when nothing matched
  };

  struct Mark {
    NodeId node = kNone;                // whose edge covers the position
    std::uint32_t position_tokens = 0;  // depth from the root
    std::uint32_t mark = 0;             // the caller's id of a saved state; one state may have marks at many positions
    std::uint32_t kind = 0;             // the caller's
  };

  using MarkVisitor = std::function<bool(const Mark&)>;  // false stops

  PrefixTree() : PrefixTree(Options{}) {}
  explicit PrefixTree(Options options);
  PrefixTree(PrefixTree&&) = default;  // leaves one that may only be assigned to or destroyed
  PrefixTree& operator=(PrefixTree&&) = default;

  // Makes the path exist, counts a visit and sets the last use on all of it. A node is split when the sequence ends or
  // leaves in mid-edge: the lower part keeps its id, the upper gets a new one. "Least recently used" means the order of
  // these calls, not `now_ms`: who loads a saved tree inserts the oldest first.
  InsertResult insert(TokenSpan tokens, std::int64_t now_ms);

  // Says that insert() of these tokens will come, after some others: what it meets at the root is fetched meanwhile. Worth it
  // for who inserts many short sequences, announcing each kAnnouncedAhead before it is inserted.
  static constexpr std::size_t kAnnouncedAhead = 12;
  void announce(TokenSpan tokens);

  // The longest known prefix. Good until the next call that is not const. Does not count as a use.
  Match match(TokenSpan tokens) const;

  // Nodes from the root's child down to `node`; empty for the root.
  std::vector<NodeId> path_to(NodeId node) const;

  // --- what a node is. All but is_live() want a live id.
  bool is_live(NodeId node) const { return node < nodes_.used && at(node).parent != kFree; }
  void prefetch(NodeId node) const { __builtin_prefetch(&at(node)); }  // it will be asked for soon
  std::uint32_t begin_tokens(NodeId node) const { return at(node).begin; }
  std::uint32_t end_tokens(NodeId node) const { return at(node).begin + at(node).edge_length; }
  NodeId parent(NodeId node) const { return at(node).parent; }
  std::uint32_t children(NodeId node) const { return at(node).child_count; }
  std::uint32_t visits(NodeId node) const { return at(node).visits; }
  std::int64_t last_use_ms(NodeId node) const { return at(node).last_use_ms; }
  std::uint32_t pins(NodeId node) const { return is_pinned(node) ? pins_.at(node) : 0; }
  std::uint32_t marks_in_subtree(NodeId node) const { return at(node).subtree_marks; }
  Tokens edge_tokens(NodeId node) const;
  Tokens tokens_to(NodeId node) const;                             // the whole path
  // The child last used other than `except` (of several at once the one with the lowest id, whatever marks there are); kNone
  // when there is none. O(children).
  NodeId latest_child(NodeId node, NodeId except) const;
  // How the child last used goes on that does not begin with `except`: at most `count` tokens of its edge.
  Tokens latest_continuation(NodeId node, Token except, std::size_t count) const;
  Tokens tokens_to(NodeId node, std::uint32_t end_tokens) const;   // cut at a depth <= end of the node

  // --- marks: saved states at exact depths.
  // Puts a mark at 1 <= position <= end of `node`, on the path to it. The same (position, mark) again only sets `kind`.
  // O(depth in nodes + marks on the edge). False: dead node or position off the path.
  bool attach(NodeId node, std::uint32_t position_tokens, std::uint32_t mark, std::uint32_t kind);

  // `node` is the one given to attach() or any below it. False: not there.
  bool detach(NodeId node, std::uint32_t position_tokens, std::uint32_t mark);

  // Marks at positions <= matched_tokens on the matched path, deepest first.
  void for_each_mark_on_path(const Match& match, const MarkVisitor& visit) const;

  // Marks under the end of the match (position > matched_tokens), nearest first. Only nodes with marks in their subtree
  // are looked at, at most `max_nodes` of them (then it ends, perhaps early): with a million states under one system
  // prompt "the nearest" is the nearest of those looked at.
  void for_each_mark_below(const Match& match, const MarkVisitor& visit, std::size_t max_nodes = 4096) const;

  // --- keeping and forgetting.
  // A pin protects the whole path to the node; pins count. False: dead node, or nothing to unpin.
  bool pin(NodeId node);
  bool unpin(NodeId node);

  // Removes least recently used leaves without marks or pins until at most `max_edge_tokens` are held or nothing more
  // may go; joins a node that is left with one child of the same last use, no mark and no pin to that child (whose id
  // stays). A leaf goes as a whole. One that was protected when its turn came is first in line when it is free
  // again. Gives memory back when a quarter of it is unused. Returns the tokens removed.
  std::uint64_t trim(std::uint64_t max_edge_tokens);

  // --- counters.
  std::size_t nodes() const { return node_count_; }  // the root included
  std::uint64_t edge_tokens_held() const { return arena_.live_tokens(); }
  std::size_t marks() const { return mark_count_; }
  std::uint64_t bytes_held() const;  // allocated, whether in use or not

  // For tests: the first broken invariant in words, empty when all hold. O(tree).
  std::string check_invariants() const;

 private:
  static constexpr NodeId kFree = 0xfffffffe;  // parent of a node that is not in use
  static constexpr unsigned kPoolLog2 = 10;    // records a pool block

  struct Node {  // one cache line; trivial, so that pool blocks are not touched before they are used
    std::uint32_t edge_offset, edge_length, begin;
    NodeId parent, first_child, next_sibling, previous_sibling;  // the first child's previous is the last child
    std::uint32_t child_count;
    std::int64_t last_use_ms;
    std::uint32_t visits;
    NodeId ahead;  // some hops down the path last inserted here, for fetching only: it may be any id, dead or elsewhere
    std::uint32_t first_mark, subtree_marks;
    NodeId older, newer;  // the recency list; off it: older == itself
  };
  static_assert(sizeof(Node) == 64);

  struct MarkRecord {
    std::uint32_t position, mark, kind, next;  // a node's marks: deepest first
  };

  // Records in blocks that never move; freed ones are handed out again first.
  template <class Record>
  struct Pool {
    std::vector<std::unique_ptr<Record[]>> blocks;
    std::vector<std::uint32_t> free;
    std::uint32_t used = 0;  // ever handed out

    Record& operator[](std::uint32_t i) { return blocks[i >> kPoolLog2][i & ((1u << kPoolLog2) - 1)]; }
    const Record& operator[](std::uint32_t i) const { return blocks[i >> kPoolLog2][i & ((1u << kPoolLog2) - 1)]; }
    std::uint32_t take() {
      if (!free.empty()) {
        const std::uint32_t i = free.back();
        free.pop_back();
        return i;
      }
      if ((used >> kPoolLog2) == blocks.size()) {
        blocks.push_back(std::make_unique_for_overwrite<Record[]>(std::size_t{1} << kPoolLog2));
        if (used > 0) populate(blocks.back().get(), sizeof(Record) << kPoolLog2);  // a small tree may stay small
      }
      return used++;
    }
    void give(std::uint32_t i) { free.push_back(i); }
    std::uint64_t bytes() const {
      return (std::uint64_t{blocks.size()} << kPoolLog2) * sizeof(Record) + blocks.capacity() * sizeof(void*) +
             free.capacity() * sizeof(std::uint32_t);
    }
  };

  Node& at(NodeId id) { return nodes_[id]; }
  const Node& at(NodeId id) const { return nodes_[id]; }
  Token first_token(const Node& node) const { return arena_.at(node.edge_offset); }

  class Lookahead;
  NodeId find_child(NodeId parent, Token first, NodeId guess = kNone) const;
  std::uint32_t common_with_edge(NodeId id, TokenSpan rest) const;
  NodeId new_node(NodeId parent, std::uint32_t begin);
  NodeId split(NodeId id, std::uint32_t depth);
  void touch_path(NodeId leaf, std::int64_t now_ms);

  std::uint32_t hash_of(NodeId id) const { return ChildTable::hash(at(id).parent, first_token(at(id))); }
  void link_child(NodeId child);  // into its parent's list: subtrees with marks first
  void unlink_child(NodeId child);
  void replace_child(NodeId old_child, NodeId new_child);

  NodeId owner_of(NodeId node, std::uint32_t position) const;
  void add_subtree_marks(NodeId node, std::uint32_t delta);

  bool is_listed(NodeId id) const { return at(id).older != id; }
  void list_newest(NodeId id);
  void list_oldest(NodeId id);
  void unlist(NodeId id);
  bool is_pinned(NodeId id) const { return !pins_.empty() && pins_.contains(id); }
  bool is_removable(NodeId id) const;
  void offer(NodeId id);  // back on the list, if it is free to go
  void remove_leaf(NodeId id);
  void merge_into_only_child(NodeId id);
  void compact_if_worth_it();

  std::string check_nodes() const;
  std::string check_list() const;

  TokenArena arena_;
  Pool<Node> nodes_;
  Pool<MarkRecord> marks_;
  ChildTable children_;
  std::unordered_map<NodeId, std::uint32_t> pins_;  // of those that have any
  NodeId oldest_ = kNone;  // of the recency list: a node stands before its parent, so the oldest one is a leaf
  NodeId newest_ = kNone;
  std::size_t node_count_ = 0;
  std::size_t mark_count_ = 0;
  std::array<std::uint32_t, kAnnouncedAhead> announced_{};  // hashes of the latest, in turn
  std::size_t announcements_ = 0;
};

}  // namespace cairn

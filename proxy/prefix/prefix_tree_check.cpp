// PrefixTree: what must hold between two calls, for tests.
#include "prefix/prefix_tree.hpp"

namespace cairn {

std::string PrefixTree::check_invariants() const {
  std::string broken = check_nodes();
  return broken.empty() ? check_list() : broken;
}

std::string PrefixTree::check_nodes() const {
  std::size_t live_nodes = 0;
  std::uint64_t held_tokens = 0;
  std::size_t mark_total = 0;
  for (NodeId id = 0; id < nodes_.used; ++id) {
    const Node& node = at(id);
    if (node.parent == kFree) continue;
    const std::string here = "node " + std::to_string(id) + ": ";
    ++live_nodes;
    held_tokens += node.edge_length;
    if (id == kRoot) {
      if (node.parent != kNone || node.begin != 0 || node.edge_length != 0) return here + "not a root";
    } else {
      if (!is_live(node.parent)) return here + "dead parent";
      if (node.edge_length == 0) return here + "empty edge";
      if (node.begin != end_tokens(node.parent)) return here + "does not begin where its parent ends";
      const auto is_it = [&](NodeId other) { return other == id; };
      if (children_.find(hash_of(id), is_it) != id) return here + "not in the table";
      if (find_child(node.parent, first_token(node)) != id) return here + "not found by its parent and first token";
    }

    std::uint32_t marks_seen = 0;
    std::uint32_t before = end_tokens(id);
    for (std::uint32_t m = node.first_mark; m != kNone; m = marks_[m].next, ++marks_seen) {
      if (marks_[m].position > before || marks_[m].position <= node.begin) return here + "mark out of place";
      before = marks_[m].position;
    }
    mark_total += marks_seen;

    std::uint32_t children_seen = 0;
    NodeId last = kNone;
    for (NodeId child = node.first_child; child != kNone; child = at(child).next_sibling, ++children_seen) {
      if (!is_live(child) || at(child).parent != id) return here + "child of somebody else";
      if (children_seen == node.child_count) return here + "more children than counted";
      if (last != kNone && at(child).previous_sibling != last) return here + "broken sibling list";
      if (last != kNone && at(last).subtree_marks == 0 && at(child).subtree_marks > 0) {
        return here + "child with marks behind one without";
      }
      marks_seen += at(child).subtree_marks;
      last = child;
    }
    if (children_seen != node.child_count) return here + "fewer children than counted";
    if (last != kNone && at(node.first_child).previous_sibling != last) return here + "last child not known";
    if (marks_seen != node.subtree_marks) return here + "wrong count of marks below";
  }
  if (live_nodes != node_count_) return "wrong count of nodes";
  if (live_nodes != children_.size() + 1) return "wrong count of children in the table";
  if (held_tokens != arena_.live_tokens()) return "wrong count of tokens";
  if (mark_total != mark_count_) return "wrong count of marks";
  return {};
}

std::string PrefixTree::check_list() const {
  std::vector<std::uint32_t> rank(nodes_.used, 0);  // place on the list, from 1
  std::uint32_t listed = 0;
  NodeId last = kNone;
  for (NodeId id = oldest_; id != kNone; id = at(id).newer) {
    if (!is_live(id) || id == kRoot || at(id).older != last || rank[id] != 0) return "broken recency list";
    rank[id] = ++listed;
    last = id;
  }
  if (newest_ != last) return "newest node not known";
  for (NodeId id = 1; id < nodes_.used; ++id) {
    if (!is_live(id)) continue;
    const std::string here = "node " + std::to_string(id) + ": ";
    if (is_listed(id) != (rank[id] != 0)) return here + "thinks otherwise about being listed";
    if (is_removable(id) && rank[id] == 0) return here + "could be removed but is not listed";
    const NodeId parent = at(id).parent;
    if (rank[id] == 0 || parent == kRoot || rank[parent] == 0) continue;
    if (rank[parent] < rank[id]) return here + "after its parent";
  }
  return {};
}

}  // namespace cairn

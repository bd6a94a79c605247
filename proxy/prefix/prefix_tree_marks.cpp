// PrefixTree: marks, the saved states at exact depths.
#include <functional>
#include <queue>
#include <vector>

#include "prefix/prefix_tree.hpp"

namespace cairn {

bool PrefixTree::attach(NodeId node, std::uint32_t position_tokens, std::uint32_t mark, std::uint32_t kind) {
  const NodeId owner = owner_of(node, position_tokens);
  if (owner == kNone) return false;
  std::uint32_t previous = kNone;
  std::uint32_t next = at(owner).first_mark;
  for (; next != kNone && marks_[next].position >= position_tokens; next = marks_[next].next) {
    if (marks_[next].position == position_tokens && marks_[next].mark == mark) {
      marks_[next].kind = kind;
      return true;
    }
    previous = next;
  }
  const std::uint32_t record = marks_.take();
  marks_[record] = {position_tokens, mark, kind, next};
  (previous == kNone ? at(owner).first_mark : marks_[previous].next) = record;
  ++mark_count_;
  add_subtree_marks(owner, 1);
  return true;
}

bool PrefixTree::detach(NodeId node, std::uint32_t position_tokens, std::uint32_t mark) {
  const NodeId owner = owner_of(node, position_tokens);
  if (owner == kNone) return false;
  for (std::uint32_t* link = &at(owner).first_mark; *link != kNone; link = &marks_[*link].next) {
    const std::uint32_t record = *link;
    if (marks_[record].position != position_tokens || marks_[record].mark != mark) continue;
    *link = marks_[record].next;
    marks_.give(record);
    --mark_count_;
    add_subtree_marks(owner, ~std::uint32_t{0});
    offer(owner);
    return true;
  }
  return false;
}

void PrefixTree::for_each_mark_on_path(const Match& match, const MarkVisitor& visit) const {
  for (NodeId node = match.node; node != kRoot; node = at(node).parent) {
    for (std::uint32_t m = at(node).first_mark; m != kNone; m = marks_[m].next) {
      const MarkRecord& record = marks_[m];
      if (record.position > match.matched_tokens) continue;
      if (!visit({node, record.position, record.mark, record.kind})) return;
    }
  }
}

void PrefixTree::for_each_mark_below(const Match& match, const MarkVisitor& visit, std::size_t max_nodes) const {
  // Best first: a node waits under the depth at which its edge begins, a mark under its own.
  struct Waiting {
    std::uint32_t position;
    NodeId node;
    std::uint32_t record;  // kNone: the node itself
    bool operator>(const Waiting& other) const { return position > other.position; }
  };
  std::priority_queue<Waiting, std::vector<Waiting>, std::greater<>> waiting;
  std::size_t nodes_left = max_nodes;

  const auto open = [&](NodeId id) {
    const Node& node = at(id);
    for (std::uint32_t m = node.first_mark; m != kNone; m = marks_[m].next) {
      if (marks_[m].position <= match.matched_tokens) break;
      waiting.push({marks_[m].position, id, m});
    }
    for (NodeId child = node.first_child; child != kNone && at(child).subtree_marks > 0 && nodes_left > 0;
         child = at(child).next_sibling, --nodes_left) {
      waiting.push({at(child).begin + 1, child, kNone});
    }
  };

  if (at(match.node).subtree_marks == 0) return;
  open(match.node);
  while (!waiting.empty()) {
    const Waiting next = waiting.top();
    waiting.pop();
    if (next.record == kNone) {
      open(next.node);
    } else if (!visit({next.node, next.position, marks_[next.record].mark, marks_[next.record].kind})) {
      return;
    }
  }
}

// The node on the path to `node` whose edge covers the position, or kNone.
NodeId PrefixTree::owner_of(NodeId node, std::uint32_t position) const {
  if (!is_live(node) || position == 0 || position > end_tokens(node)) return kNone;
  while (at(node).begin >= position) node = at(node).parent;
  return node;
}

// `delta` is 1, or -1 in two's complement.
void PrefixTree::add_subtree_marks(NodeId node, std::uint32_t delta) {
  for (NodeId id = node; id != kNone; id = at(id).parent) {
    const bool had_marks = at(id).subtree_marks > 0;
    at(id).subtree_marks += delta;
    if (id == kRoot || had_marks == (at(id).subtree_marks > 0)) continue;
    unlink_child(id);  // to the front of its siblings, or to the back
    link_child(id);
  }
}

}  // namespace cairn

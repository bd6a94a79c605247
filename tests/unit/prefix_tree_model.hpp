// NaivePrefixTree and PrefixTreeTrial: an obvious, slow PrefixTree and a walk that does the same to it and to the real
// one, for the randomised test and the fuzzer.
#pragma once

#include <algorithm>
#include <functional>
#include <map>
#include <set>
#include <sstream>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "prefix/prefix_tree.hpp"

namespace cairn::test {

// Knows the whole token path of every node's end and looks at all of them for every question.
struct NaivePrefixTree {
  struct End {
    NodeId id = PrefixTree::kNone;
    std::uint32_t visits = 0;
    std::uint32_t pins = 0;
    std::int64_t last_use_ms = 0;
  };
  struct Mark {
    Tokens path;  // up to its position
    std::uint32_t mark, kind;
  };

  std::map<Tokens, End> ends;
  std::vector<Mark> marks;
  std::vector<Tokens> recency;  // oldest first

  static bool starts_with(const Tokens& path, const Tokens& prefix) {
    return path.size() >= prefix.size() && std::equal(prefix.begin(), prefix.end(), path.begin());
  }

  std::size_t matched(const Tokens& tokens) const {
    std::size_t best = 0;
    for (const auto& [path, end] : ends) {
      std::size_t same = 0;
      while (same < path.size() && same < tokens.size() && path[same] == tokens[same]) ++same;
      best = std::max(best, same);
    }
    return best;
  }

  // The nearest node's end at or below a path that is known.
  Tokens end_over(const Tokens& path) const {
    const Tokens* best = nullptr;
    for (const auto& [other, end] : ends) {
      if (starts_with(other, path) && (!best || other.size() < best->size())) best = &other;
    }
    return best ? *best : Tokens{};
  }

  Tokens parent_of(const Tokens& path) const {
    Tokens best;
    for (const auto& [other, end] : ends) {
      if (other.size() < path.size() && other.size() > best.size() && starts_with(path, other)) best = other;
    }
    return best;
  }

  std::vector<Tokens> children_of(const Tokens& path) const {
    std::vector<Tokens> children;
    for (const auto& [other, end] : ends) {
      if (other.size() > path.size() && starts_with(other, path) && parent_of(other) == path) children.push_back(other);
    }
    return children;
  }

  std::size_t edge_tokens() const {
    std::size_t total = 0;
    for (const auto& [path, end] : ends) total += path.size() - parent_of(path).size();
    return total;
  }

  std::size_t marks_on_edge(const Tokens& path) const {
    const std::size_t begin = parent_of(path).size();
    return static_cast<std::size_t>(std::count_if(
        marks.begin(), marks.end(), [&](const Mark& m) { return m.path.size() > begin && starts_with(path, m.path); }));
  }

  bool removable(const Tokens& path) const {
    return !path.empty() && children_of(path).empty() && marks_on_edge(path) == 0 && ends.at(path).pins == 0;
  }

  void unlist(const Tokens& path) { std::erase(recency, path); }

  void offer(const Tokens& path) {
    if (removable(path) && std::find(recency.begin(), recency.end(), path) == recency.end()) {
      recency.insert(recency.begin(), path);
    }
  }

  void touch(const Tokens& tokens, std::int64_t now_ms) {
    for (std::size_t length = tokens.size(); length > 0; --length) {
      const Tokens path(tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(length));
      const auto it = ends.find(path);
      if (it == ends.end()) continue;
      ++it->second.visits;
      it->second.last_use_ms = now_ms;
      unlist(path);
      recency.push_back(path);
    }
  }

  void remove_leaf(const Tokens& path) {
    const Tokens parent = parent_of(path);
    ends.erase(path);
    unlist(path);
    if (parent.empty()) return;
    const std::vector<Tokens> left = children_of(parent);
    if (left.size() == 1) {
      if (marks_on_edge(parent) == 0 && ends.at(parent).pins == 0 &&
          ends.at(parent).last_use_ms == ends.at(left[0]).last_use_ms) {
        ends.erase(parent);
        unlist(parent);
      }
    } else {
      offer(parent);
    }
  }

  void trim(std::size_t max_tokens) {
    while (edge_tokens() > max_tokens && !recency.empty()) {
      const Tokens path = recency.front();
      if (removable(path)) {
        remove_leaf(path);
      } else {
        unlist(path);
      }
    }
  }
};

// Throws std::logic_error at the first difference. `draw(n)` gives a number below n.
class PrefixTreeTrial {
 public:
  using Draw = std::function<std::uint32_t(std::uint32_t)>;

  explicit PrefixTreeTrial(Draw draw) : draw_(std::move(draw)), tree_(PrefixTree::Options{.arena_block_log2 = 3}) {}

  void step() {
    switch (draw_(10)) {
      case 0: case 1: case 2: insert(); break;
      case 3: case 4: match(); break;
      case 5: case 6: attach(); break;
      case 7: detach(); break;
      case 8: pin_or_unpin(); break;
      default: trim(); break;
    }
    compare();
  }

 private:
  static void want(bool holds, const std::string& what) {
    if (!holds) throw std::logic_error(what);
  }

  static std::string text(const Tokens& tokens) {
    std::ostringstream out;
    for (Token token : tokens) out << token << ' ';
    return out.str();
  }

  Tokens some_end() {
    if (naive_.ends.empty()) return {};
    return std::next(naive_.ends.begin(), draw_(static_cast<std::uint32_t>(naive_.ends.size())))->first;
  }

  // A piece of something known, then something else.
  Tokens some_sequence() {
    Tokens tokens = draw_(8) == 0 ? Tokens{} : some_end();
    if (draw_(3) != 0) tokens.resize(draw_(static_cast<std::uint32_t>(tokens.size()) + 1));
    if (tokens.size() < 60) {
      for (std::uint32_t more = draw_(12); more > 0; --more) {
        const std::uint32_t token = draw_(4);
        tokens.push_back(token == 3 ? -2147483647 - 1 : static_cast<Token>(token));
      }
    }
    return tokens;
  }

  void insert() {
    const Tokens tokens = some_sequence();
    if (draw_(2) == 0) ++now_ms_;
    const std::size_t matched = naive_.matched(tokens);
    const Tokens shared(tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(matched));
    const Tokens over = naive_.end_over(shared);
    const bool splits = matched > 0 && over != shared;
    const bool leaves = matched > 0 && matched < tokens.size();
    const std::size_t others = splits ? 1 : naive_.children_of(shared).size();

    const PrefixTree::InsertResult result = tree_.insert(tokens, now_ms_);
    want(result.matched_tokens == matched, "insert matched " + std::to_string(result.matched_tokens));
    want(tree_.tokens_to(result.leaf) == tokens, "the leaf does not end the sequence");
    const bool branches = leaves && others > 0;
    want((result.branch != PrefixTree::kNone) == branches, "branch or none");
    if (branches) {
      want(tree_.tokens_to(result.branch) == shared, "the branch is not where the sequence left");
      want(result.branch_is_new == (others == 1), "branch new or not");
    }
    if (splits) {
      naive_.ends[shared] = naive_.ends.at(over);
      naive_.ends[shared].pins = 0;
      naive_.ends[shared].id = leaves ? result.branch : result.leaf;
      naive_.offer(over);
    }
    if (matched < tokens.size()) naive_.ends[tokens].id = result.leaf;
    naive_.touch(tokens, now_ms_);
  }

  void match() {
    const Tokens tokens = some_sequence();
    const std::size_t matched = naive_.matched(tokens);
    const Tokens shared(tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(matched));
    const PrefixTree::Match match = tree_.match(tokens);
    want(match.matched_tokens == matched, "matched " + std::to_string(match.matched_tokens) + " of " + text(tokens));
    want(match.node == (matched == 0 ? PrefixTree::kRoot : naive_.ends.at(naive_.end_over(shared)).id), "match's node");

    std::multiset<std::tuple<std::size_t, std::uint32_t, std::uint32_t>> above, below, seen;
    for (const NaivePrefixTree::Mark& m : naive_.marks) {
      if (NaivePrefixTree::starts_with(shared, m.path)) above.insert({m.path.size(), m.mark, m.kind});
      if (m.path.size() > matched && NaivePrefixTree::starts_with(m.path, shared)) {
        below.insert({m.path.size(), m.mark, m.kind});
      }
    }
    std::uint32_t last = 0xffffffff;
    tree_.for_each_mark_on_path(match, [&](const PrefixTree::Mark& m) {
      want(m.position_tokens <= last, "marks on the path: deepest first");
      last = m.position_tokens;
      seen.insert({m.position_tokens, m.mark, m.kind});
      return true;
    });
    want(seen == above, "marks on the path");
    seen.clear();
    last = 0;
    tree_.for_each_mark_below(match, [&](const PrefixTree::Mark& m) {
      want(m.position_tokens >= last, "marks below: nearest first");
      last = m.position_tokens;
      seen.insert({m.position_tokens, m.mark, m.kind});
      return true;
    });
    want(seen == below, "marks below");
  }

  void attach() {
    const Tokens path = some_end();
    if (path.empty()) return;
    const std::uint32_t position = draw_(static_cast<std::uint32_t>(path.size()) + 2);
    const std::uint32_t mark = draw_(3), kind = draw_(2);
    const bool possible = position > 0 && position <= path.size();
    want(tree_.attach(naive_.ends.at(path).id, position, mark, kind) == possible, "attach");
    if (!possible) return;
    const Tokens at(path.begin(), path.begin() + position);
    std::erase_if(naive_.marks, [&](const NaivePrefixTree::Mark& m) { return m.path == at && m.mark == mark; });
    naive_.marks.push_back({at, mark, kind});
  }

  void detach() {
    if (naive_.marks.empty()) {
      want(!tree_.detach(PrefixTree::kRoot, 1, 0), "detach of nothing");
      return;
    }
    const NaivePrefixTree::Mark gone = naive_.marks[draw_(static_cast<std::uint32_t>(naive_.marks.size()))];
    std::vector<NodeId> ways;
    for (const auto& [path, end] : naive_.ends) {
      if (NaivePrefixTree::starts_with(path, gone.path)) ways.push_back(end.id);
    }
    const NodeId way = ways[draw_(static_cast<std::uint32_t>(ways.size()))];
    const auto position = static_cast<std::uint32_t>(gone.path.size());
    want(!tree_.detach(way, position, 77), "detach of another mark");
    want(tree_.detach(way, position, gone.mark), "detach");
    std::erase_if(naive_.marks, [&](const auto& m) { return m.path == gone.path && m.mark == gone.mark; });
    naive_.offer(naive_.end_over(gone.path));
  }

  void pin_or_unpin() {
    const Tokens path = some_end();
    if (path.empty()) return;
    NaivePrefixTree::End& end = naive_.ends.at(path);
    if (draw_(2) == 0) {
      want(tree_.pin(end.id), "pin");
      ++end.pins;
      return;
    }
    want(tree_.unpin(end.id) == (end.pins > 0), "unpin");
    if (end.pins > 0 && --end.pins == 0) naive_.offer(path);
  }

  void trim() {
    const std::size_t before = naive_.edge_tokens();
    const std::size_t most = draw_(4) == 0 ? 0 : draw_(static_cast<std::uint32_t>(before) + 1);
    naive_.trim(most);
    want(tree_.trim(most) == before - naive_.edge_tokens(), "trim removed another number of tokens");
  }

  void compare() {
    const std::string broken = tree_.check_invariants();
    want(broken.empty(), broken);
    want(tree_.edge_tokens_held() == naive_.edge_tokens(), "edge tokens held");
    want(tree_.nodes() == naive_.ends.size() + 1, "nodes");
    want(tree_.marks() == naive_.marks.size(), "marks");
    for (const auto& [path, end] : naive_.ends) {
      const std::string here = "node " + std::to_string(end.id) + " at " + text(path) + ": ";
      want(tree_.is_live(end.id), here + "dead");
      want(tree_.tokens_to(end.id) == path, here + "has another path");
      want(tree_.visits(end.id) == end.visits, here + "visits");
      want(tree_.last_use_ms(end.id) == end.last_use_ms, here + "last use");
      want(tree_.pins(end.id) == end.pins, here + "pins");
      want(tree_.children(end.id) == naive_.children_of(path).size(), here + "children");
    }
  }

  Draw draw_;
  PrefixTree tree_;
  NaivePrefixTree naive_;
  std::int64_t now_ms_ = 0;
};

}  // namespace cairn::test

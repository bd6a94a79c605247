// What each saved state of one namespace is worth keeping for: watches the prompts come in, learns when they return, and adds up
// what a state is expected to spare that no other state does.
// Thread: the I/O thread; pure. Owner: whoever owns the tree; both see the same prompts.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/eviction.hpp"
#include "plan/memory_kind.hpp"
#include "plan/return_times.hpp"
#include "prefix/prefix_tree.hpp"

namespace cairn {

// What a state is worth at any time, as far as age alone decides: the places in it that prompts are expected to come back to.
class Prospects {
 public:
  StateWorth at(double now_s) const;

 private:
  friend class StateValues;
  struct Part {
    std::uint32_t tokens = 0;  // spared by who comes back there
    double seen_s = 0;
    ReturnTimes::Curve curve;
  };
  std::vector<Part> parts_;
  bool branched_from_ = false;
};

class StateValues {
 public:
  // So many nodes are to be expected of the tree.
  void reserve(std::size_t nodes) {
    places_.reserve(nodes);
    traits_.reserve(nodes);
  }
  // A prompt has just been inserted. `tokens_a_unit`: what one token of the tree stands for (a block of a trace). Returns how far
  // before its end the prompt was left that this one goes on from, if it goes on from any.
  std::optional<std::uint32_t> observe(const PrefixTree& tree, const PrefixTree::InsertResult& inserted, std::uint32_t length,
                                       double now_s, std::uint32_t tokens_a_unit = 1);
  // The prompt that ends at `leaf` was answered.
  void answered(NodeId leaf, std::uint32_t answer_tokens);

  // A saved state whose marks stand on the path to `leaf`: `positions` ascending, its end last, all numbered `mark`.
  struct State {
    NodeId leaf = PrefixTree::kNone;
    std::span<const std::uint32_t> positions;
    std::uint32_t mark = 0;
    MemoryKind kind = MemoryKind::unknown;
    std::uint64_t uses = 0;
    double last_used_s = 0;
  };
  // In the tree's tokens a second. `tree` has the marks; it may be another than observe() was told of, if the same prompts were
  // inserted in both and nothing trimmed: their nodes have the same ids.
  StateWorth worth(const PrefixTree& tree, const State& state, double now_s) const;
  void prefetch(NodeId leaf) const {  // a state there will be asked for soon
    if (leaf < places_.size()) __builtin_prefetch(&places_[leaf]);
  }
  // The same for any time, written over `prospects`: good until the next call that is not const.
  void look_ahead(const PrefixTree& tree, const State& state, Prospects& prospects) const;

  // The return times learned, for the next process; load() returns false, and changes nothing, when it is none of these texts.
  std::string learned() const { return returns_.to_text(); }
  bool load(std::string_view text) { return returns_.load(text); }

 private:
  // Where prompts have ended or parted.
  struct Place {
    std::uint32_t length = 0;             // 0: neither
    std::uint32_t visits = 0;             // as a place where prompts part
    NodeId next = PrefixTree::kNone;      // the prompt that went on from here
    std::uint32_t left_at = 0;            // where that one left it
    double seen_s = 0;
    ReturnTimes::Watch watch = ReturnTimes::none;
    ReturnTimes::Kind of;
  };
  const Place* at(const PrefixTree& tree, NodeId node) const;
  const Place* prompt_near(const PrefixTree& tree, NodeId leaf) const;
  NodeId predecessor(const PrefixTree& tree, const PrefixTree::InsertResult& inserted, std::uint32_t length) const;
  static std::uint32_t offered_by_others(const PrefixTree& tree, const State& state);
  // Calls part(tokens, kind, seen_s) for each place that adds to the state's worth; true if it is branched from.
  template <class Part>
  bool for_each_part(const PrefixTree& tree, const State& state, Part part) const;

  ReturnTimes returns_;
  std::vector<Place> places_;          // by node: the tree's ids are small numbers, and those of what it trimmed are used again
  std::vector<PromptTraits> traits_;   // likewise, of prompts
};

}  // namespace cairn

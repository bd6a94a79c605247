// What each saved state of one namespace is worth keeping for: watches the prompts come in, learns when they return, and adds up
// what a state is expected to spare that no other state does.
// Thread: the I/O thread; pure. Owner: whoever owns the tree; both see the same prompts.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>

#include "checkpoint/eviction.hpp"
#include "plan/memory_kind.hpp"
#include "plan/return_times.hpp"
#include "prefix/prefix_tree.hpp"

namespace cairn {

class StateValues {
 public:
  // A prompt has just been inserted. `tokens_a_unit`: what one token of the tree stands for (a block of a trace). Returns how far
  // before its end the prompt was left that this one goes on from, if it goes on from any.
  std::optional<std::uint32_t> observe(const PrefixTree& tree, const PrefixTree::InsertResult& inserted, std::uint32_t length,
                                       double now_s, std::uint32_t tokens_a_unit = 1);
  // The prompt that ends at `leaf` was answered.
  void answered(NodeId leaf, std::uint32_t answer_tokens);

  // A saved state whose marks stand on the path to `leaf`: `positions` ascending, its end last, all numbered `mark`.
  // In the tree's tokens a second.
  StateWorth worth(const PrefixTree& tree, NodeId leaf, std::span<const std::uint32_t> positions, std::uint32_t mark,
                   MemoryKind kind, std::uint64_t uses, double last_used_s, double now_s) const;

  // The return times learned, for the next process; load() returns false, and changes nothing, when it is none of these texts.
  std::string learned() const { return returns_.to_text(); }
  bool load(std::string_view text) { return returns_.load(text); }

  std::size_t places() const { return places_.size(); }

 private:
  // Where prompts have ended or parted.
  struct Place {
    PromptTraits traits;
    ReturnTimes::Kind of;
    ReturnTimes::Watch watch = ReturnTimes::none;
    double seen_s = 0;
    std::uint32_t length = 0;
    std::uint32_t visits = 0;             // as a place where prompts part
    NodeId next = PrefixTree::kNone;      // the prompt that went on from here
    std::uint32_t left_at = 0;            // where that one left it
  };
  const Place* at(const PrefixTree& tree, NodeId node) const;
  const Place* prompt_near(const PrefixTree& tree, NodeId leaf) const;
  NodeId predecessor(const PrefixTree& tree, const PrefixTree::InsertResult& inserted, std::uint32_t length) const;
  void forget_some(const PrefixTree& tree);

  ReturnTimes returns_;
  std::unordered_map<NodeId, Place> places_;
  std::size_t forget_at_ = 1 << 16;
};

}  // namespace cairn

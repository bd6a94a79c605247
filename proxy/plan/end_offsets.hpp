// Learns where next prompts leave the one before, counted from its end: chat templates close the last message and open the
// answer with tokens that the next turn's prompt may not repeat, and a state kept behind that point is of no use to it.
// Pure.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

namespace cairn {

class EndOffsets {
 public:
  static constexpr std::uint32_t longest = 256;  // tokens; who leaves earlier than that before the end is no next turn

  // A prompt left an earlier one `offset` tokens before that one's end (0: it went on from its very end); more than `longest`:
  // it went on from none.
  void observe(std::uint32_t offset);

  // Share of the latest prompts that a later one went on from, `unlearned` weighing as much as `weight` prompts.
  double followed(double unlearned, double weight = 2) const;
  // The chance that the next turn of this prompt's conversation comes and leaves it at its end. `continues`: it went on from an earlier
  // one. `end_is_told`: by the chat's template, before any was seen.
  double next_turn(bool continues, bool end_is_told) const;

  // A prompt shared a good part of an earlier one and left it far before its end (or did not).
  void observe_branch(bool inside);
  // Share of the latest prompts that did.
  double branches() const;
  bool any_branch() const { return inside_ > 0.3F; }  // lately
  // Share of the latest prompts that went on from an earlier one or left it far before its end; 1 before anything was seen.
  double returning() const;
  // It was seen to be a fifth or more.
  bool returns_often() const { return prompts_ > 2.5F && total_ + inside_ > 0.2F * prompts_; }

  // For the index: what was learned, as a line of text; load() takes it back. False: it is none.
  std::string to_text() const;
  bool load(std::string_view text);

  // Tokens before a prompt's end where a state serves most next prompts; `unlearned` before anything was seen.
  std::uint32_t advised(std::uint32_t unlearned) const;
  // Tokens at a prompt's end that hardly any next prompt shares: what a state that can be cut may do without.
  std::uint32_t unneeded() const;

 private:
  std::array<float, longest + 1> weight_{};
  float total_ = 0;    // of weight_
  float prompts_ = 0;  // seen, forgotten alike
  float inside_ = 0;   // left an earlier one inside, forgotten alike
};

}  // namespace cairn

// Learns where next prompts leave the one before, counted from its end: chat templates close the last message and open the
// answer with tokens that the next turn's prompt may not repeat, and a state kept behind that point is of no use to it.
// Pure.
#pragma once

#include <array>
#include <cstdint>

namespace cairn {

class EndOffsets {
 public:
  static constexpr std::uint32_t longest = 256;  // tokens; who leaves earlier than that before the end is no next turn

  // A prompt left an earlier one `offset` tokens before that one's end (0: it went on from its very end).
  void observe(std::uint32_t offset);

  // Tokens before a prompt's end where a state serves most next prompts; `unlearned` before anything was seen.
  std::uint32_t advised(std::uint32_t unlearned) const;

 private:
  std::array<float, longest + 1> weight_{};
  float total_ = 0;
};

}  // namespace cairn

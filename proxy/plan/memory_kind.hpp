// What a backend's memory can be cut back to: found out by a probe, corrected by every answer, never configured.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

namespace cairn {

enum class MemoryKind {
  unknown,
  truncatable,   // full attention: every prefix of a state can be resumed
  checkpointed,  // hybrid, recurrent, sliding window, with context checkpoints in the saved file: its end and those
  exact,         // the same without them: only its end, strictly extended
};

std::string_view to_string(MemoryKind kind);
MemoryKind memory_kind_from_string(std::string_view text);  // unknown for anything else

// A state in a slot or in a file, as far as its reuse goes. All in tokens.
struct StateView {
  std::uint32_t length = 0;       // tokens whose ids we know
  bool ends_there = true;         // false: the state goes on beyond `length` with tokens we do not know (an answer)
  std::span<const std::uint32_t> resume_points;  // ascending; context checkpoints inside
};

// Tokens of a prompt of `prompt` tokens that need not be computed when it shares `common` tokens with the state.
// At least one token is always computed: the backend needs its logits.
std::uint32_t usable_tokens(MemoryKind kind, const StateView& state, std::uint32_t common, std::uint32_t prompt);

}  // namespace cairn

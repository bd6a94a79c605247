// What the body of a request to a cached endpoint means, as far as Cairn needs to know; and how the slot is spliced into it.
// Pure. Errors: downstream malformed is never returned to a client: what Cairn cannot read is passed on for the backend to judge.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/result.hpp"
#include "prefix/tokens.hpp"
#include "request/infill_body.hpp"

namespace cairn {

enum class PromptForm {
  chat,        // messages, rendered by the backend's template
  completion,  // `prompt`: text, token ids, or a list of either
  messages,    // Anthropic's, which the backend turns into a chat
  responses,   // OpenAI's `input` items, likewise
  infill,      // text before and behind a gap, and other files
};
inline constexpr std::size_t prompt_form_count = 5;
// Whether the prompt is derived by Cairn from a rule of the backend's, and not told by it.
constexpr bool is_derived(PromptForm form) {
  return form == PromptForm::messages || form == PromptForm::responses || form == PromptForm::infill;
}

struct PromptBody {
  PromptForm form = PromptForm::chat;
  bool takes_slot = true;  // false: the backend chooses the slot, whatever `id_slot` says
  std::string chat;        // of a body that the backend turns into a chat: that chat (JSON)
  InfillBody infill;
  bool stream = false;
  bool return_progress = false;
  std::optional<int> id_slot;  // nullopt: any; negative: none that we understand
  std::optional<bool> cache_prompt;
  // For completions: the parts of the one prompt, in order. A batch of several prompts has `several` set instead.
  std::vector<std::variant<std::string, Token>> prompt;
  bool several = false;      // more than one prompt, or n > 1: more than one slot
  std::string lora;          // adapters of its own (JSON as it came): another model for this request; empty: none
  bool has_media = false;    // images, audio: tokens we cannot see
  bool has_messages = false;
};

Result<PromptBody> parse_prompt_body(PromptForm form, std::string_view body);

// `body` with `"id_slot":N` (and `"cache_prompt"`, where it is given) as its last members: what the
// backend finds wrong in the rest it finds at the same place. Every other byte stays as it is. `body` must be a JSON object that
// parse_prompt_body() accepted.
std::string splice_slot(std::string_view body, int slot, std::optional<bool> cache_prompt);

}  // namespace cairn

// The prompt of a request to /infill (fill in the middle): which tokens of its own the model has around the parts is asked of the
// backend once, the rest is put together here as llama-server does it (server-common.cpp, format_prompt_infill; build 11669).
#pragma once

#include <cstdint>
#include <optional>

#include "base/cancel.hpp"
#include "base/task.hpp"
#include "prefix/tokens.hpp"
#include "request/infill_body.hpp"

namespace cairn {

class LlamaApi;
class TokenMemo;

// The model's own tokens between the parts.
struct InfillLayout {
  Tokens head;           // before the first file
  Tokens before_file;    // before each one
  bool names_files = false;
  Tokens before_prefix;  // with other files, and without
  Tokens before_prefix_alone;
  Tokens before_suffix;
  Tokens end;
};

// Has the backend compute two prompts of some tens of tokens, in slots of its own choice. Errors: `unsupported` where the model
// knows no infilling, or orders the parts otherwise.
ResultTask<InfillLayout> learn_infill_layout(LlamaApi& api, CancelSource& cancel);

// The tokens of a prompt; nullopt where the backend would shorten it at its front, after which nothing of it can be reused.
// `context`: tokens of a slot.
ResultTask<std::optional<Tokens>> infill_tokens(const InfillBody& body, const InfillLayout& layout, std::int64_t context, TokenMemo& memo,
                                                CancelSource& cancel);

}  // namespace cairn

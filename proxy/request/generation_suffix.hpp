// Finds what a chat template puts behind the last message to make the model answer ("<|im_start|>assistant\n", perhaps
// with an empty thought): the next turn's prompt may not repeat it, so a state worth keeping ends before it.
// Thread: the I/O thread. Owner: one backend.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "base/cancel.hpp"
#include "base/task.hpp"

namespace cairn {

class LlamaApi;

class GenerationSuffixes {
 public:
  // Bytes at the end of `prompt` (the rendered text of the chat `body`) that the template added for the answer; 0 when that
  // cannot be told. Renders the body once more, without it, unless the prompt ends as one seen before did.
  Task<std::size_t> suffix_bytes(LlamaApi& api, std::string_view body, std::string_view prompt, CancelSource& cancel);
  void clear();

 private:
  std::vector<std::string> known_;  // longest first
  int failures_ = 0;                // in a row: templates that do not know the switch
};

}  // namespace cairn

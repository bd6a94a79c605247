// Where the part of a chat that many sessions share ends in its rendered prompt: behind the system prompt and the tools, where the
// first message of a user begins.
// Pure.
#pragma once

#include <cstddef>
#include <string_view>

namespace cairn {

// Bytes of `prompt` (the rendered text of the chat `body`, JSON) in front of what its first message other than a system's says; 0
// where that is not found, or no system message and no tools come first.
std::size_t system_end_bytes(std::string_view body, std::string_view prompt);

}  // namespace cairn

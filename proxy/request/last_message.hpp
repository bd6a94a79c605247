// Where the last message of a conversation begins in a prompt's text: a chat as its template renders it, or a transcript whose lines
// say who speaks. A guess for planning: a wrong one costs a stop.
// Pure.
#pragma once

#include <cstddef>
#include <string_view>

namespace cairn {

// Bytes of `prompt` in front of its last message and what opens it ("<|im_start|>user", "Human:", "### User:"); 0: there is none, or it
// begins the prompt. The last `suffix_bytes`, and a line at the end that only asks for the answer, open none.
std::size_t last_message_bytes(std::string_view prompt, std::size_t suffix_bytes);

}  // namespace cairn

#include "request/last_message.hpp"

#include <algorithm>
#include <array>

#include <boost/algorithm/string/predicate.hpp>

namespace cairn {

namespace {

constexpr std::array<std::string_view, 11> roles{"assistant", "user",     "system", "tool",      "human",      "function",
                                                 "model",     "ai",       "bot",    "developer", "observation"};

// The bytes of a token of the model's own that `text` begins with, as templates write them ("<|im_start|>"); 0: it begins with none.
std::size_t special_bytes(std::string_view text) {
  constexpr std::size_t longest = 40;
  if (text.empty() || text.front() != '<') return 0;
  const std::size_t end = text.substr(0, longest).find_first_of("> \n");
  return end == std::string_view::npos || text[end] != '>' ? 0 : end + 1;
}

// `ends`: what may follow the word.
bool begins_with_role(std::string_view text, std::string_view ends) {
  return std::any_of(roles.begin(), roles.end(), [&](std::string_view role) {
    return boost::algorithm::istarts_with(text, role) && text.size() > role.size() && ends.find(text[role.size()]) != std::string_view::npos;
  });
}

std::string_view without_leading(std::string_view text, std::string_view signs) {
  text.remove_prefix(std::min(text.find_first_not_of(signs), text.size()));
  return text;
}

// `text` begins a line, or with a token of the model's own.
bool opens_message(std::string_view text) {
  if (const std::size_t special = special_bytes(text); special > 0) {
    // "<|im_start|>user\n", "<|start_header_id|>user<|end_header_id|>"; "<|user|>", also with DeepSeek's wide bars.
    return begins_with_role(text.substr(special), "\n<") || begins_with_role(without_leading(text, "<|\xEF\xBD\x9C"), "|>\xEF");
  }
  return begins_with_role(without_leading(text, "#*[ "), ":*]");  // "Human:", "### User:", "**User**:", "[user]"
}

}  // namespace

std::size_t last_message_bytes(std::string_view prompt, std::size_t suffix_bytes) {
  constexpr std::size_t least = 32;  // bytes of a message: less is a line that asks for the answer
  prompt.remove_suffix(std::min(suffix_bytes, prompt.size()));
  if (prompt.size() <= least) return 0;
  for (std::size_t at = prompt.size() - least; at > 0;) {
    at = prompt.find_last_of("\n<", at);
    if (at == std::string_view::npos) return 0;
    const std::size_t begin = prompt[at] == '\n' ? at + 1 : at;
    if (opens_message(prompt.substr(begin))) return begin;
    if (at == 0) return 0;
    --at;
  }
  return 0;
}

}  // namespace cairn

// Bodies of the endpoints that llama-server turns into a chat by itself, as the chat it makes of them: its template then tells
// their prompt. Follows what build 11669 shows in its log ("converted request"), as far as the prompt depends on it.
// Pure. Errors: downstream malformed, for what the backend would refuse or we do not know; it is passed on.
#pragma once

#include <string>
#include <string_view>

#include "base/result.hpp"

namespace cairn {

struct ConvertedChat {
  std::string body;        // JSON for /apply-template
  bool has_media = false;  // images: tokens that we cannot see
};

// Anthropic's /v1/messages.
Result<ConvertedChat> chat_of_messages(std::string_view body);
// OpenAI's /v1/responses.
Result<ConvertedChat> chat_of_responses(std::string_view body);

}  // namespace cairn

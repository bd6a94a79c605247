// Anthropic's /v1/messages as a chat.
#include <utility>

#include "request/chat_conversion.hpp"
#include "request/json_fields.hpp"

namespace cairn {

namespace {

namespace json = boost::json;

// Claude Code puts a stamp that differs in each request at the very front; llama-server makes all of them equal.
std::string without_stamp(std::string text) {
  constexpr std::string_view header = "x-anthropic-billing-header:";
  constexpr std::string_view key = "cch=";
  constexpr std::size_t stamp_bytes = 5;
  if (!text.starts_with(header)) return text;
  const std::size_t at = text.find(key, header.size());
  if (at == std::string::npos) return text;
  const std::size_t stamp = at + key.size();
  if (stamp + stamp_bytes < text.size() && text[stamp + stamp_bytes] == ';') text.replace(stamp, stamp_bytes, stamp_bytes, 'f');
  return text;
}

std::string system_text(const json::value& system) {
  if (system.is_string()) return without_stamp(std::string{std::string_view{system.get_string()}});
  std::string text;
  if (const json::array* blocks = system.if_array()) {
    for (const json::value& block : *blocks) {
      if (string_member_or(block, "type") == "text") text += without_stamp(string_member_or(block, "text"));
    }
  }
  return text;
}

json::value tool_call(const json::value& block) {
  const json::value* input = member(block, "input");
  std::string arguments;
  append_compact(arguments, input != nullptr && !input->is_null() ? *input : json::value(json::object{}));
  return json::object{{"id", string_member_or(block, "id")},
                      {"type", "function"},
                      {"function", json::object{{"name", string_member_or(block, "name")}, {"arguments", arguments}}}};
}

json::value tool_result(const json::value& block, bool& has_media) {
  std::string text;
  if (const json::value* content = member(block, "content"); content != nullptr && content->is_string()) {
    text = string_member_or(block, "content");
  } else if (content != nullptr && content->is_array()) {
    for (const json::value& part : content->get_array()) {
      const std::string type = string_member_or(part, "type");
      if (type == "text") text += string_member_or(part, "text");
      has_media = has_media || type == "image";
    }
  }
  return json::object{{"role", "tool"}, {"tool_call_id", string_member_or(block, "tool_use_id")}, {"content", text}};
}

// One message of ours becomes one of a chat, and one more for each tool's result in it.
void append_message(const json::value& message, json::array& out, bool& has_media) {
  const json::value* content = member(message, "content");
  if (content == nullptr && string_member_or(message, "role") == "assistant") return;
  if (content == nullptr || !content->is_array()) {
    out.push_back(message);
    return;
  }
  json::array parts, calls, results;
  std::string thought;
  for (const json::value& block : content->get_array()) {
    const std::string type = string_member_or(block, "type");
    if (type == "text") {
      parts.push_back(block);
    } else if (type == "thinking") {
      thought += string_member_or(block, "thinking");
    } else if (type == "image") {
      has_media = true;
    } else if (type == "tool_use") {
      calls.push_back(tool_call(block));
    } else if (type == "tool_result") {
      results.push_back(tool_result(block, has_media));
    }
  }
  if (!parts.empty() || !calls.empty() || !thought.empty()) {
    json::object converted{{"role", string_member_or(message, "role")}};
    converted["content"] = parts.empty() ? json::value("") : json::value(std::move(parts));
    if (!calls.empty()) converted["tool_calls"] = std::move(calls);
    if (!thought.empty()) converted["reasoning_content"] = thought;
    out.push_back(std::move(converted));
  }
  for (json::value& result : results) out.push_back(std::move(result));
}

json::array chat_tools(const json::array& tools) {
  json::array converted;
  for (const json::value& tool : tools) {
    const json::value* schema = member(tool, "input_schema");
    converted.push_back(json::object{{"type", "function"},
                                     {"function", json::object{{"name", string_member_or(tool, "name")},
                                                               {"description", string_member_or(tool, "description")},
                                                               {"parameters", schema != nullptr ? *schema : json::value(json::object{})}}}});
  }
  return converted;
}

}  // namespace

Result<ConvertedChat> chat_of_messages(std::string_view text) {
  Result<json::object> parsed = parse_object(text);
  if (!parsed) return parsed.error();
  const json::value body(std::move(*parsed));
  const json::value* messages = member(body, "messages");
  if (messages == nullptr || !messages->is_array()) return downstream_error(ErrorCode::malformed, "body: no messages");

  ConvertedChat chat;
  json::array converted;
  if (const json::value* system = member(body, "system"); system != nullptr && !system->is_null()) {
    converted.push_back(json::object{{"role", "system"}, {"content", system_text(*system)}});
  }
  for (const json::value& message : messages->get_array()) append_message(message, converted, chat.has_media);

  // Of the rest the backend takes over what is named to it; these say something about the prompt.
  json::object out;
  out["messages"] = std::move(converted);
  if (const json::value* tools = member(body, "tools"); tools != nullptr && tools->is_array()) out["tools"] = chat_tools(tools->get_array());
  if (const json::value* choice = member(body, "tool_choice"); choice != nullptr) {
    const std::string type = string_member_or(*choice, "type");
    if (type == "auto") out["tool_choice"] = "auto";
    if (type == "any" || type == "tool") out["tool_choice"] = "required";
  }
  if (const json::value* arguments = member(body, "chat_template_kwargs")) out["chat_template_kwargs"] = *arguments;
  chat.body = json::serialize(out);
  return chat;
}

}  // namespace cairn

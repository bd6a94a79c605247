// OpenAI's /v1/responses as a chat: items that belong to one turn of the assistant become one message.
#include <utility>

#include "request/chat_conversion.hpp"
#include "request/json_fields.hpp"

namespace cairn {

namespace {

namespace json = boost::json;

Error refused(std::string_view what) { return downstream_error(ErrorCode::malformed, "body: " + std::string(what)); }

bool is_string(const json::value& item, std::string_view key) {
  const json::value* found = member(item, key);
  return found != nullptr && found->is_string();
}

const json::array* array_member(const json::value& item, std::string_view key) {
  const json::value* found = member(item, key);
  return found != nullptr ? found->if_array() : nullptr;
}

json::object text_part(const json::value& text) { return json::object{{"text", text}, {"type", "text"}}; }

// `item` with its content replaced, as a message.
json::object as_message(const json::value& item, json::array content) {
  json::object message = item.get_object();
  message.erase("type");
  message.erase("status");
  message["content"] = std::move(content);
  return message;
}

class Messages {
 public:
  Messages(json::array& out, bool& has_media) : out_(out), has_media_(has_media) {}

  // False: the backend would refuse it, or it is new to us.
  bool append(const json::value& item) {
    const std::string type = string_member_or(item, "type");
    const std::string role = string_member_or(item, "role");
    const bool has_content = array_member(item, "content") != nullptr || is_string(item, "content");
    if (has_content && (role == "user" || role == "system" || role == "developer")) return append_input(item);
    if (role == "assistant" && type == "message") return append_output(item);
    if (type == "function_call" && is_string(item, "arguments") && is_string(item, "call_id") && is_string(item, "name")) {
      append_call(item);
      return true;
    }
    if (type == "function_call_output" && is_string(item, "call_id")) return append_result(item);
    if (type == "reasoning" && array_member(item, "summary") != nullptr) return append_thought(item);
    return false;
  }

 private:
  bool append_input(const json::value& item) {
    json::array content;
    if (is_string(item, "content")) {
      content.push_back(text_part(*member(item, "content")));
    } else {
      for (const json::value& part : item.at("content").get_array()) {
        const std::string type = string_member_or(part, "type");
        const json::value* text = member(part, "text");
        if (type == "input_text" && text != nullptr) {
          content.push_back(text_part(*text));
        } else if (type == "input_image") {
          has_media_ = true;
        } else {
          return false;
        }
      }
    }
    out_.push_back(as_message(item, std::move(content)));
    return true;
  }

  bool append_output(const json::value& item) {
    json::array content;
    if (is_string(item, "content")) {
      content.push_back(text_part(*member(item, "content")));
    } else if (const json::array* parts = array_member(item, "content")) {
      for (const json::value& part : *parts) {
        const std::string type = string_member_or(part, "type");
        // A refusal is taken over, and then refused by the template's side.
        if ((type != "output_text" && type != "input_text") || !is_string(part, "text")) return false;
        content.push_back(text_part(*member(part, "text")));
      }
    }
    if (json::object* before = assistant_before()) {
      json::array& merged = array_of(*before, "content");
      merged.insert(merged.end(), content.begin(), content.end());
    } else {
      out_.push_back(as_message(item, std::move(content)));
    }
    return true;
  }

  void append_call(const json::value& item) {
    json::object call{{"function", json::object{{"arguments", item.at("arguments")}, {"name", item.at("name")}}},
                      {"id", item.at("call_id")},
                      {"type", "function"}};
    json::object* before = assistant_before();
    if (before == nullptr) before = &out_.emplace_back(json::object{{"role", "assistant"}}).get_object();
    array_of(*before, "tool_calls").push_back(std::move(call));
  }

  bool append_result(const json::value& item) {
    json::value content;
    if (is_string(item, "output")) {
      content = item.at("output");
    } else if (const json::array* parts = array_member(item, "output")) {
      json::array converted;
      for (const json::value& part : *parts) {
        const std::string type = string_member_or(part, "type");
        if (type == "input_image") {
          has_media_ = true;
        } else if (type != "input_text") {
          return false;
        }
        json::object text = part.get_object();
        text["type"] = "text";
        converted.push_back(std::move(text));
      }
      content = std::move(converted);
    } else {
      return false;
    }
    out_.push_back(json::object{{"content", std::move(content)}, {"role", "tool"}, {"tool_call_id", item.at("call_id")}});
    return true;
  }

  bool append_thought(const json::value& item) {
    const json::array* content = array_member(item, "content");
    if (content == nullptr || content->empty() || !is_string(content->front(), "text")) return false;
    json::object* before = assistant_before();
    if (before == nullptr) before = &out_.emplace_back(json::object{{"role", "assistant"}, {"content", json::array{}}}).get_object();
    (*before)["reasoning_content"] = content->front().at("text");
    return true;
  }

  json::object* assistant_before() {
    if (out_.empty() || string_member_or(out_.back(), "role") != "assistant") return nullptr;
    return &out_.back().get_object();
  }

  static json::array& array_of(json::object& message, std::string_view key) {
    json::value& value = message[key];
    if (!value.is_array()) value = json::array{};
    return value.get_array();
  }

  json::array& out_;
  bool& has_media_;
};

// Only functions have a counterpart in chats.
json::array chat_tools(const json::array& tools) {
  json::array converted;
  for (const json::value& tool : tools) {
    if (string_member_or(tool, "type") != "function") continue;
    json::object function = tool.get_object();
    function.erase("type");
    if (!function.contains("strict")) function["strict"] = true;
    converted.push_back(json::object{{"type", "function"}, {"function", std::move(function)}});
  }
  return converted;
}

}  // namespace

Result<ConvertedChat> chat_of_responses(std::string_view text) {
  Result<json::object> parsed = parse_object(text);
  if (!parsed) return parsed.error();
  const json::value body(std::move(*parsed));
  const json::value* input = member(body, "input");
  if (input == nullptr || !(input->is_string() || input->is_array())) return refused("no input");
  if (!string_member_or(body, "previous_response_id").empty()) return refused("the backend keeps no answers");

  ConvertedChat chat;
  json::array converted;
  if (member(body, "instructions") != nullptr) {
    converted.push_back(json::object{{"role", "system"}, {"content", string_member_or(body, "instructions")}});
  }
  if (input->is_string()) {
    converted.push_back(json::object{{"role", "user"}, {"content", *input}});
  } else {
    Messages messages(converted, chat.has_media);
    for (const json::value& item : input->get_array()) {
      if (!messages.append(item)) return refused("an item of unknown kind");
    }
  }

  json::object out = body.get_object();
  for (const std::string_view key : {"input", "instructions", "tools", "reasoning", "max_output_tokens"}) out.erase(key);
  out["messages"] = std::move(converted);
  if (const json::value* tools = member(body, "tools")) {
    if (!tools->is_array()) return refused("tools");
    json::array functions = chat_tools(tools->get_array());
    if (!functions.empty()) out["tools"] = std::move(functions);
  }
  const json::value* reasoning = member(body, "reasoning");
  if (const json::value* effort = reasoning != nullptr ? member(*reasoning, "effort") : nullptr) out["reasoning_effort"] = *effort;
  chat.body = json::serialize(out);
  return chat;
}

}  // namespace cairn

#include "request/system_end.hpp"

#include <simdjson.h>

#include <algorithm>
#include <string>

namespace cairn {

namespace {

namespace ondemand = simdjson::ondemand;

// What a message says first: its content, or the text of its first part that has some.
std::string text_of(ondemand::value content) {
  std::string_view text;
  ondemand::array parts;
  if (content.get_string().get(text) == simdjson::SUCCESS) return std::string{text};
  if (content.get_array().get(parts) != simdjson::SUCCESS) return {};
  for (auto part : parts) {
    ondemand::object members;
    if (part.get_object().get(members) != simdjson::SUCCESS) return {};
    if (members.find_field_unordered("text").get_string().get(text) == simdjson::SUCCESS) return std::string{text};
  }
  return {};
}

struct Opening {
  std::string system;  // the last system message before the first of another role
  std::string first;   // what that one says
  bool tools = false;
};

Opening opening_of(std::string_view body) {
  Opening opening;
  const simdjson::padded_string padded{body};
  ondemand::parser parser;
  ondemand::document document;
  ondemand::object object;
  if (parser.iterate(padded).get(document) != simdjson::SUCCESS || document.get_object().get(object) != simdjson::SUCCESS) return opening;
  for (auto field : object) {
    std::string_view key;
    ondemand::value value;
    ondemand::array list;
    if (field.unescaped_key().get(key) != simdjson::SUCCESS || field.value().get(value) != simdjson::SUCCESS) return {};
    if (key != "tools" && key != "messages") continue;
    if (value.get_array().get(list) != simdjson::SUCCESS) continue;
    if (key == "tools") {
      bool empty = true;
      opening.tools = list.is_empty().get(empty) == simdjson::SUCCESS && !empty;
      continue;
    }
    opening.system.clear();
    opening.first.clear();
    for (auto item : list) {
      ondemand::object message;
      if (item.get_object().get(message) != simdjson::SUCCESS) return {};
      std::string role, said;
      for (auto member : message) {
        std::string_view name, text;
        ondemand::value inside;
        if (member.unescaped_key().get(name) != simdjson::SUCCESS || member.value().get(inside) != simdjson::SUCCESS) return {};
        if (name == "role" && inside.get_string().get(text) == simdjson::SUCCESS) role = text;
        if (name == "content") said = text_of(inside);
      }
      if (role == "system" || role == "developer") {
        opening.system = std::move(said);
        continue;
      }
      opening.first = std::move(said);
      break;
    }
  }
  return opening;
}

// Templates trim what messages say.
std::string_view trimmed(std::string_view text) {
  constexpr std::string_view space = " \t\r\n";
  const std::size_t begin = text.find_first_not_of(space);
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(space) - begin + 1);
}

}  // namespace

std::size_t system_end_bytes(std::string_view body, std::string_view prompt) {
  constexpr std::size_t looked_for = 256;  // bytes of either text: enough to know it by
  const Opening opening = opening_of(body);
  std::string_view system = trimmed(opening.system);
  const std::string_view first = trimmed(opening.first).substr(0, looked_for);
  if (first.empty() || (system.empty() && !opening.tools)) return 0;
  if (system.size() > looked_for) system.remove_prefix(system.size() - looked_for);
  const std::size_t system_at = prompt.find(system);
  if (system_at == std::string_view::npos) return 0;
  const std::size_t at = prompt.find(first, system_at + system.size());
  return at == std::string_view::npos ? 0 : at;
}

}  // namespace cairn

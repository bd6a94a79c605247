#include "request/model_name.hpp"

#include <simdjson.h>

#include <charconv>

#include "backend/http_text.hpp"

namespace cairn {

namespace {

std::optional<std::string> unless_empty(std::string name) {
  if (name.empty()) return std::nullopt;
  return name;
}

std::string percent_decoded(std::string_view text) {
  std::string decoded;
  for (std::size_t i = 0; i < text.size(); ++i) {
    unsigned char byte = 0;
    if (text[i] == '%' && i + 2 < text.size()) {
      const char* const digits = text.data() + i + 1;
      if (std::from_chars(digits, digits + 2, byte, 16).ptr == digits + 2) {
        decoded += static_cast<char>(byte);
        i += 2;
        continue;
      }
    }
    decoded += text[i] == '+' ? ' ' : text[i];
  }
  return decoded;
}

std::optional<std::string> in_json(std::string_view body) {
  constexpr std::string_view byte_order_mark = "\xef\xbb\xbf";  // llama-server takes it
  if (body.starts_with(byte_order_mark)) body.remove_prefix(byte_order_mark.size());
  const simdjson::padded_string padded{body};
  simdjson::ondemand::parser parser;
  simdjson::ondemand::document document;
  simdjson::ondemand::object object;
  if (parser.iterate(padded).get(document) != simdjson::SUCCESS || document.get_object().get(object) != simdjson::SUCCESS) return std::nullopt;
  std::string name;
  for (auto field : object) {
    std::string_view key;
    simdjson::ondemand::value value;
    if (field.unescaped_key().get(key) != simdjson::SUCCESS) return std::nullopt;
    const bool is_model = key == "model";
    if (field.value().get(value) != simdjson::SUCCESS) return std::nullopt;
    if (!is_model) continue;
    std::string_view text;
    name.clear();
    if (value.get_string().get(text) == simdjson::SUCCESS) name = text;
  }
  return unless_empty(std::move(name));
}

// A field that is no file: its head ends with an empty line, its text with the line before the next boundary.
std::optional<std::string> in_form(std::string_view body) {
  constexpr std::string_view field = "; name=\"model\"", head_end = "\r\n\r\n", text_end = "\r\n--";
  const std::size_t at = body.find(field);
  if (at == std::string_view::npos) return std::nullopt;
  const std::size_t head = body.find(head_end, at);
  if (head == std::string_view::npos) return std::nullopt;
  const std::size_t from = head + head_end.size();
  const std::size_t to = body.find(text_end, from);
  if (to == std::string_view::npos) return std::nullopt;
  return unless_empty(std::string{body.substr(from, to - from)});
}

}  // namespace

std::optional<std::string> model_in_query(std::string_view target) {
  const std::size_t mark = target.find('?');
  std::string_view query = mark == std::string_view::npos ? std::string_view{} : target.substr(mark + 1);
  constexpr std::string_view key = "model=";
  while (!query.empty()) {
    const std::size_t end = query.find('&');
    const std::string_view item = query.substr(0, end);
    if (item.starts_with(key)) return unless_empty(percent_decoded(item.substr(key.size())));
    query = end == std::string_view::npos ? std::string_view{} : query.substr(end + 1);
  }
  return std::nullopt;
}

std::optional<std::string> model_in_body(std::string_view content_type, std::string_view body) {
  constexpr std::string_view form = "multipart/form-data";
  return iequals(content_type.substr(0, form.size()), form) ? in_form(body) : in_json(body);
}

}  // namespace cairn

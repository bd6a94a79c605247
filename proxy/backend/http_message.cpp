#include "backend/http_message.hpp"

#include <algorithm>
#include <array>

#include "backend/http_text.hpp"

namespace cairn {

namespace {

// RFC 9110 section 7.6.1, with the older names that clients still send.
constexpr std::array<std::string_view, 10> hop_by_hop = {
    "Connection", "Proxy-Connection", "Keep-Alive",          "TE",      "Trailer",
    "Upgrade",    "Transfer-Encoding", "Proxy-Authorization", "Content-Length", "Proxy-Authenticate"};

}  // namespace

std::optional<std::string_view> HeaderFields::get(std::string_view name) const {
  for (const HeaderField& field : fields) {
    if (iequals(field.name, name)) return field.value;
  }
  return std::nullopt;
}

bool HeaderFields::has_token(std::string_view name, std::string_view token) const {
  for (const HeaderField& field : fields) {
    if (!iequals(field.name, name)) continue;
    std::string_view rest = field.value;
    while (!rest.empty()) {
      if (iequals(take_list_item(rest), token)) return true;
    }
  }
  return false;
}

void HeaderFields::set(std::string_view name, std::string_view value) {
  auto first = std::find_if(fields.begin(), fields.end(), [&](const auto& field) { return iequals(field.name, name); });
  if (first == fields.end()) {
    add(name, value);
    return;
  }
  first->value = value;
  auto others = [&](const auto& field) { return iequals(field.name, name); };
  fields.erase(std::remove_if(first + 1, fields.end(), others), fields.end());
}

void HeaderFields::add(std::string_view name, std::string_view value) {
  fields.push_back(HeaderField{std::string(name), std::string(value)});
}

void HeaderFields::erase(std::string_view name) {
  std::erase_if(fields, [&](const auto& field) { return iequals(field.name, name); });
}

bool is_event_stream(const HeaderFields& fields) {
  const std::string_view type = fields.get("Content-Type").value_or("");
  return iequals(type.substr(0, type.find_first_of("; \t")), "text/event-stream");
}

void erase_hop_by_hop(HeaderFields& fields) {
  std::vector<std::string> named;
  for (const HeaderField& field : fields.fields) {
    if (!iequals(field.name, "Connection")) continue;
    std::string_view rest = field.value;
    while (!rest.empty()) {
      const std::string_view item = take_list_item(rest);
      if (!item.empty()) named.emplace_back(item);
    }
  }
  for (const std::string& name : named) fields.erase(name);
  for (const std::string_view name : hop_by_hop) fields.erase(name);
}

std::string_view RequestHead::path() const {
  const std::string_view view = target;
  return view.substr(0, view.find('?'));
}

}  // namespace cairn

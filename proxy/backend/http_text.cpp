#include "backend/http_text.hpp"

#include <cstdio>

namespace cairn {

namespace {

char lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; }

bool is_framing(std::string_view name) {
  return iequals(name, "Content-Length") || iequals(name, "Transfer-Encoding");
}

void append_field(std::string& out, std::string_view name, std::string_view value) {
  out.append(name).append(": ").append(value).append("\r\n");
}

void append_framing(std::string& out, BodyFraming framing) {
  if (framing.kind == BodyFraming::Kind::length) append_field(out, "Content-Length", std::to_string(framing.length));
  if (framing.kind == BodyFraming::Kind::chunked) append_field(out, "Transfer-Encoding", "chunked");
}

}  // namespace

bool iequals(std::string_view a, std::string_view b) {
  if (a.size() != b.size()) return false;
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (lower(a[i]) != lower(b[i])) return false;
  }
  return true;
}

std::string_view trim(std::string_view text) {
  const auto first = text.find_first_not_of(" \t");
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(" \t") - first + 1);
}

std::string_view take_list_item(std::string_view& rest) {
  const auto comma = rest.find(',');
  const std::string_view item = trim(rest.substr(0, comma));
  rest = comma == std::string_view::npos ? std::string_view{} : rest.substr(comma + 1);
  return item;
}

void append_fields(std::string& out, const HeaderFields& fields, BodyFraming framing) {
  HeaderFields end_to_end = fields;
  erase_hop_by_hop(end_to_end);
  // What erase_hop_by_hop kept is a subsequence of `fields`: walk both to find the place of the framing field.
  bool framed = false;
  auto kept = end_to_end.fields.begin();
  for (const HeaderField& field : fields.fields) {
    if (is_framing(field.name) && !framed) {
      append_framing(out, framing);
      framed = true;
    } else if (kept != end_to_end.fields.end() && kept->name == field.name && kept->value == field.value) {
      append_field(out, field.name, field.value);
      ++kept;
    }
  }
  if (!framed) append_framing(out, framing);
}

std::string request_head_text(const RequestHead& head, BodyFraming framing, std::string_view host) {
  RequestHead sent = head;
  sent.fields.erase("Expect");  // the body follows without waiting: nobody here would wait for the 100
  if (sent.fields.get("Host")) {
    sent.fields.set("Host", host);
  } else {
    sent.fields.fields.insert(sent.fields.fields.begin(), HeaderField{"Host", std::string(host)});
  }
  std::string out = sent.method + " " + sent.target + " HTTP/1.1\r\n";
  append_fields(out, sent.fields, framing);
  out += "\r\n";
  return out;
}

std::string chunk_prefix(std::size_t bytes) {
  char text[24];
  const int length = std::snprintf(text, sizeof text, "%zx\r\n", bytes);
  return std::string(text, static_cast<std::size_t>(length));
}

}  // namespace cairn

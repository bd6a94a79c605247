#include "http/framing_guard.hpp"

#include <algorithm>

#include "backend/http_text.hpp"

namespace cairn {

namespace {

bool is_token_char(char c) {
  if ((c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z')) return true;
  return std::string_view("!#$%&'*+-.^_`|~").find(c) != std::string_view::npos;
}
bool is_token(std::string_view text) { return !text.empty() && std::all_of(text.begin(), text.end(), is_token_char); }
bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_control(char c) { return (static_cast<unsigned char>(c) < 0x20 && c != '\t') || c == 0x7f; }

HeadRejection bad(std::string reason) { return HeadRejection{400, std::move(reason)}; }

// What the fields said so far about framing.
struct Seen {
  int version = 11;
  int hosts = 0;
  int encodings = 0;
  std::optional<std::string_view> length;
};

std::optional<HeadRejection> check_request_line(std::string_view line, Seen& seen) {
  const auto first = line.find(' ');
  const auto last = line.rfind(' ');
  if (first == std::string_view::npos || first == last) return bad("the request line is not METHOD TARGET VERSION");
  const std::string_view method = line.substr(0, first);
  const std::string_view target = line.substr(first + 1, last - first - 1);
  const std::string_view version = line.substr(last + 1);
  if (!is_token(method)) return bad("the method is not a token");
  if (target.empty() || target.find_first_of(" \t") != std::string_view::npos) return bad("the target has spaces");
  const bool absolute = iequals(target.substr(0, 7), "http://") || iequals(target.substr(0, 8), "https://");
  if (target.front() != '/' && target != "*" && !absolute) return bad("the target is no path");
  if (version.size() != 8 || !version.starts_with("HTTP/") || !is_digit(version[5]) || version[6] != '.' ||
      !is_digit(version[7])) {
    return bad("the version is not HTTP/1.1");
  }
  if (version != "HTTP/1.1" && version != "HTTP/1.0") return HeadRejection{505, "only HTTP/1.1 and HTTP/1.0 are spoken"};
  seen.version = version == "HTTP/1.1" ? 11 : 10;
  return std::nullopt;
}

std::optional<HeadRejection> check_field(std::string_view line, Seen& seen) {
  if (line.front() == ' ' || line.front() == '\t') return bad("a folded header line");
  const auto colon = line.find(':');
  if (colon == std::string_view::npos) return bad("a header line without a colon");
  const std::string_view name = line.substr(0, colon);
  if (!is_token(name)) return bad("a header name that is not a token (a space before the colon?)");
  const std::string_view value = trim(line.substr(colon + 1));

  if (iequals(name, "Host")) {
    ++seen.hosts;
    if (value.find_first_of(" \t,/?#@\\") != std::string_view::npos) return bad("a bad Host");
  } else if (iequals(name, "Content-Length")) {
    // 18 digits: far more than any body, and no overflow anywhere.
    if (value.empty() || value.size() > 18 || !std::all_of(value.begin(), value.end(), is_digit)) {
      return bad("a bad Content-Length");
    }
    if (seen.length && *seen.length != value) return bad("Content-Length twice, with different values");
    seen.length = value;
  } else if (iequals(name, "Transfer-Encoding")) {
    ++seen.encodings;
    if (!iequals(value, "chunked")) return bad("a Transfer-Encoding other than chunked");
  }
  return std::nullopt;
}

}  // namespace

std::optional<std::size_t> find_head_end(std::string_view bytes, std::size_t& scanned) {
  for (auto feed = bytes.find('\n', scanned); feed != std::string_view::npos; feed = bytes.find('\n', feed + 1)) {
    const std::string_view next = bytes.substr(feed + 1);
    if (next.starts_with('\n')) return feed + 2;
    if (next.starts_with("\r\n")) return feed + 3;
    if (next.empty() || next == "\r") {  // undecided: look at this line feed again
      scanned = feed;
      return std::nullopt;
    }
  }
  scanned = bytes.size();
  return std::nullopt;
}

std::optional<HeadRejection> check_head(std::string_view head) {
  if (head.find('\0') != std::string_view::npos) return bad("a NUL in the head");
  Seen seen;
  bool first = true;
  while (!head.empty()) {
    const auto feed = head.find('\n');
    if (feed == std::string_view::npos || feed == 0 || head[feed - 1] != '\r') {
      return bad("a line that does not end in CRLF");
    }
    const std::string_view line = head.substr(0, feed - 1);
    head.remove_prefix(feed + 1);
    if (line.find('\r') != std::string_view::npos) return bad("a bare CR in the head");
    if (std::any_of(line.begin(), line.end(), is_control)) return bad("a control character in the head");
    if (line.empty()) {
      if (first) return bad("an empty head");
      break;
    }
    auto rejection = first ? check_request_line(line, seen) : check_field(line, seen);
    if (rejection) return rejection;
    first = false;
  }
  if (!head.empty()) return bad("an empty line inside the head");
  if (seen.encodings > 1) return bad("Transfer-Encoding twice");
  if (seen.encodings > 0 && seen.length) return bad("both Transfer-Encoding and Content-Length");
  if (seen.encodings > 0 && seen.version < 11) return bad("Transfer-Encoding in HTTP/1.0");
  if (seen.hosts > 1) return bad("Host twice");
  return std::nullopt;
}

}  // namespace cairn

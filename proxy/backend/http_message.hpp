// HTTP/1.1 message heads as plain data, so that only the files that parse and write them need Beast.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace cairn {

struct HeaderField {
  std::string name;  // as received, case kept
  std::string value;
};

class HeaderFields {
 public:
  std::vector<HeaderField> fields;  // in order, duplicates kept

  // First field of that name, case-insensitive; nullopt when there is none.
  std::optional<std::string_view> get(std::string_view name) const;
  bool has_token(std::string_view name, std::string_view token) const;  // in a comma-separated list, e.g. Connection: close
  void set(std::string_view name, std::string_view value);              // replaces all of that name
  void add(std::string_view name, std::string_view value);
  void erase(std::string_view name);
};

// Content-Type says text/event-stream, with parameters or without.
bool is_event_stream(const HeaderFields& fields);

// Removes the fields that belong to one connection and not to the message (RFC 9110 section 7.6.1), those named by
// Connection included, and the framing fields: whoever writes the message sets its own.
void erase_hop_by_hop(HeaderFields& fields);

struct RequestHead {
  std::string method;
  std::string target;  // path and query as received
  int version = 11;    // 10 or 11
  HeaderFields fields;

  std::string_view path() const;  // target up to '?'
};

struct ResponseHead {
  int status = 0;
  std::string reason;
  int version = 11;
  HeaderFields fields;
};

// How a body is delimited on the wire.
struct BodyFraming {
  enum class Kind { none, length, chunked, until_close } kind = Kind::none;
  std::uint64_t length = 0;  // bytes, for Kind::length
};

}  // namespace cairn

// Incremental parser of one HTTP/1.1 message, head and decoded body: the only place that knows Beast.
// Errors: malformed, header_too_large, closed; source downstream for requests, upstream for answers.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string_view>

#include "backend/http_message.hpp"
#include "base/result.hpp"

namespace cairn {

class MessageParser {
 public:
  enum class Kind { request, response };
  struct Piece {
    std::size_t consumed = 0;  // of the input
    std::size_t produced = 0;  // into the output
  };

  MessageParser(Kind kind, std::size_t max_head_bytes);
  ~MessageParser();
  MessageParser(MessageParser&&) noexcept;
  MessageParser& operator=(MessageParser&&) noexcept;

  void skip_body();  // the answer to a HEAD; before the first byte

  // Both take bytes from the front of `input` and want the rest again, followed by more.
  Result<std::size_t> parse_head(std::string_view input);
  Result<Piece> parse_body(std::string_view input, std::span<char> output);
  // The peer has ended the connection: right for an until_close body, else `closed`.
  Result<void> end_of_input();

  bool head_done() const;
  bool done() const;  // the whole message
  bool keep_alive() const;
  BodyFraming framing() const;
  RequestHead& request();
  ResponseHead& response();

 private:
  struct Implementation;
  template <bool is_request>
  struct Parser;
  std::unique_ptr<Implementation> implementation_;
};

}  // namespace cairn

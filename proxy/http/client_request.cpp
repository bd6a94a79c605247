#include "http/client_request.hpp"

#include <algorithm>
#include <utility>

#include "backend/http_text.hpp"

namespace cairn {

namespace asio = boost::asio;

namespace {

using Kind = BodyFraming::Kind;

constexpr std::size_t piece_bytes = 64 * 1024;

// A status that never has a body, whatever its fields say.
bool bodiless(int status) { return status / 100 == 1 || status == 204 || status == 304; }

// Answers without a body may still say how long it would be: those fields are the backend's to state.
void append_head_fields(std::string& out, const HeaderFields& fields) {
  HeaderFields kept = fields;
  const auto length = fields.get("Content-Length");
  const auto encoding = fields.get("Transfer-Encoding");
  BodyFraming stated;
  if (encoding) {
    stated.kind = Kind::chunked;
  } else if (length && length->size() <= 18 && length->find_first_not_of("0123456789") == std::string_view::npos &&
             !length->empty()) {
    stated.kind = Kind::length;
    stated.length = std::stoull(std::string(*length));
  }
  append_fields(out, kept, stated);
}

}  // namespace

ClientRequest::ClientRequest(std::shared_ptr<ClientConnection> connection, MessageParser parser,
                             ClientRequestOptions options)
    : connection_(std::move(connection)),
      parser_(std::move(parser)),
      options_(options),
      head_(parser_.request()),
      framing_(parser_.framing()),
      is_head_(head_.method == "HEAD"),
      continue_pending_(head_.version >= 11 && !parser_.done() && head_.fields.has_token("Expect", "100-continue")),
      reuse_(parser_.keep_alive()) {}

void ClientRequest::begin() {
  if (parser_.done()) body_ended();
}

void ClientRequest::body_ended() {
  connection_->start_watch([this] { client_gone(); });
}

void ClientRequest::client_gone() {
  aborted_ = true;
  reuse_ = false;
  cancel_.cancel();
}

Error ClientRequest::gone() const { return downstream_error(ErrorCode::closed, "the client has left"); }

ResultTask<void> ClientRequest::send_continue() {
  continue_pending_ = false;
  if (head_written_ || !connection_->input().empty()) co_return Result<void>{};  // it does not wait for it
  std::vector<asio::const_buffer> buffers;
  buffers.push_back(asio::buffer("HTTP/1.1 100 Continue\r\n\r\n", 25));
  co_return co_await connection_->write(std::move(buffers));
}

ResultTask<std::size_t> ClientRequest::read_some(std::span<char> into) {
  if (aborted_) co_return gone();
  if (continue_pending_) {
    auto sent = co_await send_continue();
    if (!sent) {
      client_gone();
      co_return sent.error();
    }
  }
  for (;;) {
    if (parser_.done() || into.empty()) co_return std::size_t{0};
    auto& input = connection_->input();
    auto piece = parser_.parse_body(input.view(), into);
    if (!piece) {
      reuse_ = false;
      co_return piece.error();
    }
    input.consume(piece->consumed);
    body_bytes_ += piece->produced;
    if (body_bytes_ > options_.max_body_bytes) {
      reuse_ = false;
      co_return downstream_error(ErrorCode::body_too_large,
                                 "a request body of more than " + std::to_string(options_.max_body_bytes) + " bytes");
    }
    if (parser_.done()) body_ended();
    if (piece->produced > 0 || parser_.done()) co_return piece->produced;
    if (input.size() > piece_bytes) {
      reuse_ = false;
      co_return downstream_error(ErrorCode::malformed, "an endless chunk header");
    }
    auto count = co_await connection_->read_more(options_.body_timeout);
    if (count && *count > 0) continue;
    reuse_ = false;
    if (!count && count.error().code == ErrorCode::timeout) co_return count.error();
    client_gone();
    co_return count ? gone() : count.error();
  }
}

ResultTask<std::string> ClientRequest::read_body(std::size_t max_bytes) {
  const std::size_t limit = std::min(max_bytes, options_.max_body_bytes);
  const std::string too_large = "a request body of more than " + std::to_string(limit) + " bytes";
  std::string body;
  if (framing_.kind == Kind::length) {
    if (framing_.length > limit) {
      reuse_ = false;
      co_return downstream_error(ErrorCode::body_too_large, too_large);
    }
    // Grown as it comes beyond a megabyte: an announced length costs the client nothing.
    body.reserve(std::min<std::size_t>(framing_.length + 1, 1 << 20));
  }
  std::vector<char> piece(piece_bytes);
  for (;;) {
    auto count = co_await read_some(piece);
    if (!count) co_return count.error();
    if (*count == 0) co_return body;
    if (body.size() + *count > limit) {
      reuse_ = false;
      co_return downstream_error(ErrorCode::body_too_large, too_large);
    }
    body.append(piece.data(), *count);
  }
}

ResultTask<void> ClientRequest::write_head(const ResponseHead& head, BodyFraming framing) {
  if (aborted_) co_return gone();
  if (head_written_) co_return internal_error("two heads for one answer");
  head_written_ = true;
  if (framing.kind == Kind::chunked && head_.version < 11) framing.kind = Kind::until_close;
  answer_ = framing;
  if (is_head_ || bodiless(head.status)) {
    answer_.kind = Kind::none;
  } else if (framing.kind == Kind::none) {
    framing.kind = Kind::length;  // no body, but the client must be told so
    answer_ = framing;
  }
  if (answer_.kind == Kind::until_close || continue_pending_) reuse_ = false;

  std::string text = "HTTP/1.1 " + std::to_string(head.status) + " " + head.reason + "\r\n";
  if (answer_.kind == Kind::none && head.status != 204) {
    append_head_fields(text, head.fields);
  } else {
    append_fields(text, head.fields, answer_);
  }
  if (!reuse_) {
    text += "Connection: close\r\n";
  } else if (head_.version < 11) {
    text += "Connection: keep-alive\r\n";
  }
  text += "\r\n";
  std::vector<asio::const_buffer> buffers;
  buffers.push_back(asio::buffer(text));
  auto written = co_await connection_->write(std::move(buffers));
  if (!written) client_gone();
  co_return written;
}

ResultTask<void> ClientRequest::write_body(std::span<const char> bytes) {
  if (aborted_) co_return gone();
  if (bytes.empty() || is_head_) co_return Result<void>{};
  if (!head_written_ || finished_ || answer_.kind == Kind::none) {
    abort();
    co_return internal_error("body bytes where the answer has none");
  }
  answer_bytes_ += bytes.size();
  if (answer_.kind == Kind::length && answer_bytes_ > answer_.length) {
    abort();
    co_return internal_error("an answer longer than announced");
  }
  std::string prefix;
  std::vector<asio::const_buffer> buffers;
  if (answer_.kind == Kind::chunked) {
    prefix = chunk_prefix(bytes.size());
    buffers.push_back(asio::buffer(prefix));
  }
  buffers.push_back(asio::buffer(bytes.data(), bytes.size()));
  if (answer_.kind == Kind::chunked) buffers.push_back(asio::buffer("\r\n", 2));
  auto written = co_await connection_->write(std::move(buffers));
  if (!written) client_gone();
  co_return written;
}

ResultTask<void> ClientRequest::finish() {
  if (aborted_) co_return gone();
  if (finished_) co_return Result<void>{};
  if (!head_written_ || (answer_.kind == Kind::length && answer_bytes_ != answer_.length)) {
    abort();
    co_return internal_error("an answer shorter than announced");
  }
  if (answer_.kind == Kind::chunked) {
    std::vector<asio::const_buffer> buffers;
    buffers.push_back(asio::buffer("0\r\n\r\n", 5));
    auto written = co_await connection_->write(std::move(buffers));
    if (!written) {
      client_gone();
      co_return written;
    }
  }
  finished_ = true;
  co_return Result<void>{};
}

void ClientRequest::abort() {
  reuse_ = false;
  if (finished_) {
    connection_->cancel_read();
    return;
  }
  aborted_ = true;
  // Where only the end of the connection ends the body, nothing but a reset shows that it is not whole.
  if (head_written_ && answer_.kind == Kind::until_close) {
    connection_->reset();
  } else {
    connection_->close();
  }
}

Task<bool> ClientRequest::complete() {
  if (!finished_ && !aborted_) abort();
  co_await connection_->stop_watch();
  if (aborted_ || !reuse_ || connection_->closed()) co_return false;
  std::vector<char> piece(piece_bytes);
  std::size_t drained = 0;
  const auto over = [this, &drained] { return drained > options_.max_drain_bytes; };
  if (framing_.kind == Kind::length && !parser_.done() && framing_.length - body_bytes_ > options_.max_drain_bytes) {
    co_return false;
  }
  while (!parser_.done() && !over()) {
    auto count = co_await read_some(piece);
    if (!count) co_return false;
    drained += *count;
  }
  co_await connection_->stop_watch();
  co_return reuse_ && !over() && !connection_->closed();
}

}  // namespace cairn

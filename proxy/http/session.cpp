#include "http/session.hpp"

#include <spdlog/spdlog.h>

#include <exception>
#include <utility>

#include "http/framing_guard.hpp"
#include "request/error_answer.hpp"

namespace cairn {

Session::Session(boost::asio::ip::tcp::socket socket, SessionOptions options, RequestHandler& handler)
    : connection_(std::make_shared<ClientConnection>(std::move(socket))), options_(std::move(options)), handler_(handler) {}

Task<void> Session::run() {
  const auto self = shared_from_this();
  Next next = Next::request;
  if (options_.tls != nullptr) next = co_await start_tls();
  while (!draining_ && next == Next::request) next = co_await read_request();
  connection_->close();
}

void Session::drain() {
  draining_ = true;
  if (request_ != nullptr) request_->forbid_reuse();
  if (idle_) connection_->close();
}

void Session::cancel() {
  draining_ = true;
  if (request_ != nullptr) request_->cancel().cancel();
  connection_->close();
}

Task<Session::Next> Session::start_tls() {
  const Result<void> begun = co_await connection_->start_tls(*options_.tls, options_.head_timeout);
  if (begun) co_return Next::request;
  if (begun.error().code == ErrorCode::malformed) co_return co_await refuse(400, "this address speaks TLS: use https://");
  spdlog::debug("{}: {}", connection_->peer(), begun.error().context);
  co_return Next::end;
}

Task<Session::Next> Session::read_request() {
  const std::size_t head_bytes = co_await read_head();
  if (head_bytes == 0) co_return Next::end;
  const std::string_view head = connection_->input().view().substr(0, head_bytes);
  const auto rejection = check_head(head);
  if (rejection) co_return co_await refuse(rejection->status, rejection->reason);
  co_return co_await handle_request(head_bytes);
}

Task<std::size_t> Session::read_head() {
  ByteBuffer& input = connection_->input();
  std::size_t scanned = 0;
  auto until = std::chrono::steady_clock::now() + options_.head_timeout;
  bool begun = false;
  for (;;) {
    // Empty lines before a request are allowed: old clients send one after a body.
    while (!begun && input.view().starts_with("\r\n")) input.consume(2);
    if (!begun && !input.empty() && input.view() != "\r") {
      begun = true;
      until = std::chrono::steady_clock::now() + options_.head_timeout;
    }
    if (const auto end = find_head_end(input.view(), scanned); end && *end <= options_.max_head_bytes) {
      idle_ = false;
      co_return *end;
    }
    if (input.size() > options_.max_head_bytes) {
      co_await refuse(431, "the request's head is longer than " + std::to_string(options_.max_head_bytes) + " bytes");
      co_return std::size_t{0};
    }
    idle_ = !begun;
    auto limit = options_.idle_timeout;
    if (begun) limit = std::chrono::duration_cast<std::chrono::milliseconds>(until - std::chrono::steady_clock::now());
    if (limit.count() < 0) limit = std::chrono::milliseconds(0);
    auto count = co_await connection_->read_more(limit);
    if (count && *count > 0) continue;
    if (!count && count.error().code == ErrorCode::timeout && begun) {
      co_await refuse(408, "the request's head did not come to an end in time");
    }
    co_return std::size_t{0};
  }
}

Task<Session::Next> Session::refuse(int status, std::string_view message) {
  idle_ = false;
  const std::string body = error_body(status, message);
  std::string text = "HTTP/1.1 " + std::to_string(status) + " " + std::string(status_reason(status)) + "\r\n";
  text += "Content-Type: application/json; charset=utf-8\r\nContent-Length: " + std::to_string(body.size());
  text += "\r\nConnection: close\r\n\r\n" + body;
  std::vector<boost::asio::const_buffer> buffers;
  buffers.push_back(boost::asio::buffer(text));
  co_await connection_->write(std::move(buffers));
  co_await connection_->linger_close(options_.linger);
  co_return Next::end;
}

Task<Session::Next> Session::handle_request(std::size_t head_bytes) {
  ByteBuffer& input = connection_->input();
  MessageParser parser(MessageParser::Kind::request, options_.max_head_bytes + 1);
  auto parsed = parser.parse_head(input.view().substr(0, head_bytes));
  if (!parsed || !parser.head_done()) {
    const std::string reason = parsed ? "an incomplete head" : parsed.error().context;
    co_return co_await refuse(400, reason);
  }
  input.consume(*parsed);

  ClientRequest request(connection_, std::move(parser), options_.request);
  if (draining_) request.forbid_reuse();
  const BodyFraming framing = request.request_framing();
  request_ = &request;
  if (framing.kind == BodyFraming::Kind::length && framing.length > options_.request.max_body_bytes) {
    request.forbid_reuse();
    const auto limit = std::to_string(options_.request.max_body_bytes);
    co_await write_error(request, downstream_error(ErrorCode::body_too_large, "the body is longer than " + limit));
  } else {
    request.begin();
    bool failed = false;
    try {
      co_await handler_.handle(request);
    } catch (const std::exception& bug) {
      spdlog::error("bug: {} {} threw: {}", request.head().method, request.head().target, bug.what());
      failed = true;
    }
    if (failed) co_await write_error(request, internal_error("this is a bug; the log says more"));
  }
  const bool reuse = co_await request.complete();
  request_ = nullptr;
  idle_ = true;
  if (reuse) co_return Next::request;
  // Bytes nobody read would turn the close into a reset, which can overtake the answer.
  if (!request.body_read() || !input.empty()) co_await connection_->linger_close(options_.linger);
  co_return Next::end;
}

}  // namespace cairn

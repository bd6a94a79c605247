#include "backend/upstream_exchange.hpp"

#include <utility>

#include "backend/http_text.hpp"

namespace cairn {

namespace {

class UpstreamExchange final : public Exchange {
 public:
  explicit UpstreamExchange(StartedRequest started) : started_(std::move(started)), parser_(make_parser()) {
    sent_all_ = started_.framing.kind == BodyFraming::Kind::none ||
                (started_.framing.kind == BodyFraming::Kind::length && started_.framing.length == 0);
  }
  ~UpstreamExchange() override {
    if (!released_) close();
  }

  ResultTask<void> write_body(std::span<const char> bytes) override {
    if (bytes.empty()) co_return Result<void>{};
    if (released_) co_return upstream_error(ErrorCode::closed, "the backend has answered already");
    const auto connection = started_.connection;
    if (started_.framing.kind == BodyFraming::Kind::chunked) {
      const std::string prefix = chunk_prefix(bytes.size());
      co_return co_await connection->write_chunk(prefix, bytes);
    }
    const std::string_view view(bytes.data(), bytes.size());
    auto written = co_await connection->write(view);
    if (written) sent_bytes_ += bytes.size();
    co_return written;
  }

  ResultTask<void> finish_body() override {
    if (sent_all_) co_return Result<void>{};
    if (released_) co_return upstream_error(ErrorCode::closed, "the backend has answered already");
    const auto connection = started_.connection;
    if (started_.framing.kind == BodyFraming::Kind::chunked) {
      auto written = co_await connection->write("0\r\n\r\n");
      if (!written) co_return written;
    } else if (sent_bytes_ != started_.framing.length) {
      close();
      co_return internal_error("a request body of another length than announced");
    }
    sent_all_ = true;
    co_return Result<void>{};
  }

  ResultTask<ResponseHead> read_head() override {
    const auto connection = started_.connection;
    bool any_byte = false;
    for (;;) {
      if (connection->closed()) co_return upstream_error(ErrorCode::cancelled, "read from the backend");
      while (!connection->input().empty() && !parser_.head_done()) {
        any_byte = true;
        auto consumed = parser_.parse_head(connection->input().view());
        if (!consumed) {
          close();
          co_return consumed.error();
        }
        connection->input().consume(*consumed);
        if (!parser_.head_done()) break;
        const int status = parser_.response().status;
        if (status == 101) {
          close();
          co_return upstream_error(ErrorCode::malformed, "the backend switched protocols unasked");
        }
        if (status / 100 == 1) parser_ = make_parser();
      }
      if (parser_.head_done()) break;
      if (connection->input().size() > started_.max_head_bytes) {
        close();
        co_return upstream_error(ErrorCode::header_too_large, "the backend's answer has too long a head");
      }
      auto count = co_await connection->read_more();
      if (!count || *count == 0) {
        Error error = count ? upstream_error(ErrorCode::closed, "the backend closed the connection without an answer")
                            : count.error();
        error.may_retry = started_.reused && !any_byte && error.code == ErrorCode::closed;
        close();
        co_return error;
      }
    }
    framing_ = parser_.framing();
    ResponseHead head = parser_.response();
    // llama-server closes a connection behind a stream, without a word: the next request on it might be sent before we see that.
    ends_connection_ = framing_.kind == BodyFraming::Kind::chunked && is_event_stream(head.fields);
    if (parser_.done()) release();
    co_return head;
  }

  ResultTask<std::size_t> read_some(std::span<char> into) override {
    const auto connection = started_.connection;
    for (;;) {
      if (parser_.done() || into.empty()) co_return std::size_t{0};
      if (connection->closed()) co_return upstream_error(ErrorCode::cancelled, "read from the backend");
      auto piece = parser_.parse_body(connection->input().view(), into);
      if (!piece) {
        close();
        co_return piece.error();
      }
      connection->input().consume(piece->consumed);
      if (parser_.done()) release();
      if (piece->produced > 0 || parser_.done()) co_return piece->produced;
      if (connection->input().size() > started_.max_head_bytes) {
        close();
        co_return upstream_error(ErrorCode::malformed, "the backend sent an endless chunk header");
      }
      auto count = co_await connection->read_more();
      Result<void> ended;
      if (count && *count == 0) ended = parser_.end_of_input();
      if (!count || !ended) {
        close();
        co_return count ? ended.error() : count.error();
      }
      if (*count == 0) release();
    }
  }

  BodyFraming answer_framing() const override { return framing_; }

  void close() override {
    if (released_) return;  // the connection may serve another request by now
    released_ = true;
    started_.registration.reset();
    started_.connection->close();
  }

 private:
  MessageParser make_parser() const {
    MessageParser parser(MessageParser::Kind::response, started_.max_head_bytes);
    if (started_.is_head) parser.skip_body();
    return parser;
  }

  // The answer has been read to its end: the connection serves the next request, if both sides are done with this one.
  void release() {
    if (released_) return;
    const auto pool = started_.pool.lock();
    const bool clean = sent_all_ && parser_.keep_alive() && !ends_connection_ && started_.connection->input().empty();
    if (!pool || !clean || started_.connection->closed()) {
      close();
      return;
    }
    released_ = true;
    started_.registration.reset();
    pool->give_back(started_.connection);
  }

  StartedRequest started_;
  MessageParser parser_;
  BodyFraming framing_;
  std::uint64_t sent_bytes_ = 0;
  bool sent_all_ = false;
  bool ends_connection_ = false;
  bool released_ = false;
};

}  // namespace

std::unique_ptr<Exchange> make_exchange(StartedRequest started) {
  return std::make_unique<UpstreamExchange>(std::move(started));
}

}  // namespace cairn

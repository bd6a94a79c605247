#include "backend/http_parser.hpp"

#include <boost/beast/http/basic_parser.hpp>

#include <algorithm>

#include "backend/http_text.hpp"

namespace cairn {

namespace http = boost::beast::http;
using BeastError = boost::beast::error_code;
using BeastView = boost::beast::string_view;

namespace {

std::string_view to_view(BeastView text) { return {text.data(), text.size()}; }

}  // namespace

struct MessageParser::Implementation {
  virtual ~Implementation() = default;
  virtual std::size_t feed(std::string_view input, BeastError& error) = 0;
  virtual void feed_end(BeastError& error) = 0;
  virtual void skip() = 0;
  virtual bool is_keep_alive() const = 0;
  virtual bool is_chunked() const = 0;
  virtual bool is_until_close() const = 0;

  Error error(ErrorCode code, std::string context) const {
    return source == ErrorSource::downstream ? downstream_error(code, std::move(context))
                                             : upstream_error(code, std::move(context));
  }
  Error error(const BeastError& cause) const {
    const auto code = cause == http::error::header_limit ? ErrorCode::header_too_large : ErrorCode::malformed;
    return error(code, "parse HTTP: " + cause.message());
  }

  ErrorSource source = ErrorSource::upstream;
  RequestHead request;
  ResponseHead response;
  HeaderFields* fields = nullptr;
  BodyFraming framing;
  bool head_done = false;
  bool done = false;
  std::span<char> output;  // where the body goes, during parse_body
  std::size_t produced = 0;
};

// Beast's parser is an abstract class that calls these functions; its own message types would regroup repeated fields.
template <bool is_request>
struct MessageParser::Parser final : Implementation, http::basic_parser<is_request> {
  using Base = http::basic_parser<is_request>;

  explicit Parser(std::size_t max_head_bytes) {
    this->body_limit(boost::none);
    this->header_limit(static_cast<std::uint32_t>(max_head_bytes));
    source = is_request ? ErrorSource::downstream : ErrorSource::upstream;
    fields = is_request ? &request.fields : &response.fields;
  }

  std::size_t feed(std::string_view input, BeastError& error) override {
    return this->put(boost::asio::const_buffer(input.data(), input.size()), error);
  }
  void feed_end(BeastError& error) override {
    if (this->got_some()) {
      this->put_eof(error);
    } else {
      error = http::error::end_of_stream;
    }
  }
  void skip() override { Base::skip(true); }
  bool is_keep_alive() const override { return Base::keep_alive(); }
  bool is_chunked() const override { return Base::chunked(); }
  bool is_until_close() const override { return Base::need_eof(); }

  void on_request_impl(http::verb, BeastView method, BeastView target, int version, BeastError&) override {
    request.method = to_view(method);
    request.target = to_view(target);
    request.version = version;
  }
  void on_response_impl(int status, BeastView reason, int version, BeastError&) override {
    response.status = status;
    response.reason = to_view(reason);
    response.version = version;
  }
  void on_field_impl(http::field, BeastView name, BeastView value, BeastError&) override {
    if (!head_done) fields->add(to_view(name), to_view(value));  // trailers are dropped
  }
  void on_header_impl(BeastError&) override { head_done = true; }
  void on_body_init_impl(const boost::optional<std::uint64_t>&, BeastError&) override {}
  std::size_t on_body_impl(BeastView body, BeastError&) override { return take(body); }
  void on_chunk_header_impl(std::uint64_t, BeastView, BeastError&) override {}
  std::size_t on_chunk_body_impl(std::uint64_t, BeastView body, BeastError&) override { return take(body); }
  void on_finish_impl(BeastError&) override { done = true; }

  std::size_t take(BeastView body) {
    const std::size_t count = std::min(body.size(), output.size() - produced);
    std::copy_n(body.data(), count, output.data() + produced);
    produced += count;
    return count;
  }
};

MessageParser::MessageParser(Kind kind, std::size_t max_head_bytes) {
  if (kind == Kind::request) {
    implementation_ = std::make_unique<Parser<true>>(max_head_bytes);
  } else {
    implementation_ = std::make_unique<Parser<false>>(max_head_bytes);
  }
}
MessageParser::~MessageParser() = default;
MessageParser::MessageParser(MessageParser&&) noexcept = default;
MessageParser& MessageParser::operator=(MessageParser&&) noexcept = default;

void MessageParser::skip_body() { implementation_->skip(); }

Result<std::size_t> MessageParser::parse_head(std::string_view input) {
  auto& self = *implementation_;
  BeastError error;
  const std::size_t consumed = self.feed(input, error);
  if (error && error != http::error::need_more) return self.error(error);
  if (!self.head_done) return consumed;

  // Beast lets `Transfer-Encoding: gzip` and chunked messages of HTTP/1.0 through.
  const auto encoding = self.fields->get("Transfer-Encoding");
  const int version = self.source == ErrorSource::downstream ? self.request.version : self.response.version;
  if (encoding && (version < 11 || !iequals(trim(*encoding), "chunked") || self.fields->get("Content-Length"))) {
    return self.error(ErrorCode::malformed, "Transfer-Encoding: " + std::string(*encoding));
  }
  if (self.is_chunked() && !self.done) {
    self.framing.kind = BodyFraming::Kind::chunked;
  } else if (self.is_until_close()) {
    self.framing.kind = BodyFraming::Kind::until_close;
  } else if (const auto length = self.fields->get("Content-Length"); length && (!self.done || *length == "0")) {
    self.framing.kind = BodyFraming::Kind::length;
    self.framing.length = std::stoull(std::string(*length));  // Beast has checked the digits
  }
  return consumed;
}

Result<MessageParser::Piece> MessageParser::parse_body(std::string_view input, std::span<char> output) {
  auto& self = *implementation_;
  self.output = output;
  self.produced = 0;
  Piece piece;
  // One put() stops at the end of each chunk: go on, so that a caller learns at once that the body has ended.
  while (!self.done && !input.empty() && self.produced < output.size()) {
    BeastError error;
    const std::size_t consumed = self.feed(input, error);
    if (error && error != http::error::need_more) return self.error(error);
    input.remove_prefix(consumed);
    piece.consumed += consumed;
    if (consumed == 0) break;
  }
  piece.produced = self.produced;
  self.output = {};
  return piece;
}

Result<void> MessageParser::end_of_input() {
  auto& self = *implementation_;
  if (self.done) return {};
  BeastError error;
  if (self.head_done && self.framing.kind != BodyFraming::Kind::until_close) error = http::error::partial_message;
  if (!error) self.feed_end(error);
  if (error) return self.error(ErrorCode::closed, self.head_done ? "ended inside the body" : "ended before the head");
  self.done = true;
  return {};
}

bool MessageParser::head_done() const { return implementation_->head_done; }
bool MessageParser::done() const { return implementation_->done; }
bool MessageParser::keep_alive() const { return implementation_->is_keep_alive(); }
BodyFraming MessageParser::framing() const { return implementation_->framing; }
RequestHead& MessageParser::request() { return implementation_->request; }
ResponseHead& MessageParser::response() { return implementation_->response; }

}  // namespace cairn

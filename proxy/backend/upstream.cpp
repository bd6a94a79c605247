#include "backend/upstream.hpp"

#include <charconv>
#include <utility>

#include "backend/async.hpp"
#include "backend/http_text.hpp"
#include "backend/upstream_exchange.hpp"
#include "backend/upstream_pool.hpp"

namespace cairn {

namespace {

constexpr std::size_t read_bytes = 64 * 1024;

class PooledUpstream final : public Upstream {
 public:
  PooledUpstream(const boost::asio::any_io_executor& executor, UpstreamAddress address, UpstreamOptions options)
      : executor_(executor),
        address_(std::move(address)),
        options_(options),
        pool_(std::make_shared<UpstreamPool>(executor, options)) {}
  ~PooledUpstream() override { pool_->close_idle(); }

  ResultTask<std::unique_ptr<Exchange>> start(const RequestHead& head, BodyFraming framing,
                                              CancelSource& cancel) override {
    const std::string text = request_head_text(head, framing, address_.host_header());
    const bool is_head = head.method == "HEAD";
    for (;;) {
      if (cancel.cancelled()) co_return upstream_error(ErrorCode::cancelled, "before the request was sent");
      auto connection = pool_->take();
      const bool reused = connection != nullptr;
      if (!reused) connection = pool_->make();
      auto registration = cancel.on_cancel([connection] { connection->close(); });
      if (!reused) {
        auto connected = co_await connection->connect(address_, options_.connect_timeout);
        if (!connected) co_return connected.error();
      }
      auto written = co_await connection->write(text);
      if (!written) {
        connection->close();
        if (reused && !cancel.cancelled()) continue;
        co_return written.error();
      }
      StartedRequest started;
      started.pool = pool_;
      started.connection = std::move(connection);
      started.registration = std::move(registration);
      started.framing = framing;
      started.is_head = is_head;
      started.reused = reused;
      started.max_head_bytes = options_.max_head_bytes;
      co_return make_exchange(std::move(started));
    }
  }

  ResultTask<Answer> call(const RequestHead& head, std::string_view body, CallOptions options,
                          CancelSource& cancel) override {
    // Either the caller's cancellation or the time limit ends the call; shared, for the timer may fire late.
    struct Limit {
      CancelSource cancel;
      bool timed_out = false;
    };
    auto limit = std::make_shared<Limit>();
    auto registration = cancel.on_cancel([limit] { limit->cancel.cancel(); });
    boost::asio::steady_timer timer(executor_, options.timeout);
    timer.async_wait([limit](const boost::system::error_code& stopped) {
      if (stopped) return;
      limit->timed_out = true;
      limit->cancel.cancel();
    });
    auto answer = co_await call_once(head, body, options.max_body_bytes, limit->cancel);
    if (!answer && answer.error().may_retry) {
      pool_->close_idle();  // another kept one may have died, too
      answer = co_await call_once(head, body, options.max_body_bytes, limit->cancel);
    }
    timer.cancel();
    if (!answer && limit->timed_out) {
      co_return upstream_error(ErrorCode::timeout, head.method + " " + head.target + " took too long");
    }
    co_return answer;
  }

  const UpstreamAddress& address() const override { return address_; }
  std::size_t open_connections() const override { return pool_->open_connections(); }
  void close_idle() override { pool_->close_idle(); }

 private:
  ResultTask<Answer> call_once(const RequestHead& head, std::string_view body, std::size_t max_body_bytes,
                               CancelSource& cancel) {
    BodyFraming framing;
    if (!body.empty() || head.method == "POST" || head.method == "PUT") {
      framing.kind = BodyFraming::Kind::length;
      framing.length = body.size();
    }
    auto started = co_await start(head, framing, cancel);
    if (!started) co_return started.error();
    const std::unique_ptr<Exchange> exchange = std::move(*started);
    // A failed write is not the end: the backend may have answered already, without reading it all.
    auto sent = co_await exchange->write_body(body);
    if (sent) sent = co_await exchange->finish_body();

    auto answer_head = co_await exchange->read_head();
    if (!answer_head) co_return answer_head.error();
    Answer answer;
    answer.head = std::move(*answer_head);
    const BodyFraming answer_framing = exchange->answer_framing();
    if (answer_framing.kind == BodyFraming::Kind::length) {
      if (answer_framing.length > max_body_bytes) co_return too_large(head);
      answer.body.reserve(answer_framing.length);
    }
    for (;;) {
      const std::size_t had = answer.body.size();
      answer.body.resize(had + read_bytes);
      const std::span<char> room(answer.body.data() + had, read_bytes);
      auto count = co_await exchange->read_some(room);
      if (!count) co_return count.error();
      answer.body.resize(had + *count);
      if (*count == 0) co_return answer;
      if (answer.body.size() > max_body_bytes) co_return too_large(head);
    }
  }

  static Error too_large(const RequestHead& head) {
    return upstream_error(ErrorCode::body_too_large, "the answer to " + head.method + " " + head.target);
  }

  boost::asio::any_io_executor executor_;
  UpstreamAddress address_;
  UpstreamOptions options_;
  std::shared_ptr<UpstreamPool> pool_;
};

Error bad_url(std::string_view url, std::string_view why) {
  Error error = internal_error("backend URL \"" + std::string(url) + "\": " + std::string(why));
  error.code = ErrorCode::invalid;
  return error;
}

}  // namespace

std::string UpstreamAddress::host_header() const {
  const bool is_v6 = host.find(':') != std::string::npos;
  return (is_v6 ? "[" + host + "]" : host) + ":" + port;
}

Result<UpstreamAddress> parse_upstream_url(std::string_view url) {
  const auto scheme_end = url.find("://");
  const std::string_view scheme = url.substr(0, scheme_end);
  const bool tls = iequals(scheme, "https");
  if (scheme_end == std::string_view::npos || !(tls || iequals(scheme, "http"))) {
    return bad_url(url, "want http://HOST:PORT or https://HOST:PORT");
  }
  std::string_view rest = url.substr(scheme_end + 3);
  if (rest.ends_with('/')) rest.remove_suffix(1);
  if (rest.find_first_of("/?#@ ") != std::string_view::npos) return bad_url(url, "no path and no user, only HOST:PORT");

  UpstreamAddress address;
  address.tls = tls;
  if (rest.starts_with('[')) {
    const auto end = rest.find(']');
    if (end == std::string_view::npos) return bad_url(url, "no ] after the address");
    address.host = rest.substr(1, end - 1);
    rest.remove_prefix(end + 1);
  } else {
    const auto colon = rest.find(':');
    address.host = rest.substr(0, colon);
    rest = colon == std::string_view::npos ? std::string_view{} : rest.substr(colon);
  }
  if (address.host.empty()) return bad_url(url, "no host");
  if (rest.empty()) {
    address.port = tls ? "443" : "80";
    return address;
  }
  unsigned port = 0;
  const auto [end, error] = std::from_chars(rest.data() + 1, rest.data() + rest.size(), port);
  if (rest.front() != ':' || error != std::errc{} || end != rest.data() + rest.size() || port == 0 || port > 65535) {
    return bad_url(url, "the port must be a number from 1 to 65535");
  }
  address.port = std::to_string(port);
  return address;
}

std::unique_ptr<Upstream> make_upstream(boost::asio::any_io_executor executor, UpstreamAddress address,
                                        UpstreamOptions options) {
  return std::make_unique<PooledUpstream>(executor, std::move(address), options);
}

}  // namespace cairn

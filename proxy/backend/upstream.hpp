// HTTP connections to one backend: a small pool of keep-alive connections, and one request/answer exchange at a time on each.
// Thread: the I/O thread. Errors: source upstream (refused, unreachable, closed, timeout, malformed, cancelled).
#pragma once

#include <boost/asio/any_io_executor.hpp>

#include <chrono>
#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "backend/http_message.hpp"
#include "backend/tls_context.hpp"
#include "base/cancel.hpp"
#include "base/task.hpp"

namespace cairn {

struct UpstreamAddress {
  std::string host;  // name or address, without brackets
  std::string port;
  bool tls = false;
  std::string host_header() const;  // "127.0.0.1:8080"
};

// "http://127.0.0.1:8080", "https://…" (a path is refused). Errors: invalid.
Result<UpstreamAddress> parse_upstream_url(std::string_view url);

struct UpstreamOptions {
  std::chrono::milliseconds connect_timeout{2000};
  // A pooled connection idle for longer is closed, not reused: llama-server drops idle ones after 5 s.
  std::chrono::milliseconds max_idle{3000};
  std::size_t max_idle_connections = 16;
  std::size_t max_head_bytes = 256 * 1024;
  std::shared_ptr<const TlsContext> tls;  // whom to trust; for addresses with TLS
};

// One request on one connection. Order of calls: (write_body)* finish_body read_head (read_some)*.
// Reading the head may run beside the writing of the body. Destroying an exchange before its answer was read to the end
// closes the connection: llama-server then cancels the task.
class Exchange {
 public:
  virtual ~Exchange() = default;
  virtual ResultTask<void> write_body(std::span<const char> bytes) = 0;
  virtual ResultTask<void> finish_body() = 0;
  // Skips interim answers (1xx).
  virtual ResultTask<ResponseHead> read_head() = 0;
  // Decoded body bytes as they come, never more than `into`; 0 when the body has ended.
  virtual ResultTask<std::size_t> read_some(std::span<char> into) = 0;
  // How the answer's body is delimited; after read_head().
  virtual BodyFraming answer_framing() const = 0;
  // Closes the connection at once; pending and later calls answer `cancelled`. Any number of times.
  virtual void close() = 0;
};

class Upstream {
 public:
  virtual ~Upstream() = default;

  // Connects (or takes a pooled connection that is still open) and writes the head with the given framing; Host,
  // Connection and the framing fields are set here, hop-by-hop fields of `head` are dropped. `cancel` closes it.
  // A pooled connection that turns out to be dead is replaced by a fresh one here; one that dies between here and the
  // first byte of the answer makes read_head() fail with may_retry set.
  virtual ResultTask<std::unique_ptr<Exchange>> start(const RequestHead& head, BodyFraming framing, CancelSource& cancel) = 0;

  struct Answer {
    ResponseHead head;
    std::string body;
  };
  struct CallOptions {
    std::chrono::milliseconds timeout{30000};
    std::size_t max_body_bytes = 256u << 20;
  };
  // A whole small request: retries once when a reused connection was dead. A non-2xx status is an Answer, not an error.
  virtual ResultTask<Answer> call(const RequestHead& head, std::string_view body, CallOptions options,
                                  CancelSource& cancel) = 0;

  virtual const UpstreamAddress& address() const = 0;
  virtual std::size_t open_connections() const = 0;  // busy and idle, for the tests and the status page
  virtual void close_idle() = 0;
};

std::unique_ptr<Upstream> make_upstream(boost::asio::any_io_executor executor, UpstreamAddress address,
                                        UpstreamOptions options);

}  // namespace cairn

#include "backend/upstream_connection.hpp"

#include <boost/asio/connect.hpp>

#include <array>
#include <string>
#include <utility>
#include <vector>

#include "backend/async.hpp"

namespace cairn {

namespace asio = boost::asio;
using tcp = asio::ip::tcp;

namespace {
constexpr std::size_t read_bytes = 64 * 1024;
}

UpstreamConnection::UpstreamConnection(const asio::any_io_executor& executor, std::shared_ptr<std::size_t> open_count,
                                       std::shared_ptr<const TlsContext> tls)
    : stream_(tcp::socket(executor)), tls_(std::move(tls)), resolver_(executor), open_count_(std::move(open_count)) {
  ++*open_count_;
}

UpstreamConnection::~UpstreamConnection() { close(); }

void UpstreamConnection::close() {
  if (closed_) return;
  closed_ = true;
  --*open_count_;
  resolver_.cancel();
  // No goodbye: llama-server peeks at the socket, and where bytes are waiting it takes us for still there and computes on.
  stream_.close();
}

Error UpstreamConnection::failure(const boost::system::error_code& cause, std::string_view doing) const {
  const std::string context = std::string(doing) + ": " + cause.message();
  if (closed_) return upstream_error(ErrorCode::cancelled, context);
  return upstream_error(ErrorCode::closed, context);
}

ResultTask<void> UpstreamConnection::connect(const UpstreamAddress& address, std::chrono::milliseconds timeout) {
  const auto self = shared_from_this();
  const std::string doing = "connect " + address.host_header();
  auto timed_out = std::make_shared<bool>(false);
  asio::steady_timer timer(stream_.socket().get_executor(), timeout);
  timer.async_wait([weak = weak_from_this(), timed_out](const boost::system::error_code& cancelled) {
    const auto connection = weak.lock();
    if (cancelled || !connection) return;
    *timed_out = true;
    connection->close();
  });

  // A resolver starts a thread: addresses do without.
  std::vector<tcp::endpoint> endpoints;
  boost::system::error_code error;
  const auto numeric = asio::ip::make_address(address.host, error);
  if (!error) {
    endpoints.emplace_back(numeric, static_cast<unsigned short>(std::stoul(address.port)));
  } else {
    auto [resolve_error, results] = co_await resolver_.async_resolve(address.host, address.port, use_tuple);
    error = resolve_error;
    for (const auto& result : results) endpoints.push_back(result.endpoint());
  }
  if (!error) {
    auto [connect_error, endpoint] = co_await asio::async_connect(stream_.socket(), endpoints, use_tuple);
    error = connect_error;
  }
  std::string trouble = error.message();
  if (!error && address.tls) {
    error = co_await stream_.start_tls(*tls_, address.host);
    trouble = "TLS: " + stream_.handshake_trouble(*tls_, error);
  }
  timer.cancel();
  if (*timed_out) co_return upstream_error(ErrorCode::unreachable, doing + ": timed out");
  if (closed_) co_return upstream_error(ErrorCode::cancelled, doing);
  if (error) {
    close();
    co_return upstream_error(ErrorCode::refused, doing + ": " + trouble);
  }
  stream_.set_socket_options();
  co_return Result<void>{};
}

ResultTask<void> UpstreamConnection::write_all(std::vector<asio::const_buffer> buffers) {
  const auto self = shared_from_this();
  if (closed_) co_return upstream_error(ErrorCode::cancelled, "write to the backend");
  const boost::system::error_code error = co_await stream_.write(std::move(buffers));
  if (error) co_return failure(error, "write to the backend");
  co_return Result<void>{};
}

ResultTask<void> UpstreamConnection::write(std::string_view bytes) {
  std::vector<asio::const_buffer> buffers;
  buffers.push_back(asio::buffer(bytes));
  return write_all(std::move(buffers));
}

ResultTask<void> UpstreamConnection::write_chunk(std::string_view prefix, std::span<const char> bytes) {
  std::vector<asio::const_buffer> buffers = {asio::buffer(prefix), asio::buffer(bytes.data(), bytes.size()),
                                             asio::buffer("\r\n", 2)};
  return write_all(std::move(buffers));
}

ResultTask<std::size_t> UpstreamConnection::read_more() {
  const auto self = shared_from_this();
  if (closed_) co_return upstream_error(ErrorCode::cancelled, "read from the backend");
  const auto room = input_.prepare(read_bytes);
  const auto [error, count] = co_await stream_.read_some(room);
  if (closed_) co_return failure(asio::error::operation_aborted, "read from the backend");
  if (error == asio::error::eof) co_return std::size_t{0};
  if (error) co_return failure(error, "read from the backend");
  input_.commit(count);
  co_return count;
}

bool UpstreamConnection::quiet() {
  if (closed_ || !input_.empty()) return false;
  std::array<char, 1> byte{};
  return stream_.try_read(byte).error == asio::error::would_block;
}

}  // namespace cairn

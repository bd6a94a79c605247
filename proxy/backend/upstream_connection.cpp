#include "backend/upstream_connection.hpp"

#include <boost/asio/connect.hpp>
#include <boost/asio/write.hpp>

#include <sys/socket.h>

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

UpstreamConnection::UpstreamConnection(const asio::any_io_executor& executor, std::shared_ptr<std::size_t> open_count)
    : socket_(executor), resolver_(executor), open_count_(std::move(open_count)) {
  ++*open_count_;
}

UpstreamConnection::~UpstreamConnection() { close(); }

void UpstreamConnection::close() {
  if (closed_) return;
  closed_ = true;
  --*open_count_;
  boost::system::error_code ignored;
  resolver_.cancel();
  socket_.close(ignored);
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
  asio::steady_timer timer(socket_.get_executor(), timeout);
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
    auto [connect_error, endpoint] = co_await asio::async_connect(socket_, endpoints, use_tuple);
    error = connect_error;
  }
  timer.cancel();
  if (*timed_out) co_return upstream_error(ErrorCode::timeout, doing + ": timed out");
  if (closed_) co_return upstream_error(ErrorCode::cancelled, doing);
  if (error) {
    close();
    co_return upstream_error(ErrorCode::refused, doing + ": " + error.message());
  }
  socket_.set_option(tcp::no_delay(true), error);
  co_return Result<void>{};
}

template <class Buffers>
ResultTask<void> UpstreamConnection::write_all(Buffers buffers) {
  const auto self = shared_from_this();
  if (closed_) co_return upstream_error(ErrorCode::cancelled, "write to the backend");
  auto [error, count] = co_await asio::async_write(socket_, buffers, use_tuple);
  if (error) co_return failure(error, "write to the backend");
  co_return Result<void>{};
}

ResultTask<void> UpstreamConnection::write(std::string_view bytes) { return write_all(asio::buffer(bytes)); }

ResultTask<void> UpstreamConnection::write_chunk(std::string_view prefix, std::span<const char> bytes) {
  const std::array<asio::const_buffer, 3> buffers = {
      asio::buffer(prefix), asio::buffer(bytes.data(), bytes.size()), asio::buffer("\r\n", 2)};
  return write_all(buffers);
}

ResultTask<std::size_t> UpstreamConnection::read_more() {
  const auto self = shared_from_this();
  if (closed_) co_return upstream_error(ErrorCode::cancelled, "read from the backend");
  const auto room = input_.prepare(read_bytes);
  const auto buffer = asio::buffer(room.data(), room.size());
  auto [error, count] = co_await socket_.async_read_some(buffer, use_tuple);
  if (closed_) co_return failure(asio::error::operation_aborted, "read from the backend");
  if (error == asio::error::eof) co_return std::size_t{0};
  if (error) co_return failure(error, "read from the backend");
  input_.commit(count);
  co_return count;
}

bool UpstreamConnection::quiet() {
  if (closed_ || !input_.empty()) return false;
  char byte = 0;
  const auto count = ::recv(socket_.native_handle(), &byte, 1, MSG_PEEK | MSG_DONTWAIT);
  return count < 0 && (errno == EAGAIN || errno == EWOULDBLOCK);
}

}  // namespace cairn

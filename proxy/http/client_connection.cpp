#include "http/client_connection.hpp"

#include <boost/asio/bind_cancellation_slot.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/ssl/error.hpp>

#include <poll.h>
#include <sys/socket.h>

#include <utility>

namespace cairn {

namespace asio = boost::asio;
using tcp = asio::ip::tcp;
using std::chrono::milliseconds;

namespace {

constexpr std::size_t read_bytes = 16 * 1024;
// What a client may send ahead while its answer is on its way; the rest stays in the kernel.
constexpr std::size_t ahead_bytes = 64 * 1024;
// How often a client that has sent more than that ahead is looked at.
constexpr milliseconds ahead_interval{50};
// A client that only ended its sending side looks like one that has left. As with llama-server, what is answered at once it
// still gets; a stream it does not.
constexpr milliseconds half_closed_grace{100};

std::string name_of(const tcp::socket& socket) {
  boost::system::error_code error;
  const auto endpoint = socket.remote_endpoint(error);
  if (error) return "?";
  const std::string host = endpoint.address().to_string();
  return (endpoint.address().is_v6() ? "[" + host + "]" : host) + ":" + std::to_string(endpoint.port());
}

}  // namespace

ClientConnection::ClientConnection(tcp::socket socket)
    : stream_(std::move(socket)),
      peer_(name_of(stream_.socket())),
      deadline_(stream_.socket().get_executor()),
      write_free_(stream_.socket().get_executor()),
      watch_timer_(stream_.socket().get_executor()),
      watch_ended_(stream_.socket().get_executor()) {
  stream_.set_socket_options();
}

Error ClientConnection::failure(const boost::system::error_code& cause, const char* doing) const {
  const auto code = closed_ || cause == asio::error::operation_aborted ? ErrorCode::cancelled : ErrorCode::closed;
  return downstream_error(code, std::string(doing) + ": " + cause.message());
}

ResultTask<std::size_t> ClientConnection::read_more(milliseconds limit) {
  const auto self = shared_from_this();
  if (closed_) co_return downstream_error(ErrorCode::cancelled, "read from the client");
  const auto room = input_.prepare(read_bytes);
  limit_read(limit);
  const auto [error, count] = co_await stream_.read_some(room, read_signal_.slot());
  read_ended();
  if (error == asio::error::eof || error == asio::ssl::error::stream_truncated) co_return std::size_t{0};
  if (error && read_timed_out_) co_return downstream_error(ErrorCode::timeout, "the client sent nothing for too long");
  if (error) co_return failure(error, "read from the client");
  input_.commit(count);
  co_return count;
}

void ClientConnection::limit_read(milliseconds limit) {
  reading_ = true;
  read_timed_out_ = false;
  deadline_.expires_after(limit);
  deadline_.async_wait([weak = weak_from_this(), number = ++read_number_](const boost::system::error_code& stopped) {
    const auto connection = weak.lock();
    if (stopped || !connection || !connection->reading_ || connection->read_number_ != number) return;
    connection->read_timed_out_ = true;
    connection->cancel_read();
  });
}

void ClientConnection::read_ended() {
  reading_ = false;
  deadline_.cancel();
}

ResultTask<void> ClientConnection::start_tls(const TlsContext& context, milliseconds limit) {
  const auto self = shared_from_this();
  constexpr std::uint8_t handshake_record = 22;
  limit_read(limit);
  boost::system::error_code error = co_await stream_.wait_readable(read_signal_.slot());
  std::uint8_t first = handshake_record;
  if (!error) (void)::recv(stream_.socket().native_handle(), &first, 1, MSG_PEEK | MSG_DONTWAIT);
  if (first != handshake_record) {
    read_ended();
    co_return downstream_error(ErrorCode::malformed, "the client does not speak TLS");
  }
  if (!error) error = co_await stream_.start_tls(context, {}, read_signal_.slot());
  read_ended();
  if (error && read_timed_out_) co_return downstream_error(ErrorCode::timeout, "TLS handshake");
  if (error) co_return downstream_error(ErrorCode::closed, "TLS handshake: " + stream_.handshake_trouble(context, error));
  co_return Result<void>{};
}

void ClientConnection::cancel_read() {
  if (reading_) read_signal_.emit(asio::cancellation_type::terminal);
}

ResultTask<void> ClientConnection::write(std::vector<asio::const_buffer> buffers) {
  const auto self = shared_from_this();
  while (writing_) co_await write_free_.wait();
  if (closed_) co_return downstream_error(ErrorCode::cancelled, "write to the client");
  writing_ = true;
  const boost::system::error_code error = co_await stream_.write(std::move(buffers));
  writing_ = false;
  write_free_.notify_all();
  if (error) co_return failure(error, "write to the client");
  co_return Result<void>{};
}

void ClientConnection::start_watch(std::function<void()> on_gone) {
  if (watching_) return;
  on_gone_ = std::move(on_gone);
  watching_ = true;
  watch_stopping_ = false;
  asio::co_spawn(stream_.socket().get_executor(), watch(), asio::detached);
}

Task<void> ClientConnection::stop_watch() {
  watch_stopping_ = true;
  if (watch_waiting_) watch_signal_.emit(asio::cancellation_type::terminal);
  watch_timer_.cancel();
  while (watching_) co_await watch_ended_.wait();
  on_gone_ = nullptr;
}

Task<void> ClientConnection::watch() {
  const auto self = shared_from_this();
  while (!watch_stopping_ && !closed_) {
    boost::system::error_code peer;
    watch_waiting_ = true;
    if (input_.size() < ahead_bytes) {
      const auto room = input_.prepare(read_bytes);
      const auto [error, count] = co_await stream_.read_some(room, watch_signal_.slot());
      input_.commit(count);
      peer = error;
    } else {
      watch_timer_.expires_after(ahead_interval);
      co_await watch_timer_.async_wait(asio::bind_cancellation_slot(watch_signal_.slot(), use_tuple));
      if (!closed_ && half_closed()) peer = asio::error::eof;
    }
    watch_waiting_ = false;
    if (watch_stopping_ || closed_) break;
    if (peer == asio::error::eof || peer == asio::ssl::error::stream_truncated) {
      watch_waiting_ = true;
      watch_timer_.expires_after(half_closed_grace);
      co_await watch_timer_.async_wait(asio::bind_cancellation_slot(watch_signal_.slot(), use_tuple));
      watch_waiting_ = false;
      if (watch_stopping_ || closed_) break;
    }
    if (peer) {
      const auto on_gone = std::exchange(on_gone_, nullptr);
      if (on_gone) on_gone();
      close();  // also ends a write that waits for a reader who will not come back
    }
  }
  watching_ = false;
  watch_ended_.notify_all();
}

// An end of the stream that lies behind unread bytes.
bool ClientConnection::half_closed() {
  pollfd descriptor{};
  descriptor.fd = stream_.socket().native_handle();
  descriptor.events = POLLRDHUP;
  return ::poll(&descriptor, 1, 0) > 0 && (descriptor.revents & (POLLRDHUP | POLLHUP | POLLERR)) != 0;
}

void ClientConnection::close() {
  if (closed_) return;
  closed_ = true;
  stream_.end_sending();
  stream_.close();
  watch_timer_.cancel();
}

void ClientConnection::reset() {
  if (!closed_) stream_.reset();
  closed_ = true;
  watch_timer_.cancel();
}

Task<void> ClientConnection::linger_close(milliseconds limit) {
  const auto self = shared_from_this();
  const auto until = std::chrono::steady_clock::now() + limit;
  if (!closed_) stream_.end_sending();
  while (!closed_) {
    input_.consume(input_.size());
    const auto left = std::chrono::duration_cast<milliseconds>(until - std::chrono::steady_clock::now());
    if (left.count() <= 0) break;
    auto count = co_await read_more(left);
    if (!count || *count == 0) break;
  }
  close();
}

}  // namespace cairn

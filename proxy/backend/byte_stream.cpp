#include "backend/byte_stream.hpp"

#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/ssl.h>

#include <boost/asio/bind_cancellation_slot.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/ssl/error.hpp>

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <utility>

#include "backend/async.hpp"

namespace cairn {

namespace asio = boost::asio;
using boost::system::error_code;
using tcp = asio::ip::tcp;

namespace {

// One step of a long write; between two, others get their turn.
constexpr std::size_t step_bytes = 64 * 1024;
// Small pieces are put together for TLS: each write is a record of its own.
constexpr std::size_t record_bytes = 16 * 1024;

error_code last_system_error() {
  if (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR) return asio::error::would_block;
  return {errno, boost::system::system_category()};
}

// --- OpenSSL's way to the socket: its own would raise SIGPIPE, and use a descriptor that close() has given away -----------

tcp::socket& socket_of(BIO* bio) { return *static_cast<tcp::socket*>(BIO_get_data(bio)); }

int bio_write(BIO* bio, const char* bytes, int count) {
  BIO_clear_retry_flags(bio);
  const auto sent = ::send(socket_of(bio).native_handle(), bytes, static_cast<std::size_t>(count), MSG_NOSIGNAL | MSG_DONTWAIT);
  if (sent < 0 && last_system_error() == asio::error::would_block) BIO_set_retry_write(bio);
  return static_cast<int>(sent);
}

int bio_read(BIO* bio, char* into, int count) {
  BIO_clear_retry_flags(bio);
  const auto got = ::recv(socket_of(bio).native_handle(), into, static_cast<std::size_t>(count), MSG_DONTWAIT);
  if (got < 0 && last_system_error() == asio::error::would_block) BIO_set_retry_read(bio);
  return static_cast<int>(got);
}

long bio_control(BIO*, int command, long, void*) { return command == BIO_CTRL_FLUSH ? 1 : 0; }

const BIO_METHOD* socket_method() {
  static const std::unique_ptr<BIO_METHOD, void (*)(BIO_METHOD*)> method = [] {
    std::unique_ptr<BIO_METHOD, void (*)(BIO_METHOD*)> made(
        BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "cairn socket"), &BIO_meth_free);
    BIO_meth_set_write(made.get(), &bio_write);
    BIO_meth_set_read(made.get(), &bio_read);
    BIO_meth_set_ctrl(made.get(), &bio_control);
    return made;
  }();
  return method.get();
}

std::size_t size_of(std::span<const asio::const_buffer> buffers) {
  std::size_t size = 0;
  for (const auto& buffer : buffers) size += buffer.size();
  return size;
}

// Takes `count` bytes off the front.
void consume(std::vector<asio::const_buffer>& buffers, std::size_t count) {
  auto first = buffers.begin();
  while (first != buffers.end() && count >= first->size()) {
    count -= first->size();
    ++first;
  }
  buffers.erase(buffers.begin(), first);
  if (!buffers.empty()) buffers.front() += count;
}

}  // namespace

ByteStream::ByteStream(tcp::socket socket) : socket_(std::move(socket)) {}
ByteStream::~ByteStream() = default;

void ByteStream::set_socket_options() {
  error_code ignored;
  socket_.set_option(asio::ip::tcp::no_delay(true), ignored);
  socket_.set_option(asio::socket_base::keep_alive(true), ignored);
  constexpr int idle_s = 60;
  constexpr int between_s = 10;
  constexpr int probes = 6;
  ::setsockopt(socket_.native_handle(), IPPROTO_TCP, TCP_KEEPIDLE, &idle_s, sizeof idle_s);
  ::setsockopt(socket_.native_handle(), IPPROTO_TCP, TCP_KEEPINTVL, &between_s, sizeof between_s);
  ::setsockopt(socket_.native_handle(), IPPROTO_TCP, TCP_KEEPCNT, &probes, sizeof probes);
}

Task<error_code> ByteStream::start_tls(const TlsContext& context, std::string name, Slot slot) {
  tls_ = context.make_connection(name);
  BIO* bio = BIO_new(socket_method());
  BIO_set_data(bio, &socket_);
  BIO_set_init(bio, 1);
  SSL_set_bio(tls_.get(), bio, bio);
  for (;;) {
    ERR_clear_error();
    error_code error = outcome_of(SSL_do_handshake(tls_.get()));
    if (error != asio::error::would_block) co_return error;
    error = co_await wait_for(wanted_, slot);
    if (error) co_return error;
  }
}

std::string ByteStream::handshake_trouble(const TlsContext& context, const error_code& error) const {
  const long verdict = tls_ ? SSL_get_verify_result(tls_.get()) : X509_V_OK;
  if (verdict != X509_V_OK) {
    return "its certificate is not trusted by " + context.trusted() + ": " + X509_verify_cert_error_string(verdict);
  }
  if (error.category() == asio::error::get_ssl_category() && ERR_GET_REASON(static_cast<unsigned long>(error.value())) == SSL_R_WRONG_VERSION_NUMBER) {
    return "it speaks no TLS";
  }
  if (error == asio::ssl::error::stream_truncated) return "the connection ended in the middle";
  return error.message();
}

error_code ByteStream::outcome_of(int result) {
  if (result > 0) return {};
  switch (SSL_get_error(tls_.get(), result)) {
    case SSL_ERROR_WANT_READ:
      wanted_ = asio::socket_base::wait_read;
      return asio::error::would_block;
    case SSL_ERROR_WANT_WRITE:
      wanted_ = asio::socket_base::wait_write;
      return asio::error::would_block;
    case SSL_ERROR_ZERO_RETURN:
      return asio::error::eof;
    case SSL_ERROR_SYSCALL:
      broken_ = true;
      if (errno != 0 && errno != EAGAIN) return {errno, boost::system::system_category()};
      return asio::ssl::error::stream_truncated;
    default:
      broken_ = true;
      return {static_cast<int>(ERR_get_error()), asio::error::get_ssl_category()};
  }
}

ByteStream::Moved ByteStream::try_read(std::span<char> into) {
  Moved moved;
  if (!socket_.is_open()) {
    moved.error = asio::error::operation_aborted;
  } else if (tls_) {
    ERR_clear_error();
    errno = 0;
    moved.error = outcome_of(SSL_read_ex(tls_.get(), into.data(), into.size(), &moved.count));
  } else {
    const auto count = ::recv(socket_.native_handle(), into.data(), into.size(), MSG_DONTWAIT);
    if (count > 0) moved.count = static_cast<std::size_t>(count);
    if (count == 0) moved.error = asio::error::eof;
    if (count < 0) moved.error = last_system_error();
    wanted_ = asio::socket_base::wait_read;
  }
  return moved;
}

ByteStream::Moved ByteStream::try_write(std::span<const asio::const_buffer> buffers) {
  Moved moved;
  if (!socket_.is_open()) {
    moved.error = asio::error::operation_aborted;
    return moved;
  }
  if (tls_) {
    std::array<char, record_bytes> together;
    const char* from = static_cast<const char*>(buffers.front().data());
    std::size_t size = buffers.front().size();
    if (buffers.size() > 1 && size < record_bytes) {
      size = asio::buffer_copy(asio::buffer(together), buffers);
      from = together.data();
    }
    ERR_clear_error();
    errno = 0;
    moved.error = outcome_of(SSL_write_ex(tls_.get(), from, std::min(size, step_bytes), &moved.count));
    return moved;
  }
  std::array<iovec, 4> pieces{};
  std::size_t used = 0;
  for (std::size_t left = step_bytes; used < pieces.size() && used < buffers.size() && left > 0; ++used) {
    pieces[used].iov_base = const_cast<void*>(buffers[used].data());
    pieces[used].iov_len = std::min(buffers[used].size(), left);
    left -= pieces[used].iov_len;
  }
  msghdr message{};
  message.msg_iov = pieces.data();
  message.msg_iovlen = used;
  const auto count = ::sendmsg(socket_.native_handle(), &message, MSG_NOSIGNAL | MSG_DONTWAIT);
  if (count >= 0) moved.count = static_cast<std::size_t>(count);
  if (count < 0) moved.error = last_system_error();
  wanted_ = asio::socket_base::wait_write;
  return moved;
}

Task<error_code> ByteStream::wait_for(asio::socket_base::wait_type what, Slot slot) {
  auto [error] = co_await socket_.async_wait(what, asio::bind_cancellation_slot(slot, use_tuple));
  co_return error;
}

Task<error_code> ByteStream::wait_readable(Slot slot) { return wait_for(asio::socket_base::wait_read, slot); }

Task<ByteStream::Moved> ByteStream::read_some(std::span<char> into, Slot slot) {
  bool waited = false;
  for (;;) {
    Moved moved = try_read(into);
    if (moved.error != asio::error::would_block) {
      // Who finds all at once what it wants must not keep the thread for itself.
      if (!waited) co_await asio::post(socket_.get_executor(), asio::use_awaitable);
      co_return moved;
    }
    moved.error = co_await wait_for(wanted_, slot);
    if (moved.error) co_return moved;
    waited = true;
  }
}

Task<error_code> ByteStream::write(std::vector<asio::const_buffer> buffers) {
  while (size_of(buffers) > 0) {
    const Moved moved = try_write(buffers);
    if (moved.error == asio::error::would_block) {
      const error_code error = co_await wait_for(wanted_, Slot{});
      if (error) co_return error;
      continue;
    }
    if (moved.error) co_return moved.error;
    consume(buffers, moved.count);
    if (!buffers.empty()) co_await asio::post(socket_.get_executor(), asio::use_awaitable);
  }
  co_return error_code{};
}

void ByteStream::end_sending() {
  if (tls_ && !broken_ && socket_.is_open() && SSL_is_init_finished(tls_.get()) != 0) {
    (void)SSL_shutdown(tls_.get());
    ERR_clear_error();
  }
  error_code ignored;
  socket_.shutdown(tcp::socket::shutdown_send, ignored);
}

void ByteStream::close() {
  error_code ignored;
  socket_.close(ignored);
}

void ByteStream::reset() {
  error_code ignored;
  if (socket_.is_open()) socket_.set_option(asio::socket_base::linger(true, 0), ignored);
  socket_.close(ignored);
}

}  // namespace cairn

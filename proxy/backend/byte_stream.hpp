// A connected TCP socket, plain or under TLS: reads and writes, and an end that the other side can tell from a cut.
// Thread: the I/O thread. One reader and one writer at a time, side by side.
// Errors: the system's and OpenSSL's codes; `eof` when the other side has ended as it should, `stream_truncated` when it went without
// TLS's goodbye; `operation_aborted` after close() or by the cancellation slot, which loses no bytes.
#pragma once

#include <boost/asio/cancellation_signal.hpp>
#include <boost/asio/ip/tcp.hpp>

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "backend/tls_context.hpp"
#include "base/task.hpp"

namespace cairn {

class ByteStream {
 public:
  using Slot = boost::asio::cancellation_slot;
  struct Moved {
    boost::system::error_code error;
    std::size_t count = 0;
  };

  explicit ByteStream(boost::asio::ip::tcp::socket socket);
  ~ByteStream();
  ByteStream(const ByteStream&) = delete;
  ByteStream& operator=(const ByteStream&) = delete;

  // Of a connected socket: small pieces go out at once, and a peer that vanished without a word is noticed by the kernel, in about two
  // minutes: a running answer has no time limit.
  void set_socket_options();

  // From here on everything goes through TLS. `name`: the server's to be asked for and checked; empty as a server.
  Task<boost::system::error_code> start_tls(const TlsContext& context, std::string name, Slot slot = {});
  // Why a handshake failed, in words.
  std::string handshake_trouble(const TlsContext& context, const boost::system::error_code& error) const;

  // 1 byte or more, unless there is an error.
  Task<Moved> read_some(std::span<char> into, Slot slot = {});
  // The same without waiting: `would_block` when there is nothing.
  Moved try_read(std::span<char> into);
  // All of the buffers.
  Task<boost::system::error_code> write(std::vector<boost::asio::const_buffer> buffers);
  Task<boost::system::error_code> wait_readable(Slot slot = {});

  // Our side has no more to say, with TLS's goodbye; reading goes on.
  void end_sending();
  // Without a goodbye.
  void close();
  // The other side cannot take what it got for the whole.
  void reset();

  boost::asio::ip::tcp::socket& socket() { return socket_; }

 private:
  Moved try_write(std::span<const boost::asio::const_buffer> buffers);
  // What an OpenSSL call has come to; would_block also sets wanted_.
  boost::system::error_code outcome_of(int result);
  Task<boost::system::error_code> wait_for(boost::asio::socket_base::wait_type what, Slot slot);

  boost::asio::ip::tcp::socket socket_;
  std::unique_ptr<SSL, void (*)(SSL*)> tls_{nullptr, nullptr};
  boost::asio::socket_base::wait_type wanted_ = boost::asio::socket_base::wait_read;
  bool broken_ = false;  // after a fatal error of TLS nothing more may be said
};

}  // namespace cairn

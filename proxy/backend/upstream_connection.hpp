// One connection to the backend, plain or under TLS: connecting, reading into a bounded buffer, writing, and whether it may be used again.
// Thread: the I/O thread. Errors: source upstream (refused, unreachable, closed, timeout, cancelled).
#pragma once

#include <boost/asio/ip/tcp.hpp>

#include <chrono>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "backend/byte_buffer.hpp"
#include "backend/byte_stream.hpp"
#include "backend/upstream.hpp"
#include "base/task.hpp"

namespace cairn {

class UpstreamConnection : public std::enable_shared_from_this<UpstreamConnection> {
 public:
  // `open_count` is one higher for as long as this connection is open.
  // `tls`: for addresses with TLS.
  UpstreamConnection(const boost::asio::any_io_executor& executor, std::shared_ptr<std::size_t> open_count,
                     std::shared_ptr<const TlsContext> tls);
  ~UpstreamConnection();

  ResultTask<void> connect(const UpstreamAddress& address, std::chrono::milliseconds timeout);
  ResultTask<void> write(std::string_view bytes);
  ResultTask<void> write_chunk(std::string_view prefix, std::span<const char> bytes);
  // Appends what has arrived to input(); 0 when the peer has ended the connection.
  ResultTask<std::size_t> read_more();
  ByteBuffer& input() { return input_; }

  // True when nothing can be read: neither an end nor bytes that nobody asked for.
  bool quiet();
  void close();  // pending operations end with `cancelled`
  bool closed() const { return closed_; }

  std::chrono::steady_clock::time_point idle_since;

 private:
  ResultTask<void> write_all(std::vector<boost::asio::const_buffer> buffers);
  Error failure(const boost::system::error_code& cause, std::string_view doing) const;

  ByteStream stream_;
  std::shared_ptr<const TlsContext> tls_;
  boost::asio::ip::tcp::resolver resolver_;
  std::shared_ptr<std::size_t> open_count_;
  ByteBuffer input_;
  bool closed_ = false;
};

}  // namespace cairn

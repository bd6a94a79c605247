// One TCP connection to the backend: connecting, reading into a bounded buffer, writing, and whether it may be used again.
// Thread: the I/O thread. Errors: source upstream (refused, closed, timeout, cancelled).
#pragma once

#include <boost/asio/ip/tcp.hpp>

#include <chrono>
#include <memory>
#include <span>
#include <string_view>

#include "backend/byte_buffer.hpp"
#include "backend/upstream.hpp"
#include "base/task.hpp"

namespace cairn {

class UpstreamConnection : public std::enable_shared_from_this<UpstreamConnection> {
 public:
  // `open_count` is one higher for as long as this connection is open.
  UpstreamConnection(const boost::asio::any_io_executor& executor, std::shared_ptr<std::size_t> open_count);
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
  template <class Buffers>
  ResultTask<void> write_all(Buffers buffers);
  Error failure(const boost::system::error_code& cause, std::string_view doing) const;

  boost::asio::ip::tcp::socket socket_;
  boost::asio::ip::tcp::resolver resolver_;
  std::shared_ptr<std::size_t> open_count_;
  ByteBuffer input_;
  bool closed_ = false;
};

}  // namespace cairn

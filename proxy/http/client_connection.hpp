// The connection of one client, plain or under TLS: timed reads into a bounded buffer, serialised writes, and a watch for the client's leaving.
// Thread: the I/O thread. Errors: source downstream (closed, timeout, cancelled).
#pragma once

#include <boost/asio/cancellation_signal.hpp>
#include <boost/asio/ip/tcp.hpp>

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "backend/async.hpp"
#include "backend/byte_buffer.hpp"
#include "backend/byte_stream.hpp"
#include "base/task.hpp"

namespace cairn {

class ClientConnection : public std::enable_shared_from_this<ClientConnection> {
 public:
  explicit ClientConnection(boost::asio::ip::tcp::socket socket);

  const std::string& peer() const { return peer_; }
  ByteBuffer& input() { return input_; }

  // Before anything is read. Errors: malformed when the client does not speak TLS: nothing was read then, and it can be told in plain.
  ResultTask<void> start_tls(const TlsContext& context, std::chrono::milliseconds limit);
  // Appends what has arrived to input(); 0 when the client has ended its side. One at a time.
  ResultTask<std::size_t> read_more(std::chrono::milliseconds limit);
  // Ends a pending read with `cancelled`.
  void cancel_read();
  // All of the buffers; waits for as long as the client reads nothing. Calls from two coroutines do not mix their bytes.
  ResultTask<void> write(std::vector<boost::asio::const_buffer> buffers);

  // From here until stop_watch() has returned, `on_gone` is called once when the client has reset its side, or a tenth of a
  // second after it has ended it, with TLS's goodbye or without; the connection is then closed. Requests sent ahead are read into input() meanwhile. No
  // read_more() in between.
  void start_watch(std::function<void()> on_gone);
  Task<void> stop_watch();

  void close();
  // Closes with a reset: the client cannot take what it got for the whole.
  void reset();
  // Ends our side and takes in, for a short while, what the client still sends: a close with unread bytes would reset the
  // connection, and the client might lose the answer.
  Task<void> linger_close(std::chrono::milliseconds limit);
  bool closed() const { return closed_; }

 private:
  Task<void> watch();
  // Ends the pending read after `limit`, with `timeout` then.
  void limit_read(std::chrono::milliseconds limit);
  void read_ended();
  bool half_closed();
  Error failure(const boost::system::error_code& cause, const char* doing) const;

  ByteStream stream_;
  std::string peer_;
  ByteBuffer input_;
  bool closed_ = false;

  boost::asio::steady_timer deadline_;
  boost::asio::cancellation_signal read_signal_;
  std::uint64_t read_number_ = 0;
  bool reading_ = false;
  bool read_timed_out_ = false;

  Condition write_free_;
  bool writing_ = false;

  std::function<void()> on_gone_;
  boost::asio::steady_timer watch_timer_;
  boost::asio::cancellation_signal watch_signal_;
  Condition watch_ended_;
  bool watching_ = false;
  bool watch_waiting_ = false;
  bool watch_stopping_ = false;
};

}  // namespace cairn

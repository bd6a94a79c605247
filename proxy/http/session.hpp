// One client connection: reads request after request, has each handled, and ends when either side wants no more.
// Thread: the I/O thread. Owner: itself while it runs; the listener knows the open ones.
#pragma once

#include <memory>

#include "http/client_connection.hpp"
#include "http/client_request.hpp"
#include "request/request_handler.hpp"

namespace cairn {

struct SessionOptions {
  std::size_t max_head_bytes = 64 * 1024;
  std::chrono::milliseconds idle_timeout{75000};  // between requests
  std::chrono::milliseconds head_timeout{30000};  // from a head's first byte to its last
  std::chrono::milliseconds linger{2000};         // for what a refused client still sends
  ClientRequestOptions request;
  std::shared_ptr<const TlsContext> tls;          // null: plain
};

class Session : public std::enable_shared_from_this<Session> {
 public:
  Session(boost::asio::ip::tcp::socket socket, SessionOptions options, RequestHandler& handler);

  Task<void> run();

  // No further request; an idle connection closes now.
  void drain();
  // The running request is told that its client has left, and the connection closes.
  void cancel();

 private:
  enum class Next { request, end };

  Task<Next> start_tls();
  Task<Next> read_request();
  Task<Next> handle_request(std::size_t head_bytes);
  Task<Next> refuse(int status, std::string_view message);
  Task<std::size_t> read_head();  // bytes of a whole head at the front of the input; 0: the connection has ended

  std::shared_ptr<ClientConnection> connection_;
  SessionOptions options_;
  RequestHandler& handler_;
  ClientRequest* request_ = nullptr;  // the one that runs
  bool draining_ = false;
  bool idle_ = true;
};

}  // namespace cairn

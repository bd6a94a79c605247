// Accepts clients on one address and runs a session for each, up to a limit.
// Thread: the I/O thread. Owner: main; the handler must outlive the sessions (await drain() first).
// Errors: source internal (invalid: the address cannot be listened on).
#pragma once

#include <boost/asio/any_io_executor.hpp>

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "http/session.hpp"

namespace cairn {

struct ListenerOptions {
  std::string host = "127.0.0.1";  // a name (all of its addresses), or an address without brackets
  std::uint16_t port = 0;          // 0: any free one
  std::size_t max_connections = 1024;  // further clients wait in the kernel's queue
  SessionOptions session;
};

class Listener {
 public:
  // Listens at once; start() begins to accept.
  static Result<std::unique_ptr<Listener>> open(const boost::asio::any_io_executor& executor, ListenerOptions options,
                                                RequestHandler& handler);
  ~Listener();

  std::uint16_t port() const;
  void start();
  std::size_t open_sessions() const;  // for tests

  // New clients are refused by the kernel, idle connections close, running requests go on.
  void stop_accepting();
  // stop_accepting(), then waits for the open sessions; those left after `limit` are cancelled. Returns how many were.
  Task<std::size_t> drain(std::chrono::milliseconds limit);

 private:
  struct State;
  explicit Listener(std::shared_ptr<State> state);
  static Task<void> accept_loop(std::shared_ptr<State> state, std::size_t index);
  static Task<void> run_session(std::shared_ptr<State> state, std::shared_ptr<Session> session);

  std::shared_ptr<State> state_;
};

}  // namespace cairn

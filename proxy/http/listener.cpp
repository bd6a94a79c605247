#include "http/listener.hpp"

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/ip/v6_only.hpp>
#include <spdlog/spdlog.h>

#include <unordered_set>
#include <utility>

namespace cairn {

namespace asio = boost::asio;
using tcp = asio::ip::tcp;

// Shared with the coroutines, which may end after the Listener.
struct Listener::State {
  State(const asio::any_io_executor& io, ListenerOptions listener_options, RequestHandler& request_handler)
      : executor(io), options(std::move(listener_options)), handler(request_handler), session_ended(io) {}

  asio::any_io_executor executor;
  ListenerOptions options;
  RequestHandler& handler;
  std::vector<tcp::acceptor> acceptors;
  std::unordered_set<Session*> sessions;
  Condition session_ended;
  bool stopped = false;
};

namespace {

boost::system::error_code listen_on(tcp::acceptor& acceptor, const tcp::endpoint& endpoint) {
  boost::system::error_code error;
  acceptor.open(endpoint.protocol(), error);
  if (!error) acceptor.set_option(asio::socket_base::reuse_address(true), error);
  if (!error) acceptor.bind(endpoint, error);
  if (!error) acceptor.listen(asio::socket_base::max_listen_connections, error);
  return error;
}

Error cannot_listen(const ListenerOptions& options, const boost::system::error_code& cause) {
  Error error = internal_error("listen on " + options.host + ":" + std::to_string(options.port) + ": " + cause.message());
  error.code = ErrorCode::invalid;
  return error;
}

}  // namespace

Listener::Listener(std::shared_ptr<State> state) : state_(std::move(state)) {}
Listener::~Listener() { stop_accepting(); }

Result<std::unique_ptr<Listener>> Listener::open(const asio::any_io_executor& executor, ListenerOptions options,
                                                 RequestHandler& handler) {
  auto state = std::make_shared<State>(executor, options, handler);
  boost::system::error_code error;
  tcp::resolver resolver(executor);
  const auto flags = tcp::resolver::passive | tcp::resolver::numeric_service;
  const auto results = resolver.resolve(options.host, std::to_string(options.port), flags, error);
  if (error) return cannot_listen(options, error);

  // "localhost" is 127.0.0.1 and ::1: listen on both, with one port, and be content if only one can be had.
  std::uint16_t port = options.port;
  boost::system::error_code failed;
  for (const auto& result : results) {
    tcp::acceptor acceptor(executor);
    const tcp::endpoint endpoint(result.endpoint().address(), port);
    error = listen_on(acceptor, endpoint);
    if (error) {
      failed = error;
      continue;
    }
    port = acceptor.local_endpoint().port();
    state->acceptors.push_back(std::move(acceptor));
  }
  if (state->acceptors.empty()) return cannot_listen(options, failed);
  if (failed == asio::error::address_in_use) return cannot_listen(options, failed);
  return std::unique_ptr<Listener>(new Listener(std::move(state)));
}

std::uint16_t Listener::port() const {
  boost::system::error_code ignored;
  return state_->stopped ? state_->options.port : state_->acceptors.front().local_endpoint(ignored).port();
}

std::size_t Listener::open_sessions() const { return state_->sessions.size(); }

void Listener::start() {
  for (std::size_t index = 0; index < state_->acceptors.size(); ++index) {
    asio::co_spawn(state_->executor, accept_loop(state_, index), asio::detached);
  }
}

Task<void> Listener::accept_loop(std::shared_ptr<State> state, std::size_t index) {
  tcp::acceptor& acceptor = state->acceptors[index];
  asio::steady_timer pause(state->executor);
  while (!state->stopped) {
    if (state->sessions.size() >= state->options.max_connections) {
      co_await state->session_ended.wait();
      continue;
    }
    auto [error, socket] = co_await acceptor.async_accept(use_tuple);
    if (state->stopped) break;
    if (error) {
      // Out of descriptors, most likely: the client stays in the queue; asking again at once would only spin.
      spdlog::warn("accept: {}", error.message());
      pause.expires_after(std::chrono::milliseconds(50));
      co_await pause.async_wait(use_tuple);
      continue;
    }
    auto session = std::make_shared<Session>(std::move(socket), state->options.session, state->handler);
    state->sessions.insert(session.get());
    asio::co_spawn(state->executor, run_session(state, session), asio::detached);
  }
}

Task<void> Listener::run_session(std::shared_ptr<State> state, std::shared_ptr<Session> session) {
  co_await session->run();
  state->sessions.erase(session.get());
  state->session_ended.notify_all();
}

void Listener::stop_accepting() {
  if (state_->stopped) return;
  state_->stopped = true;
  boost::system::error_code ignored;
  state_->options.port = state_->acceptors.front().local_endpoint(ignored).port();
  for (auto& acceptor : state_->acceptors) acceptor.close(ignored);
  for (Session* session : state_->sessions) session->drain();
  state_->session_ended.notify_all();
}

Task<std::size_t> Listener::drain(std::chrono::milliseconds limit) {
  const auto state = state_;
  stop_accepting();
  auto expired = std::make_shared<bool>(false);
  asio::steady_timer timer(state->executor, limit);
  timer.async_wait([weak = std::weak_ptr<State>(state), expired](const boost::system::error_code& stopped) {
    const auto locked = weak.lock();
    if (stopped || !locked) return;
    *expired = true;
    locked->session_ended.notify_all();
  });
  while (!state->sessions.empty() && !*expired) co_await state->session_ended.wait();
  timer.cancel();
  const std::size_t cancelled = state->sessions.size();
  // Cancelling runs callbacks, which may end sessions: walk a copy.
  const std::vector<Session*> left(state->sessions.begin(), state->sessions.end());
  for (Session* session : left) {
    if (state->sessions.contains(session)) session->cancel();
  }
  while (!state->sessions.empty()) co_await state->session_ended.wait();
  co_return cancelled;
}

}  // namespace cairn

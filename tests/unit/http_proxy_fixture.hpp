// A listener in front of a scripted backend, for the tests of http/ and of the relay.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "backend/upstream.hpp"
#include "http/listener.hpp"
#include "request/error_answer.hpp"
#include "request/relay.hpp"
#include "wire.hpp"

namespace cairn {

// Passes everything through unless a test puts its own function here.
class ScriptedHandler final : public RequestHandler {
 public:
  Task<void> handle(Downstream& downstream) override {
    ++running;
    if (script) {
      co_await script(downstream);
    } else {
      co_await pass(downstream);
    }
    --running;
    ++handled;
  }

  Task<void> pass(Downstream& downstream) {
    auto outcome = co_await pass_through(*upstream, downstream);
    if (!outcome) co_await write_error(downstream, outcome.error());
    outcomes.push_back(std::move(outcome));
  }

  std::function<Task<void>(Downstream&)> script;
  Upstream* upstream = nullptr;
  std::vector<Result<RelayOutcome>> outcomes;  // I/O thread
  int running = 0;
  int handled = 0;
};

class ProxyTest : public ::testing::Test {
 protected:
  ProxyTest() {
    const UpstreamAddress address{"127.0.0.1", std::to_string(backend_.port())};
    io_.on([&] { upstream_ = make_upstream(io_.executor(), address, {}); });
    handler_.upstream = upstream_.get();
    listen({});
  }
  ~ProxyTest() override {
    stop();
    io_.on([this] { upstream_.reset(); });
  }

  void listen(ListenerOptions options) {
    stop();
    options.session.linger = std::chrono::milliseconds(200);
    io_.on([&] {
      auto opened = Listener::open(io_.executor(), options, handler_);
      if (!opened) throw std::runtime_error(to_string(opened.error()));
      listener_ = std::move(*opened);
      listener_->start();
    });
    port_ = listener_->port();
  }
  void stop() {
    if (!listener_) return;
    io_.run(listener_->drain(std::chrono::milliseconds(0)));
    io_.on([this] { listener_.reset(); });
  }

  wire::Peer client() { return wire::Peer::connect(port_); }
  bool no_sessions_left() {
    return io_.wait_for([this] { return listener_->open_sessions() == 0 && handler_.running == 0; });
  }
  bool handled(int count) {
    return io_.wait_for([this, count] { return handler_.handled >= count; });
  }
  Result<RelayOutcome> outcome(std::size_t index = 0) {
    EXPECT_TRUE(io_.wait_for([&] { return handler_.outcomes.size() > index; }));
    return io_.on([&] { return handler_.outcomes.at(index); });
  }
  std::size_t upstream_connections() {
    return io_.on([this] { return upstream_->open_connections(); });
  }

  wire::PeerListener backend_;
  wire::IoThread io_;
  std::unique_ptr<Upstream> upstream_;
  ScriptedHandler handler_;
  std::unique_ptr<Listener> listener_;
  std::uint16_t port_ = 0;
};

inline Task<void> say(Downstream& downstream, std::string text) {
  ResponseHead head;
  head.status = 200;
  head.reason = "OK";
  BodyFraming framing;
  framing.kind = BodyFraming::Kind::length;
  framing.length = text.size();
  co_await downstream.write_head(head, framing);
  co_await downstream.write_body(text);
  co_await downstream.finish();
}

// Answers with the body it was sent.
inline Task<void> echo(Downstream& downstream) {
  auto body = co_await downstream.read_body(1 << 30);
  if (!body) {
    co_await write_error(downstream, body.error());
    co_return;
  }
  co_await say(downstream, std::move(*body));
}

}  // namespace cairn

// A backend that answers LlamaApi's calls from a function, without sockets; and a way to run a task to its end.
#pragma once

#include <boost/asio/post.hpp>
#include <boost/asio/use_awaitable.hpp>

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "backend/upstream.hpp"

namespace cairn::test {

class ScriptedUpstream final : public Upstream {
 public:
  struct Reply {
    int status = 200;
    std::string body;
  };
  // method, target, body
  using Script = std::function<Result<Reply>(const RequestHead&, std::string_view body)>;
  explicit ScriptedUpstream(Script script = {}) : script_(std::move(script)) {}
  void answer_with(Script script) { script_ = std::move(script); }

  ResultTask<Answer> call(const RequestHead& head, std::string_view body, CallOptions, CancelSource& cancel) override {
    ++calls;
    sent_bytes += body.size();
    const RequestHead request = head;
    const std::string sent{body};
    // As a real one: it takes a turn of the loop.
    auto executor = co_await boost::asio::this_coro::executor;
    co_await boost::asio::post(executor, boost::asio::use_awaitable);
    if (cancel.cancelled()) co_return upstream_error(ErrorCode::cancelled, "left");
    Result<Reply> reply = script_(request, sent);
    if (!reply) co_return reply.error();
    Answer answer;
    answer.head.status = reply->status;
    answer.body = std::move(reply->body);
    co_return answer;
  }
  ResultTask<std::unique_ptr<Exchange>> start(const RequestHead&, BodyFraming, CancelSource&) override {
    co_return upstream_error(ErrorCode::refused, "not scripted");
  }
  const UpstreamAddress& address() const override { return address_; }
  std::size_t open_connections() const override { return 0; }
  void close_idle() override {}

  int calls = 0;
  std::size_t sent_bytes = 0;

 private:
  Script script_;
  UpstreamAddress address_{"scripted", "80"};
};

}  // namespace cairn::test

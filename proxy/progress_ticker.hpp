// Does something again and again while a long call is under way: shows how far it has come, say.
// Thread: the I/O thread.
#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>

#include <chrono>
#include <functional>
#include <utility>

#include "base/task.hpp"
#include "base/wakeup.hpp"

namespace cairn {

class ProgressTicker {
 public:
  // `tick` is called after each pause; without one nothing is done. stop() must be awaited before this goes.
  ProgressTicker(boost::asio::any_io_executor executor, std::function<Task<void>()> tick)
      : stopped_(executor), ended_(executor), tick_(std::move(tick)) {
    if (tick_) boost::asio::co_spawn(executor, run(), boost::asio::detached);
    else ended_.notify();
  }
  ProgressTicker(const ProgressTicker&) = delete;
  ProgressTicker& operator=(const ProgressTicker&) = delete;
  // Waits for a tick under way.
  Task<void> stop() {
    stopped_.notify();
    co_await ended_.wait();
  }
  bool stopped() const { return stopped_.notified(); }

 private:
  Task<void> run() {
    constexpr std::chrono::milliseconds pause{500};
    while (!co_await stopped_.wait_for(pause)) co_await tick_();
    ended_.notify();
  }

  Wakeup stopped_, ended_;
  std::function<Task<void>()> tick_;
};

}  // namespace cairn

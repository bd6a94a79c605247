// What every coroutine that touches a socket needs: the completion token and a way to wake others.
// Thread: the I/O thread.
#pragma once

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>

#include "base/task.hpp"

namespace cairn {

// co_await yields a tuple (error_code, …) instead of throwing.
inline constexpr auto use_tuple = boost::asio::as_tuple(boost::asio::use_awaitable);

// A condition variable for one thread, any number of waiters: `while (!ready) co_await condition.wait();`. Nothing
// is lost in between, as wait() does not suspend before it has registered. (base/wakeup is the one-shot signal.)
class Condition {
 public:
  explicit Condition(const boost::asio::any_io_executor& executor)
      : timer_(executor, boost::asio::steady_timer::time_point::max()) {}

  void notify_all() { timer_.cancel(); }
  Task<void> wait() { co_await timer_.async_wait(use_tuple); }

 private:
  boost::asio::steady_timer timer_;
};

}  // namespace cairn

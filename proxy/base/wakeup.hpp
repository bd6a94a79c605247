// A one-shot signal from one coroutine to another on the same thread.
// Thread: the I/O thread.
#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/steady_timer.hpp>

#include <chrono>

#include "base/task.hpp"

namespace cairn {

class Wakeup {
 public:
  explicit Wakeup(boost::asio::any_io_executor executor);
  // Wakes the waiter, or the next wait() returns at once. Later calls do nothing.
  void notify();
  bool notified() const { return notified_; }
  // One waiter at a time.
  Task<void> wait();
  // False when the time ran out first.
  Task<bool> wait_for(std::chrono::milliseconds limit);

 private:
  boost::asio::steady_timer timer_;
  bool notified_ = false;
};

}  // namespace cairn

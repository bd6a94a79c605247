#include "base/wakeup.hpp"

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/use_awaitable.hpp>

namespace cairn {

namespace {
constexpr auto use_tuple = boost::asio::as_tuple(boost::asio::use_awaitable);
}

Wakeup::Wakeup(boost::asio::any_io_executor executor) : timer_(std::move(executor)) {}

void Wakeup::notify() {
  if (notified_) return;
  notified_ = true;
  timer_.cancel();
}

Task<void> Wakeup::wait() {
  while (!notified_) {
    timer_.expires_at(boost::asio::steady_timer::time_point::max());
    (void)co_await timer_.async_wait(use_tuple);
  }
}

Task<bool> Wakeup::wait_for(std::chrono::milliseconds limit) {
  if (!notified_) {
    timer_.expires_after(limit);
    (void)co_await timer_.async_wait(use_tuple);
  }
  co_return notified_;
}

}  // namespace cairn

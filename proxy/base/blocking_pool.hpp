// Runs disk work and checksums on a few threads and resumes the caller on the I/O thread.
// Thread: run() is awaited on the I/O thread; the function it is given runs on a pool thread.
#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/bind_executor.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/thread_pool.hpp>
#include <boost/asio/use_awaitable.hpp>

#include <utility>

#include "base/task.hpp"

namespace cairn {

class BlockingPool {
 public:
  explicit BlockingPool(std::size_t threads) : pool_(threads) {}
  ~BlockingPool() { pool_.join(); }

  // Awaits function() on a pool thread. The function must not throw and must own what it touches, or the awaiting
  // coroutine must outlive it (it does: a Task of ours is never destroyed while it is suspended).
  template <class Function>
  auto run(Function function) -> Task<decltype(function())> {
    auto back = co_await boost::asio::this_coro::executor;
    // bind_executor moves the resumption to the pool; a plain post would come back at once on the I/O thread.
    auto to_pool = boost::asio::bind_executor(pool_.get_executor(), boost::asio::use_awaitable);
    co_await boost::asio::post(to_pool);
    auto value = function();
    auto to_io = boost::asio::bind_executor(back, boost::asio::use_awaitable);
    co_await boost::asio::post(to_io);
    co_return value;
  }

 private:
  boost::asio::thread_pool pool_;
};

}  // namespace cairn

// Task<T>: a coroutine on the I/O thread.
#pragma once

#include <boost/asio/awaitable.hpp>

#include "base/result.hpp"

namespace cairn {

template <class T>
using Task = boost::asio::awaitable<T>;

template <class T>
using ResultTask = boost::asio::awaitable<Result<T>>;

}  // namespace cairn

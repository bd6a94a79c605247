// Runs a coroutine to its end on this thread, for tests.
#pragma once

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>

#include <exception>
#include <optional>
#include <utility>

#include "base/task.hpp"

namespace cairn::test {

template <class T>
T run_to_end(Task<T> task) {
  boost::asio::io_context io;
  std::optional<T> value;
  boost::asio::co_spawn(io, std::move(task), [&](std::exception_ptr thrown, T result) {
    if (thrown) std::rethrow_exception(thrown);
    value.emplace(std::move(result));
  });
  io.run();
  return std::move(*value);
}

}  // namespace cairn::test

// The way of the command line to the store: over HTTP while `cairn serve` has it, else by opening it.
// Thread: the I/O thread. Errors: a refusal is `rejected`, its context what the answer said.
#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/json/value.hpp>

#include <chrono>
#include <memory>
#include <string>
#include <string_view>

#include "backend/upstream.hpp"
#include "base/blocking_pool.hpp"
#include "base/task.hpp"
#include "checkpoint/file_layer.hpp"
#include "checkpoint/store.hpp"
#include "config.hpp"

namespace cairn {

class StoreClient {
 public:
  StoreClient(boost::asio::any_io_executor executor, const Config& config, BlockingPool& pool);

  // Whoever holds the lock of the directories is asked at `listen`, and where they may not be opened, too: if it has the store that
  // lies there. Without directories in the configuration it is asked whatever store it has.
  ResultTask<void> connect();
  // Only over HTTP: for what needs the backend as well.
  Result<void> connect_to_server();
  // The server asked has the store in the directories of the configuration. Errors: invalid, it has another.
  ResultTask<void> has_named_store(std::chrono::milliseconds limit = std::chrono::minutes{1});

  // `fields`: of a server's answer, where they are wanted.
  ResultTask<boost::json::value> call(std::string_view method, std::string path, std::string body = {},
                                      std::chrono::milliseconds limit = std::chrono::minutes{10}, HeaderFields* fields = nullptr);

 private:
  boost::asio::any_io_executor executor_;
  const Config& config_;
  BlockingPool& pool_;
  PosixFileLayer files_;
  std::unique_ptr<CheckpointStore> store_;
  std::unique_ptr<Upstream> server_;
  CancelSource never_;
};

}  // namespace cairn

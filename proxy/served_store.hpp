// The store and catalogue that `cairn serve` works with: opened at start, or later, when their directories come back.
// Thread: the I/O thread. Owner: serve; outlives the ServedModels.
#pragma once

#include <boost/asio/any_io_executor.hpp>

#include <memory>

#include "base/blocking_pool.hpp"
#include "base/task.hpp"
#include "base/wakeup.hpp"
#include "checkpoint/catalogue.hpp"
#include "checkpoint/file_layer.hpp"
#include "checkpoint/store.hpp"
#include "config.hpp"
#include "request/served_models.hpp"

namespace cairn {

StoreOptions store_options(const Config& config);

class ServedStore {
 public:
  ServedStore(boost::asio::any_io_executor executor, const Config& config, BlockingPool& pool);

  // Says in the log what it finds. Errors: invalid, when another Cairn has the directories: a command, if it may be tried again.
  ResultTask<void> open();
  // When the disk, or a command that looks at it, did not let open() succeed: goes on trying, and gives the store to the backends
  // when it does.
  void keep_trying(ServedModels& models);
  Task<void> stop();

  CheckpointStore* store() { return store_.get(); }
  Catalogue* catalogue() { return catalogue_.get(); }

 private:
  Task<void> try_again(ServedModels& models);

  boost::asio::any_io_executor executor_;
  const Config& config_;
  BlockingPool& pool_;
  PosixFileLayer files_;
  bool tried_ = false;  // open() found its way to the states
  std::unique_ptr<CheckpointStore> store_;
  std::unique_ptr<Catalogue> catalogue_;
  std::shared_ptr<Wakeup> stop_;
  std::shared_ptr<Wakeup> stopped_;  // null: not trying
};

}  // namespace cairn

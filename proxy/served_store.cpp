#include "served_store.hpp"

#include <spdlog/spdlog.h>

#include <boost/asio/co_spawn.hpp>

#include <chrono>
#include <exception>
#include <utility>

namespace cairn {

namespace {
constexpr std::chrono::milliseconds retry_interval{5000};
constexpr std::uint64_t most_tree_tokens = 128'000'000;
}  // namespace

StoreOptions store_options(const Config& config) {
  StoreOptions options;
  options.slot_dir = config.slot_dir;
  options.state_dir = config.state_dir;
  options.disk_dir = config.disk_dir;
  options.budget_bytes = config.budget_bytes;
  options.ram_budget_bytes = config.ram_budget_bytes;
  options.low_water = config.low_water;
  options.min_free_bytes = config.min_free_bytes;
  options.verify_checksums = config.verify_checksums;
  return options;
}

ServedStore::ServedStore(boost::asio::any_io_executor executor, const Config& config, BlockingPool& pool)
    : executor_(executor), config_(config), pool_(pool), stop_(std::make_shared<Wakeup>(executor)) {}

ResultTask<void> ServedStore::open() {
  StoreOptions options = store_options(config_);
  options.same_start = tried_;
  Result<std::unique_ptr<CheckpointStore>> opened = co_await CheckpointStore::open(std::move(options), files_, pool_);
  tried_ = tried_ || opened || opened.error().code != ErrorCode::invalid;
  if (!opened) co_return opened.error();
  std::unique_ptr<CheckpointStore> store = std::move(*opened);
  const StoreCounters found = store->counters();
  if (!store->index_damage().empty()) spdlog::warn("state_dir: {}; an empty index was begun", store->index_damage());
  if (!store->strange_states().empty()) {
    spdlog::warn("{} holds states of another index than the new one in {}: if that is a disk that was not mounted yet, mount it and start "
                 "again, if state_dir should be another (cairn.lock beside them names it), name that; they are deleted after some more starts "
                 "without it", store->strange_states(), config_.state_dir);
  }
  const std::uint64_t without_file = found.swept_entries - found.damaged_entries;
  if (found.swept_files > 0 || without_file > 0) {
    spdlog::warn("slot_dir: {} files without an entry in the index were removed, and {} entries without their file", found.swept_files,
                 without_file);
  }
  if (found.absent_entries > 0) {
    spdlog::warn("none of the {} states in the index lies in {}: if that is a disk that was not mounted yet, mount it and start again; "
                 "they are forgotten after some more starts without it", found.absent_entries,
                 config_.disk_dir.empty() ? "slot_dir" : "disk_dir");
  }
  store->on_index_rebuilt([](const std::string& why) {
    spdlog::warn("state_dir: the index was damaged, and built anew of what could be read ({}): is the disk all right?", why);
  });
  store->on_saving([](const Error* trouble) {
    if (trouble != nullptr) {
      spdlog::warn("nothing is saved until the disk allows it again: {}", to_string(*trouble));
    } else {
      spdlog::info("the disk allows saving again");
    }
  });
  store->on_copying([](const Error* trouble) {
    if (trouble != nullptr) {
      spdlog::warn("saved states stay in slot_dir alone, and are lost in a reboot, until disk_dir takes copies again: {}", to_string(*trouble));
    } else {
      spdlog::info("disk_dir takes copies again");
    }
  });
  const char* no_more = config_.disk_dir.empty() ? "saved" : "copied to disk_dir";
  store->on_pins_fill([no_more](std::uint64_t pinned_bytes, std::uint64_t budget_bytes) {
    spdlog::warn("pinned states take {} of the budget of {} MiB: nothing more can be {}", pinned_bytes >> 20, budget_bytes >> 20, no_more);
  });
  auto catalogue = std::make_unique<Catalogue>(*store, most_tree_tokens);
  Result<std::size_t> loaded = co_await catalogue->load();
  // Those that no tree knows would be worth nothing, and the first to go.
  if (!loaded) co_return disk_error(loaded.error().code, "the saved states cannot be read from the index: " + loaded.error().context);
  if (const std::uint64_t damaged = store->counters().damaged_entries; damaged > 0) {
    spdlog::warn("state_dir: {} entries of the index were damaged, and dropped with their states: is the disk all right?", damaged);
  }
  spdlog::info("{} saved states, {} of {} MiB", *loaded, store->counters().bytes >> 20, config_.budget_bytes >> 20);
  store_ = std::move(store);
  catalogue_ = std::move(catalogue);
  co_return Result<void>{};
}

void ServedStore::keep_trying(ServedModels& models) {
  stopped_ = std::make_shared<Wakeup>(executor_);
  boost::asio::co_spawn(executor_, try_again(models), [this](std::exception_ptr error) {
    stopped_->notify();
    if (error) std::rethrow_exception(error);
  });
}

Task<void> ServedStore::try_again(ServedModels& models) {
  bool was_anothers = false;
  while (!co_await stop_->wait_for(retry_interval)) {
    const Result<void> opened = co_await open();
    if (!opened) {
      // Both were started while a command had the directories. Our clients are served as well as without a store.
      const bool is_anothers = opened.error().code == ErrorCode::invalid && !opened.error().may_retry;
      spdlog::log(is_anothers && !was_anothers ? spdlog::level::warn : spdlog::level::debug, "slot_dir {}, state_dir {}: {}",
                  config_.slot_dir, config_.state_dir, opened.error().context);
      was_anothers = is_anothers;
      continue;
    }
    models.attach(*store_, *catalogue_);
    co_return;
  }
}

Task<void> ServedStore::stop() {
  stop_->notify();
  if (stopped_ != nullptr) co_await stopped_->wait();
}

}  // namespace cairn

// The store's start-up: what lies in its directories against what the index says. A crash may happen anywhere in it.
// Thread: the index thread, and one more while it runs; touches nothing but its arguments.
// Errors: source disk, see CheckpointStore::open.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "checkpoint/file_layer.hpp"
#include "checkpoint/index.hpp"
#include "checkpoint/record.hpp"

namespace cairn {

struct Loaded {
  std::unique_ptr<Index> index;
  std::string index_damage;  // why the index was set aside, and where to; empty: it was not
  std::unique_ptr<FileLock> state_lock, slot_lock, disk_lock;
  std::vector<NamespaceRecord> namespaces;
  std::map<std::string, std::string> settings;
  struct Left {  // could not be deleted
    CheckpointId row{};  // 0: none
    std::string file_name;
    bool on_disk = false;  // in the disk directory
  };
  std::vector<Left> left;
  std::uint64_t swept_files = 0, swept_entries = 0;
  std::uint64_t absent_entries = 0;  // not found, not forgotten
};

struct StoreDirectories {
  std::string slots, state;
  std::string disk;  // empty: no tiers
};

// What is there goes into `checkpoints`. `look_only`: nothing is set aside, forgotten or swept.
Result<Loaded> load_and_sweep(FileLayer& files, const StoreDirectories& directories, bool look_only, CheckpointEntries& checkpoints);

}  // namespace cairn

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
#include "checkpoint/store.hpp"

namespace cairn {

struct Loaded {
  std::unique_ptr<Index> index;
  std::string index_damage;  // why the index was set aside, and where to; empty: it was not
  std::unique_ptr<FileLock> state_lock, slot_lock, disk_lock;  // null, to look: no such file
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
  std::uint64_t damaged_entries = 0;  // rows that make no sense; among those swept, unless to look
  std::string owner_note;            // what our lock files say: whose states lie beside them
  std::string strange_states;        // where states lie that another index has known, which may be late or out of sight; not swept
};

// What is there goes into `checkpoints`.
Result<Loaded> load_and_sweep(FileLayer& files, const StoreOptions& options, CheckpointEntries& checkpoints);

}  // namespace cairn

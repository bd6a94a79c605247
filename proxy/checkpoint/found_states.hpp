// What lies in a directory of states, by its name alone, and what an entry of the index says that should: a million of either are no rarity.
// Thread: the index thread, and one more at start-up; touches nothing but its arguments. Errors: source disk.
#pragma once

#include <array>
#include <cstdint>
#include <limits>
#include <memory_resource>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "base/populated_memory.hpp"
#include "checkpoint/file_layer.hpp"
#include "checkpoint/record.hpp"
#include "checkpoint/state_file.hpp"
#include "checkpoint/store_disk.hpp"

namespace cairn {

constexpr std::size_t state_parts = 1 + side_file_suffixes.size();
// The state and its side files; `no_file` where there is none.
using Sizes = std::array<std::uint64_t, state_parts>;
constexpr std::uint64_t no_file = std::numeric_limits<std::uint64_t>::max();

// What an entry says that there is. Compared as numbers, in the order of the name's digits.
struct Expected {
  std::array<std::uint64_t, 2> digits{};
  Sizes sizes{};
  CheckpointId id{};
  bool operator<(const Expected& other) const { return digits < other.digits; }
};

// None when its files cannot be ours: such a name could only come from a damaged index, and is never believed, never deleted.
std::optional<Expected> expected_of(const CheckpointRecord& record);

// One of the directories that hold states, as it is found.
class FoundStates {
 public:
  explicit FoundStates(std::string path) : path_(std::move(path)) {}

  Result<void> look(FileLayer& files);

  // Its files are there, with their sizes: they are kept. An error that says nothing of that keeps them, too. Ask in ascending order.
  bool keep(const Expected& state);

  struct Swept {
    std::uint64_t files = 0;
    std::vector<std::string> left;  // states of which some file could not be deleted
  };
  // Files of ours without an entry: half-saved, never committed, or of an entry that was just removed.
  Swept sweep(FileLayer& files) const;

  const std::string& path() const { return path_; }
  std::string lock_file() const { return lock_file_in(path_); }
  bool empty() const { return files_.empty(); }
  bool kept_any() const;
  bool any_state() const;

 private:
  enum class Kind : std::uint8_t {
    file,
    other,    // something else of that name
    unknown,  // the disk would not say what it is
  };
  struct File {
    std::array<std::uint64_t, 2> digits{};
    std::uint64_t bytes = 0;
    std::uint8_t part = 0;
    Kind kind = Kind::unknown;
    bool kept = false;
    bool operator<(const File& other) const { return digits != other.digits ? digits < other.digits : part < other.part; }
  };

  std::string path_;
  std::pmr::vector<File> files_{&populated_memory()};
  std::pmr::vector<File>::iterator next_ = files_.begin();  // of keep()
};

// Names of states in `directory` that are being saved, or never were to their end.
Result<std::set<std::string>> half_saved_files(FileLayer& files, const std::string& directory);

}  // namespace cairn

// A disk in memory that loses power, fails calls and runs full; the store's files (FileLayer) and SQLite's (a VFS) both lie on it.
// Thread: any; one lock.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/file_layer.hpp"

namespace cairn::test {

// What is written lies in a cache until its file is synced, a name until its directory is.
class SimulatedDisk {
 public:
  struct Write {
    std::uint64_t offset = 0;
    std::string data;
    bool truncates = false;  // to `offset` bytes
  };
  struct Inode {
    std::uint64_t number = 0;
    std::string data;
    std::string durable;
    std::vector<Write> unsynced;  // what makes `data` of `durable`
    std::int64_t mtime_ns = 0;
  };
  using File = std::shared_ptr<Inode>;

  // Asked before each call with its number and name: an errno instead of doing it. A call that fails changes nothing, but a
  // write that finds the disk full has written what fitted.
  std::function<std::optional<int>(int number, std::string_view name)> fault;
  std::uint64_t capacity_bytes = 1u << 30;

  int calls() const { return calls_; }
  // Every call fails from now on, as after a power cut; nobody hears of anything any more.
  void die() { dead_ = true; }

  enum class Loss {
    everything,  // that was not synced
    nothing,
    some,        // a random start of the changes of names; of each file a random subset of its writes, some of them torn
  };
  // The power comes back: what is left is on the disk. Nobody may have a file open.
  void power_cut(Loss loss, std::mt19937_64& random);

  // What the file systems below do, each 0 or an errno.
  int begin(std::string_view name);
  int open(const std::string& path, bool create, File& file);
  File anonymous();
  int write(Inode& file, std::uint64_t offset, std::string_view data);
  int truncate(Inode& file, std::uint64_t bytes);
  int sync(Inode& file);
  int rename(const std::string& from, const std::string& to);
  int remove(const std::string& path);
  void sync_directory(const std::string& directory);
  File find(const std::string& path);
  std::vector<std::string> names_in(const std::string& directory);
  std::uint64_t free_bytes();
  bool take_lock(const std::string& path) { return locks_.insert(path).second; }
  void drop_lock(const std::string& path) { locks_.erase(path); }

  std::recursive_mutex mutex;  // held by the file systems over each call

 private:
  using NameChange = std::vector<std::pair<std::string, File>>;  // null: the name is gone
  static void apply(std::map<std::string, File>& names, const NameChange& change);
  std::uint64_t used_bytes() const;
  void change_names(NameChange change);

  std::map<std::string, File> names_, durable_names_;
  std::vector<NameChange> unsynced_names_;
  std::set<std::string> locks_;
  std::uint64_t last_inode_ = 0;
  std::int64_t clock_ns_ = 1;
  int calls_ = 0;
  bool dead_ = false;
};

class SimulatedFileLayer final : public FileLayer {
 public:
  explicit SimulatedFileLayer(SimulatedDisk& disk) : disk_(disk) {}
  Result<std::unique_ptr<ReadableFile>> open(const std::string& path) override;
  Result<std::unique_ptr<WritableFile>> create(const std::string& path) override;
  Result<FileStatus> status(const std::string& path) override;
  Result<DiskSpace> space(const std::string& directory) override;
  Result<std::unique_ptr<Directory>> open_directory(const std::string& path) override;
  Result<void> rename(const std::string& from, const std::string& to) override;
  Result<void> remove(const std::string& path) override;
  Result<void> sync_file(const std::string& path) override;
  Result<void> sync_directory(const std::string& directory) override;
  Result<void> make_directory(const std::string& path, DirectoryFor whom) override;
  Result<std::unique_ptr<FileLock>> lock(const std::string& path) override;

 private:
  SimulatedDisk& disk_;
};

// Makes `disk` (null: none) the one that SQLite's default VFS works on, for databases opened from now on.
void use_for_sqlite(SimulatedDisk* disk);

}  // namespace cairn::test

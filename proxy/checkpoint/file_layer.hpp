// The seam to the file system: everything the store does to files goes through it, so that a test can fail the Nth call.
// Thread: any pool thread; implementations keep no state that two threads could share.
// Owner: the caller of CheckpointStore::open; outlives the store.
// Errors: source disk; not_found (ENOENT, ENOTDIR), no_space (ENOSPC, EDQUOT), else io. `context` names call, path and errno.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "base/result.hpp"

namespace cairn {

struct FileStatus {
  std::uint64_t bytes = 0;
  std::uint64_t inode = 0;
  std::int64_t mtime_ns = 0;
  std::int64_t ctime_ns = 0;
  bool regular = false;  // not a directory, device or symbolic link
};

struct DiskSpace {
  std::uint64_t free_bytes = 0;  // what an unprivileged process may still write
  std::uint64_t total_bytes = 0;
  bool read_only = false;
  bool may_write = true;  // false: this user may neither rename nor delete what others make there
};

// Whom a directory that is made is for; what lies there tells prompts. The backend may be another user of our group, the umask permitting.
enum class DirectoryFor { owner, backend };

// Closed when it goes out of scope.
class ReadableFile {
 public:
  virtual ~ReadableFile() = default;
  virtual std::uint64_t size_bytes() const = 0;  // as it was when opened
  // Fills `out` as far as the file reaches from `offset`; 0 at its end.
  virtual Result<std::size_t> read_at(std::uint64_t offset, std::span<std::byte> out) = 0;
};

// Written from its beginning to its end; closed when it goes out of scope.
class WritableFile {
 public:
  virtual ~WritableFile() = default;
  virtual Result<void> append(std::span<const std::byte> data) = 0;
};

// What lies in a directory, in no order; closed when it goes out of scope.
class Directory {
 public:
  virtual ~Directory() = default;
  // The next plain name, good until the one after it; empty when there is none.
  virtual Result<std::string_view> next() = 0;
  // Of the file that next() named last; of a link itself, not of its target.
  virtual Result<FileStatus> status() = 0;
};

// An advisory lock, given up when it goes out of scope or its process dies.
class FileLock {
 public:
  virtual ~FileLock() = default;
  virtual Result<void> note(std::string_view text) = 0;  // in place of what the file said; may be torn by a crash
  virtual bool deleted() const = 0;                      // its file, which is not only out of sight with its directory
};

class FileLayer {
 public:
  virtual ~FileLayer() = default;
  virtual Result<std::unique_ptr<ReadableFile>> open(const std::string& path) = 0;
  // For all to read whom the umask lets. io when the name is taken.
  virtual Result<std::unique_ptr<WritableFile>> create(const std::string& path) = 0;
  virtual Result<FileStatus> status(const std::string& path) = 0;  // of a link itself, not of its target
  virtual Result<DiskSpace> space(const std::string& directory) = 0;
  virtual Result<std::unique_ptr<Directory>> open_directory(const std::string& path) = 0;
  virtual Result<void> rename(const std::string& from, const std::string& to) = 0;
  virtual Result<void> remove(const std::string& path) = 0;
  virtual Result<void> sync_file(const std::string& path) = 0;
  virtual Result<void> sync_directory(const std::string& directory) = 0;
  // With its parents, which are for our group: others' directories may lie there, too. One that exists is success, and stays as it is.
  virtual Result<void> make_directory(const std::string& path, DirectoryFor whom) = 0;
  // Creates the file when it is missing. Error `invalid` when another process holds the lock.
  virtual Result<std::unique_ptr<FileLock>> lock(const std::string& path) = 0;
};

class PosixFileLayer final : public FileLayer {
 public:
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
};

}  // namespace cairn

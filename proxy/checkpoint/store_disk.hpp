// The store's work on files, in the order that lets a crash happen anywhere in it: commit, verification, copies.
// Thread: the index thread or a disk thread; touches nothing but its arguments.
// Errors: source disk, see CheckpointStore.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/file_layer.hpp"
#include "checkpoint/record.hpp"
#include "checkpoint/state_file.hpp"
#include "checkpoint/store.hpp"

namespace cairn {

inline constexpr std::string_view name_prefix = "cairn-";
inline constexpr std::size_t name_digits = 32;
inline constexpr std::string_view saving_suffix = ".saving";
inline constexpr std::string_view state_suffix = ".state";
inline constexpr std::string_view lock_file_name = "cairn.lock";  // in both directories
std::string lock_file_in(const std::string& directory);

// "cairn-" and 32 random hex digits: never given twice, so that a stale entry cannot name another's file.
std::string new_base_name();

// Whether a directory whose lock file we made is still the one it was. io: that file is not there, and what is not found beside it comes
// back with it (unmounted, renamed).
Result<void> same_directory(FileLayer& files, const std::string& directory);
Error another_directory(const std::string& directory);
// Of a directory that is to be written to. io: it is not there, we may not write to it or, where we have its `lock`, it is not the one it
// was. Where somebody has emptied it nothing comes back: it is locked anew.
Result<DiskSpace> space_to_write(FileLayer& files, const std::string& directory, const FileLock* lock, const std::string& owner_note,
                                 std::unique_ptr<FileLock>& anew);
// As start-up does it. invalid: another Cairn has it.
Result<std::unique_ptr<FileLock>> lock_anew(FileLayer& files, const std::string& directory, const std::string& owner_note);

bool same_stamps(const std::vector<FileStamp>& a, const std::vector<FileStamp>& b, bool with_ctime);

struct Inspected {
  StateHeader header;
  std::vector<FileStamp> stamps;
  std::uint64_t bytes = 0;
  bool may_have_context_checkpoints = false;
};
// Is the file what the backend was asked to save?
Result<Inspected> inspect_saved(FileLayer& files, const std::string& path, const NewCheckpoint& expected);

struct Sealed {
  std::vector<FileStamp> stamps;  // under the final name
  Checksum checksum;
  ContextCheckpoints context_checkpoints;
  double seconds = 0;  // of the checksum
};
// Hashes it, makes it durable and gives it its final name.
Result<Sealed> seal_saved(FileLayer& files, const std::string& slot_dir, const std::string& temporary_path,
                          const std::string& final_path, const Inspected& inspected);

struct Verified {
  VerifyOutcome outcome;
  std::vector<FileStamp> stamps;
};
// corrupt or not_found: not the file of the record. `verified_as`: its stamps when this process last verified it. `so_far`: as scan_state_files().
Result<Verified> verify_files(FileLayer& files, const std::string& path, const CheckpointRecord& record,
                              const std::vector<FileStamp>& verified_as, bool read_all, std::atomic<std::uint64_t>* so_far);

// Copies the record's files from `path` into `disk_dir`, durable under their own name when it returns. corrupt: they are not
// what was committed.
Result<void> copy_to_disk(FileLayer& files, const std::string& path, const std::string& disk_dir, const std::string& temporary_name,
                          const CheckpointRecord& record);
// The way back; not synced, for that directory is in RAM.
Result<Verified> copy_to_slots(FileLayer& files, const std::string& path, const std::string& slot_dir, const std::string& temporary_name,
                               const CheckpointRecord& record);

// The state and its side files; those that are not there are success.
Result<void> remove_state_files(FileLayer& files, const std::string& path);
// What is there of them, complete or not.
std::uint64_t bytes_of_state_files(FileLayer& files, const std::string& path);

}  // namespace cairn

#include "checkpoint/store_disk.hpp"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <random>

namespace cairn {
namespace {

Error corrupt(std::string what) { return disk_error(ErrorCode::corrupt, std::move(what)); }

}  // namespace

std::string lock_file_in(const std::string& directory) { return directory + "/" + std::string(lock_file_name); }

Error another_directory(const std::string& directory) { return disk_error(ErrorCode::io, directory + " is not the directory it was"); }

Result<void> same_directory(FileLayer& files, const std::string& directory) {
  if (files.status(lock_file_in(directory))) return {};
  return another_directory(directory);
}

Result<std::unique_ptr<FileLock>> lock_anew(FileLayer& files, const std::string& directory, const std::string& owner_note) {
  auto locked = files.lock(lock_file_in(directory));
  if (!locked) return locked.error();
  if (!owner_note.empty()) (void)(*locked)->note(owner_note);  // else another Cairn would take what lies there for nobody's
  return locked;
}

Result<DiskSpace> space_to_write(FileLayer& files, const std::string& directory, const FileLock* lock, const std::string& owner_note,
                                 std::unique_ptr<FileLock>& anew) {
  if (lock != nullptr) {
    auto same = same_directory(files, directory);
    if (!same && lock->deleted()) {
      if (auto locked = lock_anew(files, directory, owner_note)) anew = std::move(*locked);
    }
    if (!same && anew == nullptr) return same.error();
  }
  auto space = files.space(directory);
  if (!space && space.error().code == ErrorCode::not_found) return disk_error(ErrorCode::io, space.error().context);
  if (space && space->read_only) return disk_error(ErrorCode::io, directory + " is read-only");
  if (space && !space->may_write) {
    return disk_error(ErrorCode::io, directory + " may not be written by user " + std::to_string(::geteuid()) +
                                         ", who is to rename and delete the files there: give write access "
                                         "(chown, or chmod g+w and a group shared with llama-server)");
  }
  return space;
}

bool same_stamps(const std::vector<FileStamp>& a, const std::vector<FileStamp>& b, bool with_ctime) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [&](const FileStamp& left, const FileStamp& right) {
    return left.suffix == right.suffix && left.bytes == right.bytes && left.inode == right.inode &&
           left.mtime_ns == right.mtime_ns && (!with_ctime || left.ctime_ns == right.ctime_ns);
  });
}

std::string new_base_name() {
  std::random_device random;
  std::string name{name_prefix};
  for (std::size_t i = 0; i < name_digits / 8; ++i) {
    const auto bits = static_cast<std::uint32_t>(random());
    for (int shift = 28; shift >= 0; shift -= 4) name.push_back("0123456789abcdef"[(bits >> shift) & 15]);
  }
  return name;
}

Result<void> remove_state_files(FileLayer& files, const std::string& path) {
  // Side files first: they are found again by the state's name as long as it is there.
  Result<void> result;
  for (const std::string_view suffix : {side_file_suffixes[0], side_file_suffixes[1], std::string_view{}}) {
    auto removed = files.remove(path + std::string(suffix));
    if (!removed && removed.error().code != ErrorCode::not_found && result) result = removed;
  }
  return result;
}

std::uint64_t bytes_of_state_files(FileLayer& files, const std::string& path) {
  std::uint64_t bytes = 0;
  for (const std::string_view suffix : {std::string_view{}, side_file_suffixes[0], side_file_suffixes[1]}) {
    const auto status = files.status(path + std::string(suffix));
    if (status && status->regular) bytes += status->bytes;
  }
  return bytes;
}

Result<Inspected> inspect_saved(FileLayer& files, const std::string& path, const NewCheckpoint& expected) {
  Inspected inspected;
  auto stamps = stamp_state_files(files, path);
  if (!stamps) return stamps.error();
  inspected.stamps = std::move(*stamps);
  for (const FileStamp& stamp : inspected.stamps) inspected.bytes += stamp.bytes;
  if (inspected.stamps.front().bytes < expected.saved_bytes) {
    return disk_error(ErrorCode::io, "saved file is shorter than the backend said: not all of it was written");
  }
  auto header = read_state_header(files, path);
  if (!header) return header.error();
  inspected.header = std::move(*header);
  const Tokens& tokens = inspected.header.tokens;
  if (inspected.header.has_media) {
    return disk_error(ErrorCode::unsupported, "saved file holds images or audio: its tokens do not say all");
  }
  if (tokens.empty()) return corrupt("saved file holds no tokens: the slot was empty");
  if (tokens.size() != expected.saved_tokens) {
    return corrupt("saved file holds " + std::to_string(tokens.size()) + " tokens, the backend said " +
                   std::to_string(expected.saved_tokens));
  }
  const std::size_t shared = common_prefix(tokens, expected.expected_prefix);
  if (shared != expected.expected_prefix.size()) {
    return corrupt("saved file holds other tokens from position " + std::to_string(shared) + " on");
  }
  inspected.may_have_context_checkpoints =
      inspected.header.version >= 4 && expected.kind != CheckpointKind::truncatable;
  return inspected;
}

Result<Sealed> seal_saved(FileLayer& files, const std::string& slot_dir, const std::string& temporary_path,
                          const std::string& final_path, const Inspected& inspected) {
  Sealed sealed;
  auto scan = scan_state_files(files, temporary_path, inspected.stamps, inspected.may_have_context_checkpoints);
  if (!scan) return scan.error();
  sealed.checksum = scan->checksum;
  sealed.seconds = scan->seconds;
  if (!scan->appendix_candidates.empty()) {
    auto file = files.open(temporary_path);
    if (!file) return file.error();
    auto found = read_context_checkpoints(**file, inspected.header, scan->appendix_candidates);
    if (!found) return found.error();
    sealed.context_checkpoints = std::move(*found);
  }
  for (const FileStamp& stamp : inspected.stamps) {
    if (auto synced = files.sync_file(temporary_path + stamp.suffix); !synced) return synced.error();
  }
  // The state last: once it has its final name, all of it is there. The entry comes after the directory is synced.
  for (auto stamp = inspected.stamps.rbegin(); stamp != inspected.stamps.rend(); ++stamp) {
    auto renamed = files.rename(temporary_path + stamp->suffix, final_path + stamp->suffix);
    if (!renamed) return renamed.error();
  }
  if (auto synced = files.sync_directory(slot_dir); !synced) return synced.error();
  auto stamps = stamp_state_files(files, final_path);
  if (!stamps) return stamps.error();
  if (!same_stamps(*stamps, inspected.stamps, false)) return corrupt("saved file changed while it was committed");
  sealed.stamps = std::move(*stamps);
  return sealed;
}

Result<Verified> verify_files(FileLayer& files, const std::string& path, const CheckpointRecord& record,
                              const std::vector<FileStamp>& verified_as, bool read_all, std::atomic<std::uint64_t>* so_far) {
  Verified verified;
  auto stamps = stamp_state_files(files, path);
  if (!stamps) return stamps.error();
  verified.stamps = std::move(*stamps);
  if (!same_sizes(verified.stamps, record.files)) return corrupt(path + " changed its size");
  if (!verified_as.empty() && same_stamps(verified.stamps, verified_as, true)) return verified;
  if (!read_all) {
    if (!same_stamps(verified.stamps, record.files, false)) return corrupt(path + " is not the file that was committed");
    return verified;
  }
  auto scan = scan_state_files(files, path, verified.stamps, false, so_far);
  if (!scan) return scan.error();
  verified.outcome = VerifyOutcome{true, scan->bytes, scan->seconds};
  if (scan->checksum != record.checksum) return corrupt(path + " does not match its checksum");
  // Stamps taken before the read: a file that changed meanwhile is read again the next time.
  return verified;
}

namespace {

// Copies what lies at `path` to a temporary name in `directory`, checking it, and gives it its own name there.
Result<Verified> copy_files(FileLayer& files, const std::string& path, const std::string& directory, const std::string& temporary_name,
                            const CheckpointRecord& record, bool durable) {
  const auto began = std::chrono::steady_clock::now();
  auto stamps = stamp_state_files(files, path);
  if (!stamps) return stamps.error();
  if (!same_sizes(*stamps, record.files)) return corrupt(path + " changed its size");
  const std::string temporary_path = directory + "/" + temporary_name;
  auto copied = copy_state_files(files, path, *stamps, temporary_path);
  if (!copied) return copied.error();
  if (copied->checksum != record.checksum) return corrupt(path + " does not match its checksum");
  if (durable) {
    for (const FileStamp& stamp : *stamps) {
      if (auto synced = files.sync_file(temporary_path + stamp.suffix); !synced) return synced.error();
    }
  }
  // The state last: once it has its own name, all of it is there.
  const std::string final_path = directory + "/" + record.file_name;
  for (auto stamp = stamps->rbegin(); stamp != stamps->rend(); ++stamp) {
    auto renamed = files.rename(temporary_path + stamp->suffix, final_path + stamp->suffix);
    if (!renamed) return renamed.error();
  }
  if (durable) {
    if (auto synced = files.sync_directory(directory); !synced) return synced.error();
  }
  Verified verified;
  auto there = stamp_state_files(files, final_path);
  if (!there) return there.error();
  // Somebody else's doing; what was copied was good.
  if (!same_sizes(*there, record.files)) return disk_error(ErrorCode::io, final_path + " changed while it was copied");
  verified.stamps = std::move(*there);
  verified.outcome = VerifyOutcome{true, copied->bytes, std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count()};
  return verified;
}

}  // namespace

Result<void> copy_to_disk(FileLayer& files, const std::string& path, const std::string& disk_dir, const std::string& temporary_name,
                          const CheckpointRecord& record) {
  auto copied = copy_files(files, path, disk_dir, temporary_name, record, true);
  if (!copied) return copied.error();
  return {};
}

Result<Verified> copy_to_slots(FileLayer& files, const std::string& path, const std::string& slot_dir, const std::string& temporary_name,
                               const CheckpointRecord& record) {
  return copy_files(files, path, slot_dir, temporary_name, record, false);
}

}  // namespace cairn

#include "checkpoint/store_disk.hpp"

#include <algorithm>
#include <random>
#include <set>

namespace cairn {
namespace {

constexpr std::string_view name_prefix = "cairn-";
constexpr std::size_t hex_digits = 32;

Error corrupt(std::string what) { return disk_error(ErrorCode::corrupt, std::move(what)); }

bool same_stamps(const std::vector<FileStamp>& a, const std::vector<FileStamp>& b, bool with_ctime) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [&](const FileStamp& left, const FileStamp& right) {
    return left.suffix == right.suffix && left.bytes == right.bytes && left.inode == right.inode &&
           left.mtime_ns == right.mtime_ns && (!with_ctime || left.ctime_ns == right.ctime_ns);
  });
}

// For whoever wants to look at it. Its error when it cannot be moved.
Result<void> set_index_aside(FileLayer& files, const std::string& path, const Error& why, std::string& because) {
  const std::string aside = path + (why.code == ErrorCode::unsupported ? ".newer" : ".bad");
  because = why.context + "; it is set aside as " + aside;
  for (const char* suffix : {"-wal", "-shm"}) {
    // The log belongs to the database: without it a newer one would not be whole.
    auto moved = files.rename(path + suffix, aside + suffix);
    if (!moved && moved.error().code != ErrorCode::not_found) return why;
  }
  if (auto moved = files.rename(path, aside); !moved) return why;
  return {};
}

// Opens the index; one that is damaged or of a newer format is set aside.
Result<std::unique_ptr<Index>> open_index(FileLayer& files, const std::string& path, std::string& set_aside_because) {
  auto index = Index::open(path);
  if (index || (index.error().code != ErrorCode::corrupt && index.error().code != ErrorCode::unsupported)) return index;
  if (auto aside = set_index_aside(files, path, index.error(), set_aside_because); !aside) return aside.error();
  return Index::open(path);
}

// What the index says, or `corrupt`.
Result<void> read_index(Loaded& loaded, std::vector<CheckpointId>& unreadable) {
  auto namespaces = loaded.index->namespaces();
  if (!namespaces) return namespaces.error();
  auto settings = loaded.index->settings();
  if (!settings) return settings.error();
  unreadable.clear();
  auto checkpoints = loaded.index->checkpoints(unreadable);
  if (!checkpoints) return checkpoints.error();
  loaded.namespaces = std::move(*namespaces);
  loaded.settings = std::move(*settings);
  loaded.checkpoints = std::move(*checkpoints);
  return {};
}

}  // namespace

std::string new_base_name() {
  std::random_device random;
  std::string name{name_prefix};
  for (std::size_t i = 0; i < hex_digits / 8; ++i) {
    const auto bits = static_cast<std::uint32_t>(random());
    for (int shift = 28; shift >= 0; shift -= 4) name.push_back("0123456789abcdef"[(bits >> shift) & 15]);
  }
  return name;
}

std::string state_name_of(const std::string& name) {
  const std::size_t base = name_prefix.size() + hex_digits;
  if (name.size() <= base || !name.starts_with(name_prefix)) return {};
  const auto is_hex = [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); };
  const std::string digits = name.substr(name_prefix.size(), hex_digits);
  if (!std::all_of(digits.begin(), digits.end(), is_hex)) return {};
  const std::string rest = name.substr(base);
  for (const std::string_view suffix : {state_suffix, saving_suffix}) {
    if (!rest.starts_with(suffix)) continue;
    const std::string side = rest.substr(suffix.size());
    const auto known = std::find(side_file_suffixes.begin(), side_file_suffixes.end(), side);
    if (side.empty() || known != side_file_suffixes.end()) return name.substr(0, base + suffix.size());
  }
  return {};
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

Result<Loaded> load_and_sweep(FileLayer& files, const std::string& slot_dir, const std::string& state_dir) {
  Loaded loaded;
  if (auto made = files.make_directory(state_dir); !made) return made.error();
  // Before anything is touched. Without the list nothing may be swept: every entry would seem to have lost its file.
  auto names = files.list(slot_dir);
  if (!names) return names.error();
  auto state_lock = files.lock(state_dir + "/" + std::string(lock_file_name));
  if (!state_lock) return state_lock.error();
  loaded.state_lock = std::move(*state_lock);
  auto slot_lock = files.lock(slot_dir + "/" + std::string(lock_file_name));
  // In a slot directory that we cannot write we can at least restore.
  if (!slot_lock && slot_lock.error().code == ErrorCode::invalid) return slot_lock.error();
  if (slot_lock) loaded.slot_lock = std::move(*slot_lock);
  names = files.list(slot_dir);  // again, now that nobody else sweeps or saves there
  if (!names) return names.error();

  const std::string index_path = state_dir + "/index.sqlite";
  auto index = open_index(files, index_path, loaded.index_damage);
  if (!index) return index.error();
  loaded.index = std::move(*index);
  std::vector<CheckpointId> doomed;
  auto read = read_index(loaded, doomed);
  if (!read && read.error().code == ErrorCode::corrupt) {
    loaded.index.reset();
    auto aside = set_index_aside(files, index_path, read.error(), loaded.index_damage);
    if (!aside) return aside.error();
    auto fresh = open_index(files, index_path, loaded.index_damage);
    if (!fresh) return fresh.error();
    loaded.index = std::move(*fresh);
    read = read_index(loaded, doomed);
  }
  if (!read) return read.error();

  // Entries without their files, or with files of another size.
  std::set<std::string> kept;
  std::vector<CheckpointRecord> good;
  for (CheckpointRecord& record : loaded.checkpoints) {
    // A name that is not ours could only come from a damaged index: never believed, never deleted.
    const bool ours = state_name_of(record.file_name) == record.file_name;
    auto stamps = stamp_state_files(files, slot_dir + "/" + record.file_name);
    const bool lost = !stamps && (stamps.error().code == ErrorCode::not_found ||
                                  stamps.error().code == ErrorCode::corrupt);
    if (!ours || lost || (stamps && !same_sizes(*stamps, record.files))) {
      doomed.push_back(record.id);
      continue;
    }
    kept.insert(record.file_name);
    good.push_back(std::move(record));
  }
  loaded.checkpoints = std::move(good);
  loaded.swept_entries = doomed.size();
  if (auto removed = loaded.index->remove_checkpoints(doomed); !removed) {
    for (const CheckpointId id : doomed) loaded.left.emplace_back(id, new_base_name());  // the row alone is left
  }

  // Files of ours without an entry: half-saved, never committed, or of an entry that was just removed.
  for (const std::string& name : *names) {
    const std::string state_name = state_name_of(name);
    if (state_name.empty() || kept.contains(state_name)) continue;
    const std::string path = slot_dir + "/" + name;
    const auto status = files.status(path);
    if (!status || !status->regular) continue;
    auto removed = files.remove(path);
    if (removed) {
      ++loaded.swept_files;
    } else {
      loaded.left.emplace_back(CheckpointId{}, state_name);
    }
  }
  return loaded;
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
                              const std::vector<FileStamp>& verified_as, bool read_all) {
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
  auto scan = scan_state_files(files, path, verified.stamps, false);
  if (!scan) return scan.error();
  verified.outcome = VerifyOutcome{true, scan->bytes, scan->seconds};
  if (scan->checksum != record.checksum) return corrupt(path + " does not match its checksum");
  // Stamps taken before the read: a file that changed meanwhile is read again the next time.
  return verified;
}

}  // namespace cairn

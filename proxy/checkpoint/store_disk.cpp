#include "checkpoint/store_disk.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <optional>
#include <random>
#include <unordered_map>

namespace cairn {
namespace {

constexpr std::string_view name_prefix = "cairn-";
constexpr std::size_t hex_digits = 32;
constexpr std::string_view disk_dir_setting = "disk_dir";

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

namespace {

// What tells two of our names apart: the random digits, and which file of a state it is.
struct OwnName {
  std::array<std::uint64_t, 2> digits{};
  std::size_t part = 0;  // of `parts`
};

constexpr std::array<std::string_view, 3> part_suffixes{"", side_file_suffixes[0], side_file_suffixes[1]};
constexpr std::size_t parts = 2 * part_suffixes.size();  // of a state first, then of one that is being saved

std::string_view suffix_of(std::size_t part) { return part < part_suffixes.size() ? state_suffix : saving_suffix; }

std::optional<OwnName> parse_name(std::string_view name) {
  constexpr std::size_t base = name_prefix.size() + hex_digits;
  if (name.size() <= base || !name.starts_with(name_prefix)) return std::nullopt;
  OwnName own;
  for (std::size_t i = 0; i < hex_digits; ++i) {
    const char c = name[name_prefix.size() + i];
    const bool is_digit = c >= '0' && c <= '9';
    if (!is_digit && (c < 'a' || c > 'f')) return std::nullopt;
    std::uint64_t& half = own.digits[i * 2 / hex_digits];
    half = half << 4 | static_cast<std::uint64_t>(is_digit ? c - '0' : c - 'a' + 10);
  }
  const std::string_view rest = name.substr(base);
  for (; own.part < parts; ++own.part) {
    const std::string_view suffix = suffix_of(own.part);
    if (rest.starts_with(suffix) && rest.substr(suffix.size()) == part_suffixes[own.part % part_suffixes.size()]) return own;
  }
  return std::nullopt;
}

}  // namespace

std::string state_name_of(const std::string& name) {
  const std::optional<OwnName> own = parse_name(name);
  return own ? name.substr(0, name_prefix.size() + hex_digits + suffix_of(own->part).size()) : std::string{};
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

namespace {

// One of the directories that hold states, as it is found. A million files are no rarity: names are kept as numbers.
class Found {
 public:
  Found(std::string path, bool on_disk) : path_(std::move(path)), on_disk_(on_disk) {}

  Result<void> list(FileLayer& files) {
    auto names = files.list(path_);
    if (!names) return names.error();
    states_.reserve(names->size());
    for (const std::string& name : *names) {
      if (const std::optional<OwnName> own = parse_name(name)) states_[own->digits].there |= 1U << own->part;
    }
    return {};
  }

  // The files of the record are there, with their sizes: they are kept. An error that says nothing of that keeps them, too.
  bool keep(FileLayer& files, const CheckpointRecord& record) {
    // A name that is not ours could only come from a damaged index: never believed, never deleted.
    const std::optional<OwnName> own = parse_name(record.file_name);
    if (!own || own->part != 0) return false;
    const auto state = states_.find(own->digits);
    if (state == states_.end() || (state->second.there & 1U) == 0) return false;
    std::vector<FileStamp> stamps;
    for (std::size_t part = 0; part < part_suffixes.size(); ++part) {
      if ((state->second.there & 1U << part) == 0) continue;
      const std::string suffix{part_suffixes[part]};
      auto status = files.status(path_ + "/" + record.file_name + suffix);
      if (!status && status.error().code != ErrorCode::not_found) return state->second.kept = true;
      if (!status || !status->regular) return false;
      stamps.push_back({suffix, status->bytes, status->inode, status->mtime_ns, status->ctime_ns});
    }
    return state->second.kept = same_sizes(stamps, record.files);
  }

  // Files of ours without an entry: half-saved, never committed, or of an entry that was just removed.
  void sweep(FileLayer& files, Loaded& loaded) const {
    for (const auto& [digits, state] : states_) {
      for (std::size_t part = state.kept ? part_suffixes.size() : 0; part < parts; ++part) {
        if ((state.there & 1U << part) == 0) continue;
        const std::string state_name = fmt::format("{}{:016x}{:016x}{}", name_prefix, digits[0], digits[1], suffix_of(part));
        const std::string path = path_ + "/" + state_name + std::string(part_suffixes[part % part_suffixes.size()]);
        const auto status = files.status(path);
        if (!status || !status->regular) continue;
        if (files.remove(path)) {
          ++loaded.swept_files;
        } else {
          loaded.left.push_back({CheckpointId{}, state_name, on_disk_});
        }
      }
    }
  }

 private:
  struct State {
    std::uint8_t there = 0;  // a bit for each part
    bool kept = false;       // it has an entry
  };
  struct HashDigits {
    std::size_t operator()(const std::array<std::uint64_t, 2>& digits) const { return digits[0]; }  // they are random
  };

  std::string path_;
  bool on_disk_ = false;
  std::unordered_map<std::array<std::uint64_t, 2>, State, HashDigits> states_;
};

}  // namespace

Result<Loaded> load_and_sweep(FileLayer& files, const std::string& slot_dir, const std::string& state_dir, const std::string& disk_dir) {
  Loaded loaded;
  const bool tiers = !disk_dir.empty();
  Found slots(slot_dir, false), disk(disk_dir, true);
  if (auto made = files.make_directory(state_dir); !made) return made.error();
  if (tiers) {
    // After a reboot the RAM is empty.
    for (const std::string& directory : {disk_dir, slot_dir}) {
      if (auto made = files.make_directory(directory); !made) return made.error();
    }
  }
  // Before anything is touched. Without the list nothing may be swept: every entry would seem to have lost its file.
  if (auto listed = files.list(slot_dir); !listed) return listed.error();
  auto state_lock = files.lock(state_dir + "/" + std::string(lock_file_name));
  if (!state_lock) return state_lock.error();
  loaded.state_lock = std::move(*state_lock);
  auto slot_lock = files.lock(slot_dir + "/" + std::string(lock_file_name));
  // In a slot directory that we cannot write we can at least restore.
  if (!slot_lock && slot_lock.error().code == ErrorCode::invalid) return slot_lock.error();
  if (slot_lock) loaded.slot_lock = std::move(*slot_lock);
  // Again, now that nobody else sweeps or saves there.
  if (auto listed = slots.list(files); !listed) return listed.error();
  if (tiers) {
    auto disk_lock = files.lock(disk_dir + "/" + std::string(lock_file_name));
    if (!disk_lock) return disk_lock.error();
    loaded.disk_lock = std::move(*disk_lock);
    if (auto listed = disk.list(files); !listed) return listed.error();
  }

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

  // Who forgets to name the disk directory must not forget what lies in it.
  const auto known = loaded.settings.find(std::string(disk_dir_setting));
  const std::string known_dir = known == loaded.settings.end() ? "" : known->second;
  if (known_dir != disk_dir) {
    const auto is_ours = [](const std::string& name) { return !state_name_of(name).empty(); };
    const auto there = known_dir.empty() ? Result<std::vector<std::string>>{std::vector<std::string>{}} : files.list(known_dir);
    if (there && std::any_of(there->begin(), there->end(), is_ours)) {
      return disk_error(ErrorCode::unsupported, "states lie in " + known_dir + ": disk_dir must name it, or where they were moved to");
    }
    if (auto put = loaded.index->put_setting(std::string(disk_dir_setting), disk_dir); !put) return put.error();
    loaded.settings[std::string(disk_dir_setting)] = disk_dir;
  }

  // Entries without their files, or with files of another size.
  for (CheckpointRecord& record : loaded.checkpoints) {
    record.in_slots = slots.keep(files, record);
    record.on_disk = tiers && disk.keep(files, record);
    if (!record.in_slots && !record.on_disk) doomed.push_back(record.id);
  }
  std::erase_if(loaded.checkpoints, [](const CheckpointRecord& record) { return !record.in_slots && !record.on_disk; });
  loaded.swept_entries = doomed.size();
  if (auto removed = loaded.index->remove_checkpoints(doomed); !removed) {
    for (const CheckpointId id : doomed) loaded.left.push_back({id, new_base_name(), false});  // the row alone is left
  }
  slots.sweep(files, loaded);
  if (tiers) disk.sweep(files, loaded);
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
  if (!same_sizes(*there, record.files)) return corrupt(final_path + " changed while it was copied");
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

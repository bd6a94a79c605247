#include "checkpoint/store_startup.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <future>
#include <limits>
#include <memory_resource>
#include <optional>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "base/place.hpp"
#include "base/populated_memory.hpp"
#include "checkpoint/late_starts.hpp"
#include "checkpoint/state_file.hpp"
#include "checkpoint/store_disk.hpp"
#include "checkpoint/store_identity.hpp"

namespace cairn {
namespace {

constexpr std::string_view disk_dir_setting = "disk_dir";
// The lock file beside which the states were last found: under a mount point whose disk is late another one may lie.
constexpr std::string_view place_setting = "states_beside";

// ---- names

constexpr std::array<std::string_view, 3> part_suffixes{"", side_file_suffixes[0], side_file_suffixes[1]};
constexpr std::size_t state_parts = part_suffixes.size();
constexpr std::size_t parts = 2 * state_parts;  // of a state first, then of one that is being saved

std::string_view suffix_of(std::size_t part) { return part < state_parts ? state_suffix : saving_suffix; }

// Over 15: not a digit that we write.
constexpr std::array<std::uint8_t, 256> hex_values = [] {
  std::array<std::uint8_t, 256> values{};
  values.fill(0xff);
  for (std::uint8_t value = 0; value < 16; ++value) values[static_cast<unsigned char>("0123456789abcdef"[value])] = value;
  return values;
}();

// What tells two of our names apart: the random digits, and which file of a state it is.
struct OwnName {
  std::array<std::uint64_t, 2> digits{};
  std::uint8_t part = 0;
};

std::optional<OwnName> parse_name(std::string_view name) {
  constexpr std::size_t base = name_prefix.size() + name_digits;
  if (name.size() <= base || !name.starts_with(name_prefix)) return std::nullopt;
  OwnName own;
  std::uint8_t seen = 0;
  for (std::size_t i = 0; i < name_digits; ++i) {
    const std::uint8_t value = hex_values[static_cast<unsigned char>(name[name_prefix.size() + i])];
    seen |= value;
    std::uint64_t& half = own.digits[i * 2 / name_digits];
    half = half << 4 | (value & 15U);
  }
  if (seen > 15) return std::nullopt;
  const std::string_view rest = name.substr(base);
  for (; own.part < parts; ++own.part) {
    const std::string_view suffix = suffix_of(own.part);
    if (rest.starts_with(suffix) && rest.substr(suffix.size()) == part_suffixes[own.part % state_parts]) return own;
  }
  return std::nullopt;
}

// ---- files

// The state and its side files; `no_file` where there is none.
using Sizes = std::array<std::uint64_t, state_parts>;
constexpr std::uint64_t no_file = std::numeric_limits<std::uint64_t>::max();

// What an entry says that there is. A million of them are no rarity: compared as numbers, in the order of their digits.
struct Expected {
  std::array<std::uint64_t, 2> digits{};
  Sizes sizes{};
  CheckpointId id{};
  bool operator<(const Expected& other) const { return digits < other.digits; }
};

// None when its files cannot be ours: such a name could only come from a damaged index, and is never believed, never deleted.
std::optional<Expected> expected_of(const CheckpointRecord& record) {
  const std::optional<OwnName> own = parse_name(record.file_name);
  if (!own || own->part != 0) return std::nullopt;
  Expected expected{own->digits, {}, record.id};
  expected.sizes.fill(no_file);
  for (const FileStamp& file : record.files) {
    const auto part = std::find(part_suffixes.begin(), part_suffixes.end(), file.suffix);
    if (part == part_suffixes.end()) return std::nullopt;
    expected.sizes[static_cast<std::size_t>(part - part_suffixes.begin())] = file.bytes;
  }
  return expected;
}

// One of the directories that hold states, as it is found.
class Found {
 public:
  Found(std::string path, bool on_disk) : path_(std::move(path)), on_disk_(on_disk) {}

  Result<void> look(FileLayer& files) {
    auto directory = files.open_directory(path_);
    if (!directory) return directory.error();
    for (;;) {
      const auto name = (*directory)->next();
      if (!name) return name.error();
      if (name->empty()) break;
      const std::optional<OwnName> own = parse_name(*name);
      if (!own) continue;
      const auto status = (*directory)->status();
      if (!status && status.error().code == ErrorCode::not_found) continue;
      const Kind kind = !status ? Kind::unknown : status->regular ? Kind::file : Kind::other;
      files_.push_back({own->digits, status ? status->bytes : 0, own->part, kind});
    }
    std::sort(files_.begin(), files_.end());
    next_ = files_.begin();
    return {};
  }

  // Its files are there, with their sizes: they are kept. An error that says nothing of that keeps them, too. Ask in ascending order.
  bool keep(const Expected& state) {
    while (next_ != files_.end() && next_->digits < state.digits) ++next_;
    if (next_ == files_.end() || next_->digits != state.digits || next_->part != 0) return false;
    Sizes sizes;
    sizes.fill(no_file);
    bool unknown = false;
    auto end = next_;
    for (; end != files_.end() && end->digits == state.digits && end->part < state_parts; ++end) {
      if (end->kind == Kind::other) return false;
      unknown = unknown || end->kind == Kind::unknown;
      sizes[end->part] = end->bytes;
    }
    if (!unknown && sizes != state.sizes) return false;
    for (auto file = next_; file != end; ++file) file->kept = true;
    return true;
  }

  // Files of ours without an entry: half-saved, never committed, or of an entry that was just removed.
  void sweep(FileLayer& files, Loaded& loaded) const {
    for (const File& file : files_) {
      if (file.kept || file.kind != Kind::file) continue;
      const std::string state_name = fmt::format("{}{:016x}{:016x}{}", name_prefix, file.digits[0], file.digits[1], suffix_of(file.part));
      if (files.remove(path_ + "/" + state_name + std::string(part_suffixes[file.part % state_parts]))) {
        ++loaded.swept_files;
      } else {
        loaded.left.push_back({CheckpointId{}, state_name, on_disk_});
      }
    }
  }

  const std::string& path() const { return path_; }
  std::string lock_file() const { return lock_file_in(path_); }
  bool empty() const { return files_.empty(); }
  bool kept_any() const {
    return std::any_of(files_.begin(), files_.end(), [](const File& file) { return file.kept; });
  }
  bool any_state() const {
    return std::any_of(files_.begin(), files_.end(), [](const File& file) { return file.part == 0 && file.kind == Kind::file; });
  }

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
  bool on_disk_ = false;
  std::pmr::vector<File> files_{&populated_memory()};
  std::pmr::vector<File>::iterator next_ = files_.begin();  // of keep()
};

// ---- index

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

// What the index says.
struct Read {
  std::pmr::vector<Expected> expected{&populated_memory()};  // of the checkpoints, in ascending order
  std::vector<CheckpointId> doomed;                          // rows that make no sense
};

// corrupt, unsupported: it must be set aside.
Result<Read> read_index(Result<std::unique_ptr<Index>> index, Loaded& loaded, CheckpointEntries& checkpoints) {
  if (!index) return index.error();
  auto namespaces = (*index)->namespaces();
  if (!namespaces) return namespaces.error();
  auto settings = (*index)->settings();
  if (!settings) return settings.error();
  checkpoints.clear();
  Read read;
  const auto take = [&](CheckpointRecord record) {
    const CheckpointId id = record.id;
    if (const std::optional<Expected> expected = expected_of(record)) {
      read.expected.push_back(*expected);
      checkpoints.try_emplace(id, CheckpointEntry{std::move(record), false, {}, 0});
    } else {
      read.doomed.push_back(id);
    }
  };
  if (auto told = (*index)->for_each_checkpoint(take, read.doomed); !told) return told.error();
  std::sort(read.expected.begin(), read.expected.end());
  loaded.index = std::move(*index);
  loaded.namespaces = std::move(*namespaces);
  loaded.settings = std::move(*settings);
  return read;
}

// What a lock file says. Empty when it tells nothing. Those beside the states name the index that knows them, the one beside the index
// who took it last.
std::string read_note(FileLayer& files, const std::string& lock_file) {
  constexpr std::size_t longest = 4096 + 1 + name_digits;
  const auto file = files.open(lock_file);
  if (!file || (*file)->size_bytes() > longest) return {};
  std::string text((*file)->size_bytes(), '\0');
  const auto read = (*file)->read_at(0, std::as_writable_bytes(std::span<char>(text)));
  return read && *read == text.size() ? text : std::string{};
}

// The index that knows the states beside a lock file.
struct Owner {
  std::string directory;  // empty: it tells nothing
  std::string id;         // likewise; older ones had none
  std::string text() const { return id.empty() ? directory : directory + "\n" + id; }
  bool operator==(const Owner&) const = default;
};

Owner read_owner(FileLayer& files, const std::string& lock_file) {
  const std::string text = read_note(files, lock_file);
  const std::size_t end = text.rfind('\n');
  if (end == std::string::npos || text.size() - end - 1 != name_digits) return {text, {}};
  return {text.substr(0, end), text.substr(end + 1)};
}


constexpr std::string_view who_serves = "cairn serve";
std::string holder_note(bool look_only) { return fmt::format("{}, process {}", look_only ? "a command" : who_serves, ::getpid()); }

// Who only looks is done after a while, so that the directories may be asked for again; who serves is not. `index_dir`: whose lock
// file tells; empty: nobody who serves has noted that the states are his.
Error held_by_another(FileLayer& files, Error error, const std::string& index_dir) {
  const std::string holder = index_dir.empty() ? std::string{} : read_note(files, lock_file_in(index_dir));
  error.may_retry = !holder.starts_with(who_serves);
  if (!holder.empty()) error.context += fmt::format(" ({})", holder);
  return error;
}

// To look, one that is missing is not made: whoever came after could perhaps not open it.
Result<std::unique_ptr<FileLock>> lock_directory(FileLayer& files, const std::string& directory, bool look_only) {
  const std::string path = lock_file_in(directory);
  if (look_only) {
    const auto there = files.status(path);
    if (!there && there.error().code == ErrorCode::not_found) return std::unique_ptr<FileLock>{};
  }
  return files.lock(path);
}

// False only when there is no index, or none any more.
bool has_index(FileLayer& files, const std::string& directory) {
  if (directory.empty()) return false;
  const auto status = files.status(index_in(directory));
  return status || status.error().code != ErrorCode::not_found;
}

std::string identity_of(const FileStatus& lock_file) { return fmt::format("{}:{}", lock_file.inode, lock_file.mtime_ns); }

// A directory without its lock file, in which nothing of what the index says is found, is a mount point whose disk is late, or was
// emptied. What should be there is not forgotten at once: its files would be swept when the disk is back.
bool believed_away(bool strange, bool found_any, const LateStarts& starts, bool one_more) {
  return starts.count > 0 ? starts.count < LateStarts::most || !one_more : strange && !found_any;
}

}  // namespace

Result<std::set<std::string>> half_saved_files(FileLayer& files, const std::string& directory) {
  auto opened = files.open_directory(directory);
  if (!opened) return opened.error();
  std::set<std::string> found;
  for (;;) {
    const auto name = (*opened)->next();
    if (!name) return name.error();
    if (name->empty()) return found;
    const std::optional<OwnName> own = parse_name(*name);
    if (own && own->part >= state_parts) found.insert(std::string(name->substr(0, name->size() - part_suffixes[own->part % state_parts].size())));
  }
}

Result<Loaded> load_and_sweep(FileLayer& files, const StoreOptions& options, CheckpointEntries& checkpoints) {
  const std::string &slot_dir = options.slot_dir, &state_dir = options.state_dir, &disk_dir = options.disk_dir;
  const bool look_only = options.look_only;
  Loaded loaded;
  const bool tiers = !disk_dir.empty();
  Found slots(slot_dir, false), disk(disk_dir, true);
  // Where every state should lie.
  const Found& lasting = tiers ? disk : slots;
  const std::string lasting_lock = lasting.lock_file();
  const auto lock_seen = files.status(lasting_lock);
  const bool no_lock = !lock_seen && lock_seen.error().code == ErrorCode::not_found;
  const std::string own_index = place_of(state_dir);  // as a lock file says it
  const auto no_store = [&] { return disk_error(ErrorCode::not_found, "no store in " + state_dir + ": there is no index.sqlite"); };
  const bool no_index = look_only && !has_index(files, state_dir);
  if (no_index && !options.may_have_no_index) return no_store();
  std::vector<std::pair<std::string, DirectoryFor>> made_when_missing;
  if (!look_only) made_when_missing.emplace_back(state_dir, DirectoryFor::owner);
  if (!look_only && tiers) {
    made_when_missing.emplace_back(disk_dir, DirectoryFor::owner);
    made_when_missing.emplace_back(slot_dir, DirectoryFor::backend);  // after a reboot the RAM is empty
  }
  for (const auto& [directory, whom] : made_when_missing) {
    if (auto made = files.make_directory(directory, whom); !made) return made.error();
  }
  auto state_lock = lock_directory(files, state_dir, look_only);
  if (!state_lock && state_lock.error().code == ErrorCode::invalid) return held_by_another(files, state_lock.error(), state_dir);
  if (!state_lock) return state_lock.error();
  loaded.state_lock = std::move(*state_lock);
  if (loaded.state_lock != nullptr) (void)loaded.state_lock->note(holder_note(look_only));
  // Whose index knows the states there may be another; its lock is not ours then.
  const auto states_held = [&](const Error& error, const Found& found) {
    const std::string owner = read_owner(files, found.lock_file()).directory;
    return held_by_another(files, error, owner == own_index ? std::string{} : owner);
  };
  auto slot_lock = lock_directory(files, slot_dir, look_only);
  // In a slot directory that we cannot write we can at least restore.
  if (!slot_lock && slot_lock.error().code == ErrorCode::invalid) return states_held(slot_lock.error(), slots);
  if (slot_lock) loaded.slot_lock = std::move(*slot_lock);
  if (tiers) {
    auto disk_lock = lock_directory(files, disk_dir, look_only);
    if (!disk_lock && disk_lock.error().code == ErrorCode::invalid) return states_held(disk_lock.error(), disk);
    if (!disk_lock) return disk_lock.error();
    loaded.disk_lock = std::move(*disk_lock);
  }

  // Now that nobody else sweeps or saves there. With a million states each of the two takes a second or two: side by side.
  const auto look = [&]() -> Result<void> {
    for (Found* found : {&slots, &disk}) {
      if (found == &disk && !tiers) break;
      auto looked = found->look(files);
      if (!looked && !(look_only && looked.error().code == ErrorCode::not_found)) return looked;
    }
    return {};
  };
  // Where no thread can be had, one after the other.
  auto looking = std::async(std::launch::async | std::launch::deferred, look);
  const std::string index_path = index_in(state_dir);
  const auto missing_index = look_only ? Index::Missing::not_found : Index::Missing::create;
  auto read = read_index(no_index ? Index::open_empty() : Index::open(index_path, missing_index), loaded, checkpoints);
  // Before anything is set aside or swept: every entry would seem to have lost its file.
  if (auto looked = looking.get(); !looked) return looked.error();
  const std::array held{std::pair{&slots, loaded.slot_lock.get()}, std::pair{&disk, loaded.disk_lock.get()}};
  if (!read && !look_only && (read.error().code == ErrorCode::corrupt || read.error().code == ErrorCode::unsupported)) {
    // Its id goes first: if this start does not live to sweep its states, the next must not take them for those of an index that is late.
    for (const auto& [found, lock] : held) {
      const Owner owner = read_owner(files, found->lock_file());
      if (lock != nullptr && owner.directory == own_index && !owner.id.empty()) (void)lock->note(owner.directory);
    }
    if (auto aside = set_index_aside(files, index_path, read.error(), loaded.index_damage); !aside) return aside.error();
    read = read_index(Index::open(index_path), loaded, checkpoints);
  }
  if (!read && look_only && read.error().code == ErrorCode::not_found) {
    if (!options.may_have_no_index) return no_store();
    read = read_index(Index::open_empty(), loaded, checkpoints);
  }
  if (!read) return read.error();

  if (look_only && read->expected.empty() && (slots.any_state() || disk.any_state())) {
    return disk_error(ErrorCode::unsupported, "the index in " + state_dir + " knows none of the states that lie in " +
                                                  (slots.any_state() ? slot_dir : disk_dir) + ": is state_dir the right one?");
  }

  // Who forgets to name the disk directory must not forget what lies in it.
  const auto known = loaded.settings.find(std::string(disk_dir_setting));
  const std::string known_dir = known == loaded.settings.end() ? "" : known->second;
  const std::string known_place = known_dir.empty() ? "" : place_of(known_dir);  // older ones were kept as they were written
  const std::string disk_place = tiers ? place_of(disk_dir) : "";
  if (known_place != disk_place) {
    Found there(known_place, true);
    if (!known_place.empty() && there.look(files) && !there.empty()) {
      return disk_error(ErrorCode::unsupported, "states lie in " + known_place + ": disk_dir must name it, or where they were moved to");
    }
  }
  if (known_dir != disk_place && !look_only) {
    if (auto put = loaded.index->put_setting(std::string(disk_dir_setting), disk_place); !put) return put.error();
    loaded.settings[std::string(disk_dir_setting)] = disk_place;
  }

  // Entries without their files, or with files of another size.
  std::vector<CheckpointId> missing;
  for (const Expected& expected : read->expected) {
    const bool in_slots = slots.keep(expected);
    const bool on_disk = tiers && disk.keep(expected);
    if (in_slots && !on_disk) continue;  // as a record has it when it is read
    const auto entry = checkpoints.find(expected.id);
    entry->second.record.in_slots = in_slots;
    entry->second.record.on_disk = on_disk;
    if (in_slots || on_disk) continue;
    missing.push_back(expected.id);
    checkpoints.erase(entry);
  }
  loaded.damaged_entries = read->doomed.size();
  if (look_only) {
    loaded.absent_entries = missing.size();
    return loaded;
  }
  std::string& own_id = loaded.settings[std::string(index_id_setting)];
  if (own_id.empty()) {
    own_id = new_base_name().substr(name_prefix.size());
    if (auto put = loaded.index->put_setting(std::string(index_id_setting), own_id); !put) return put.error();
  }
  const Owner own{own_index, own_id};
  loaded.owner_note = own.text();
  const auto late_before = loaded.settings.find(std::string(LateStarts::setting));
  const LateStarts starts = late_before == loaded.settings.end() ? LateStarts{} : LateStarts::parse(late_before->second);
  const std::int64_t now_unix_ms = options.now_unix_ms();
  const bool one_more = starts.one_more(now_unix_ms, options.same_start);
  const bool may_be_another = starts.count > 0 || (read->expected.empty() && read->doomed.empty() && loaded.index_damage.empty());
  for (const Found* found : {&slots, &disk}) {
    if (!found->any_state()) continue;
    const Owner owner = read_owner(files, found->lock_file());
    const bool same_place = owner.directory == own.directory;
    // One at another place may be out of our sight, and not gone: in a container, say. A note without an id may have been torn.
    if (may_be_another && !owner.id.empty() && owner.id != own.id) loaded.strange_states = found->path();
    if (found->kept_any() || same_place || !has_index(files, owner.directory)) continue;
    return disk_error(ErrorCode::unsupported,
                      "the states in " + found->path() + " belong to the index in " + owner.directory + ": state_dir must name it, or it must be deleted");
  }
  std::vector<CheckpointId>& doomed = read->doomed;
  const auto place = loaded.settings.find(std::string(place_setting));
  const bool other_place = lock_seen && place != loaded.settings.end() && place->second != identity_of(*lock_seen);
  const bool strange = !loaded.strange_states.empty();
  const bool away = believed_away(no_lock || other_place || strange, lasting.kept_any(), starts, one_more) && (!missing.empty() || strange);
  if (!away) loaded.strange_states.clear();
  LateStarts now;
  if (away) now = one_more ? LateStarts{starts.count + 1, now_unix_ms} : starts;
  if (away) {
    loaded.absent_entries = missing.size();
  } else {
    doomed.insert(doomed.end(), missing.begin(), missing.end());
  }
  if (now != starts) {
    if (auto put = loaded.index->put_setting(std::string(LateStarts::setting), now.text()); !put) return put.error();
  }
  loaded.swept_entries = doomed.size();
  if (auto removed = loaded.index->remove_checkpoints(doomed); !removed) {
    for (const CheckpointId id : doomed) loaded.left.push_back({id, new_base_name(), false});  // the row alone is left
  }
  if (loaded.strange_states.empty()) {
    slots.sweep(files, loaded);
    if (tiers) disk.sweep(files, loaded);
  }
  // Unwritten, the next start believes whoever comes.
  for (const auto& [found, lock] : held) {
    if (lock != nullptr && loaded.strange_states.empty() && read_owner(files, found->lock_file()) != own) (void)lock->note(own.text());
  }
  const auto lock_now = files.status(lasting_lock);
  if (!away && lock_now && (place == loaded.settings.end() || place->second != identity_of(*lock_now))) {
    if (auto put = loaded.index->put_setting(std::string(place_setting), identity_of(*lock_now)); !put) return put.error();
  }
  return loaded;
}

}  // namespace cairn

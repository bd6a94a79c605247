#include "checkpoint/store_startup.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <future>
#include <memory_resource>
#include <optional>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "base/place.hpp"
#include "base/populated_memory.hpp"
#include "checkpoint/found_states.hpp"
#include "checkpoint/late_starts.hpp"
#include "checkpoint/state_file.hpp"
#include "checkpoint/store_disk.hpp"
#include "checkpoint/store_identity.hpp"

namespace cairn {
namespace {

constexpr std::string_view disk_dir_setting = "disk_dir";
// The lock file beside which the states were last found: under a mount point whose disk is late another one may lie.
constexpr std::string_view place_setting = "states_beside";

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

// The steps of a start, in their order. Each leaves what it finds for those behind it.
class StartUp {
 public:
  StartUp(FileLayer& files, const StoreOptions& options, CheckpointEntries& checkpoints)
      : files_(files),
        options_(options),
        checkpoints_(checkpoints),
        slots_(options.slot_dir),
        disk_(options.disk_dir),
        lock_seen_(files.status(lasting().lock_file())) {}

  Result<Loaded> run() {
    for (const auto step : {&StartUp::make_directories, &StartUp::lock, &StartUp::read, &StartUp::check_disk_dir}) {
      if (auto done = (this->*step)(); !done) return done.error();
    }
    match();
    if (look_only()) {
      loaded_.absent_entries = missing_.size();
      return std::move(loaded_);
    }
    for (const auto step : {&StartUp::name_the_index, &StartUp::check_owners, &StartUp::judge_what_is_missing, &StartUp::sweep}) {
      if (auto done = (this->*step)(); !done) return done.error();
    }
    return std::move(loaded_);
  }

 private:
  bool look_only() const { return options_.look_only; }
  bool has_tiers() const { return !options_.disk_dir.empty(); }
  // Where every state should lie.
  const FoundStates& lasting() const { return has_tiers() ? disk_ : slots_; }
  Error no_store() const { return disk_error(ErrorCode::not_found, "no store in " + options_.state_dir + ": there is no index.sqlite"); }

  std::optional<std::string> setting(std::string_view key) const;
  Result<void> set(std::string_view key, const std::string& value);

  Result<void> make_directories();
  Result<void> lock();
  Error states_held(const Error& error, const FoundStates& found) const;
  Result<void> look();
  Result<void> read();
  Result<void> begin_a_new_index(const Error& why);
  Result<void> check_disk_dir();
  void match();
  Result<void> name_the_index();
  Result<void> check_owners();
  Result<void> judge_what_is_missing();
  Result<void> sweep();
  void sweep_in(const FoundStates& found);

  FileLayer& files_;
  const StoreOptions& options_;
  CheckpointEntries& checkpoints_;
  FoundStates slots_, disk_;
  Result<FileStatus> lock_seen_;  // of the directory where every state should lie, before we made one
  const std::string own_index_ = place_of(options_.state_dir);  // as a lock file says it
  bool no_index_ = false;         // to look
  Loaded loaded_;
  Read read_;
  std::vector<CheckpointId> missing_;  // entries without their files, or with files of another size
  Owner own_;
  bool away_ = false;  // what is missing is, for all we know: not forgotten
};

std::optional<std::string> StartUp::setting(std::string_view key) const {
  const auto found = loaded_.settings.find(std::string(key));
  return found == loaded_.settings.end() ? std::nullopt : std::optional(found->second);
}

Result<void> StartUp::set(std::string_view key, const std::string& value) {
  if (auto put = loaded_.index->put_setting(std::string(key), value); !put) return put;
  loaded_.settings[std::string(key)] = value;
  return {};
}

Result<void> StartUp::make_directories() {
  no_index_ = look_only() && !has_index(files_, options_.state_dir);
  if (no_index_ && !options_.may_have_no_index) return no_store();
  if (look_only()) return {};
  std::vector<std::pair<std::string, DirectoryFor>> made_when_missing{{options_.state_dir, DirectoryFor::owner}};
  if (has_tiers()) {
    made_when_missing.emplace_back(options_.disk_dir, DirectoryFor::owner);
    made_when_missing.emplace_back(options_.slot_dir, DirectoryFor::backend);  // after a reboot the RAM is empty
  }
  for (const auto& [directory, whom] : made_when_missing) {
    if (auto made = files_.make_directory(directory, whom); !made) return made;
  }
  return {};
}

Result<void> StartUp::lock() {
  auto state_lock = lock_directory(files_, options_.state_dir, look_only());
  if (!state_lock && state_lock.error().code == ErrorCode::invalid) return held_by_another(files_, state_lock.error(), options_.state_dir);
  if (!state_lock) return state_lock.error();
  loaded_.state_lock = std::move(*state_lock);
  if (loaded_.state_lock != nullptr) (void)loaded_.state_lock->note(holder_note(look_only()));
  auto slot_lock = lock_directory(files_, options_.slot_dir, look_only());
  // In a slot directory that we cannot write we can at least restore.
  if (!slot_lock && slot_lock.error().code == ErrorCode::invalid) return states_held(slot_lock.error(), slots_);
  if (slot_lock) loaded_.slot_lock = std::move(*slot_lock);
  if (!has_tiers()) return {};
  auto disk_lock = lock_directory(files_, options_.disk_dir, look_only());
  if (!disk_lock && disk_lock.error().code == ErrorCode::invalid) return states_held(disk_lock.error(), disk_);
  if (!disk_lock) return disk_lock.error();
  loaded_.disk_lock = std::move(*disk_lock);
  return {};
}

// Whose index knows the states there may be another; its lock is not ours then.
Error StartUp::states_held(const Error& error, const FoundStates& found) const {
  const std::string owner = read_owner(files_, found.lock_file()).directory;
  return held_by_another(files_, error, owner == own_index_ ? std::string{} : owner);
}

Result<void> StartUp::look() {
  for (FoundStates* found : {&slots_, &disk_}) {
    if (found == &disk_ && !has_tiers()) break;
    auto looked = found->look(files_);
    if (!looked && !(look_only() && looked.error().code == ErrorCode::not_found)) return looked;
  }
  return {};
}

// Now that nobody else sweeps or saves there. With a million states the directories and the index take a second or two each: side by
// side; where no thread can be had, one after the other.
Result<void> StartUp::read() {
  auto looking = std::async(std::launch::async | std::launch::deferred, [this] { return look(); });
  const auto missing_index = look_only() ? Index::Missing::not_found : Index::Missing::create;
  auto read = read_index(no_index_ ? Index::open_empty() : Index::open(index_in(options_.state_dir), missing_index), loaded_, checkpoints_);
  // Before anything is set aside or swept: every entry would seem to have lost its file.
  if (auto looked = looking.get(); !looked) return looked;
  if (!read && !look_only() && (read.error().code == ErrorCode::corrupt || read.error().code == ErrorCode::unsupported)) {
    if (auto begun = begin_a_new_index(read.error()); !begun) return begun;
    read = read_index(Index::open(index_in(options_.state_dir)), loaded_, checkpoints_);
  }
  if (!read && look_only() && read.error().code == ErrorCode::not_found) {
    if (!options_.may_have_no_index) return no_store();
    read = read_index(Index::open_empty(), loaded_, checkpoints_);
  }
  if (!read) return read.error();
  read_ = std::move(*read);
  if (look_only() && read_.expected.empty() && (slots_.any_state() || disk_.any_state())) {
    return disk_error(ErrorCode::unsupported, "the index in " + options_.state_dir + " knows none of the states that lie in " +
                                                  (slots_.any_state() ? slots_ : disk_).path() + ": is state_dir the right one?");
  }
  return {};
}

Result<void> StartUp::begin_a_new_index(const Error& why) {
  // Its id goes first: if this start does not live to sweep its states, the next must not take them for those of an index that is late.
  for (const auto& [found, lock] : {std::pair{&slots_, loaded_.slot_lock.get()}, std::pair{&disk_, loaded_.disk_lock.get()}}) {
    const Owner owner = read_owner(files_, found->lock_file());
    if (lock != nullptr && owner.directory == own_index_ && !owner.id.empty()) (void)lock->note(owner.directory);
  }
  return set_index_aside(files_, index_in(options_.state_dir), why, loaded_.index_damage);
}

// Who forgets to name the disk directory must not forget what lies in it.
Result<void> StartUp::check_disk_dir() {
  const std::string known = setting(disk_dir_setting).value_or("");
  const std::string known_place = known.empty() ? "" : place_of(known);  // older ones were kept as they were written
  const std::string place = has_tiers() ? place_of(options_.disk_dir) : "";
  if (known_place != place && !known_place.empty()) {
    FoundStates there(known_place);
    if (there.look(files_) && !there.empty()) {
      return disk_error(ErrorCode::unsupported, "states lie in " + known_place + ": disk_dir must name it, or where they were moved to");
    }
  }
  return known == place || look_only() ? Result<void>{} : set(disk_dir_setting, place);
}

void StartUp::match() {
  for (const Expected& expected : read_.expected) {
    const bool in_slots = slots_.keep(expected);
    const bool on_disk = has_tiers() && disk_.keep(expected);
    if (in_slots && !on_disk) continue;  // as a record has it when it is read
    const auto entry = checkpoints_.find(expected.id);
    entry->second.record.in_slots = in_slots;
    entry->second.record.on_disk = on_disk;
    if (in_slots || on_disk) continue;
    missing_.push_back(expected.id);
    checkpoints_.erase(entry);
  }
  loaded_.damaged_entries = read_.doomed.size();
}

Result<void> StartUp::name_the_index() {
  std::string id = setting(index_id_setting).value_or("");
  if (id.empty()) {
    id = new_base_name().substr(name_prefix.size());
    if (auto put = set(index_id_setting, id); !put) return put;
  }
  own_ = Owner{own_index_, id};
  loaded_.owner_note = own_.text();
  return {};
}

// States of another index are not swept.
Result<void> StartUp::check_owners() {
  const LateStarts starts = LateStarts::parse(setting(LateStarts::setting).value_or(""));
  const bool may_be_another = starts.count > 0 || (read_.expected.empty() && read_.doomed.empty() && loaded_.index_damage.empty());
  for (const FoundStates* found : {&slots_, &disk_}) {
    if (!found->any_state()) continue;
    const Owner owner = read_owner(files_, found->lock_file());
    const bool same_place = owner.directory == own_.directory;
    // One at another place may be out of our sight, and not gone: in a container, say. A note without an id may have been torn.
    if (may_be_another && !owner.id.empty() && owner.id != own_.id) loaded_.strange_states = found->path();
    if (found->kept_any() || same_place || !has_index(files_, owner.directory)) continue;
    return disk_error(ErrorCode::unsupported,
                      "the states in " + found->path() + " belong to the index in " + owner.directory + ": state_dir must name it, or it must be deleted");
  }
  return {};
}

Result<void> StartUp::judge_what_is_missing() {
  const LateStarts starts = LateStarts::parse(setting(LateStarts::setting).value_or(""));
  const std::int64_t now_unix_ms = options_.now_unix_ms();
  const bool one_more = starts.one_more(now_unix_ms, options_.same_start);
  const bool no_lock = !lock_seen_ && lock_seen_.error().code == ErrorCode::not_found;
  const std::optional<std::string> place = setting(place_setting);
  const bool other_place = lock_seen_ && place && *place != identity_of(*lock_seen_);
  const bool strange = !loaded_.strange_states.empty();
  away_ = believed_away(no_lock || other_place || strange, lasting().kept_any(), starts, one_more) && (!missing_.empty() || strange);
  if (!away_) loaded_.strange_states.clear();
  LateStarts now;
  if (away_) now = one_more ? LateStarts{starts.count + 1, now_unix_ms} : starts;
  if (away_) {
    loaded_.absent_entries = missing_.size();
  } else {
    read_.doomed.insert(read_.doomed.end(), missing_.begin(), missing_.end());
  }
  return now == starts ? Result<void>{} : set(LateStarts::setting, now.text());
}

Result<void> StartUp::sweep() {
  const std::vector<CheckpointId>& doomed = read_.doomed;
  loaded_.swept_entries = doomed.size();
  if (auto removed = loaded_.index->remove_checkpoints(doomed); !removed) {
    for (const CheckpointId id : doomed) loaded_.left.push_back({id, new_base_name(), false});  // the row alone is left
  }
  if (loaded_.strange_states.empty()) {
    sweep_in(slots_);
    if (has_tiers()) sweep_in(disk_);
    // Unwritten, the next start believes whoever comes.
    for (const auto& [found, lock] : {std::pair{&slots_, loaded_.slot_lock.get()}, std::pair{&disk_, loaded_.disk_lock.get()}}) {
      if (lock != nullptr && read_owner(files_, found->lock_file()) != own_) (void)lock->note(own_.text());
    }
  }
  const auto lock_now = files_.status(lasting().lock_file());
  if (away_ || !lock_now || setting(place_setting) == identity_of(*lock_now)) return {};
  return set(place_setting, identity_of(*lock_now));
}

void StartUp::sweep_in(const FoundStates& found) {
  FoundStates::Swept swept = found.sweep(files_);
  loaded_.swept_files += swept.files;
  for (std::string& name : swept.left) loaded_.left.push_back({CheckpointId{}, std::move(name), &found == &disk_});
}

}  // namespace

Result<Loaded> load_and_sweep(FileLayer& files, const StoreOptions& options, CheckpointEntries& checkpoints) {
  StartUp start(files, options, checkpoints);
  return start.run();
}

}  // namespace cairn

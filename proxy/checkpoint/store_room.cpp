// The store's budget: what goes when there is no room, and how what goes is deleted.
#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "checkpoint/found_states.hpp"
#include "checkpoint/index.hpp"
#include "checkpoint/store.hpp"
#include "checkpoint/store_disk.hpp"

namespace cairn {

namespace {
// Deleting may free less than it should: files still open in the backend, others who write to the same disk.
constexpr int max_rounds = 3;

std::uint64_t bytes_of(const std::vector<const CheckpointRecord*>& records) {
  std::uint64_t bytes = 0;
  for (const CheckpointRecord* record : records) bytes += record->bytes;
  return bytes;
}
}  // namespace

// Of the slot directory, which is to be written to.
ResultTask<DiskSpace> CheckpointStore::slot_space() {
  std::unique_ptr<FileLock> locked_anew;
  const std::shared_ptr<FileLock> lock = slot_lock_;
  const bool in_ram = has_tiers() && !options_.look_only;
  const auto job = [this, &lock, &locked_anew, in_ram]() -> Result<DiskSpace> {
    if (!in_ram) {
      auto space = space_to_write(files_, options_.slot_dir, lock.get(), owner_note_, locked_anew);
      if (!space || lock != nullptr || options_.look_only) return space;
      // We could not when we started. Whose states lie there stays written as long as that is open.
      auto locked = lock_anew(files_, options_.slot_dir, strange_states_.empty() ? owner_note_ : std::string{});
      if (locked) locked_anew = std::move(*locked);
      if (!locked && locked.error().code == ErrorCode::invalid) return disk_error(ErrorCode::io, locked.error().context);
      return space;
    }
    const auto found = files_.space(options_.slot_dir);
    const bool is_gone = !found && found.error().code == ErrorCode::not_found;
    // What is in RAM does not come back by itself, as a disk may.
    if (is_gone) {
      if (auto made = files_.make_directory(options_.slot_dir, DirectoryFor::backend); !made) return made.error();
    }
    // Without its lock file it would pass for a directory that is away, and what lay in it for something that may come back.
    if (is_gone || (lock != nullptr && lock->deleted())) {
      if (auto locked = lock_anew(files_, options_.slot_dir, owner_note_)) locked_anew = std::move(*locked);
    }
    return space_to_write(files_, options_.slot_dir, nullptr, owner_note_, locked_anew);
  };
  auto space = co_await index_pool_.run(job);
  if (locked_anew) slot_lock_ = std::move(locked_anew);
  co_return space;
}

// Of the disk directory, which is to be written to.
ResultTask<DiskSpace> CheckpointStore::disk_space() {
  std::unique_ptr<FileLock> locked_anew;
  const std::shared_ptr<FileLock> lock = disk_lock_;
  const auto job = [this, &lock, &locked_anew] { return space_to_write(files_, options_.disk_dir, lock.get(), owner_note_, locked_anew); };
  auto space = co_await index_pool_.run(job);
  if (locked_anew) disk_lock_ = std::move(locked_anew);
  co_return space;
}

// Makes what is reserved fit into the budget and, with check_disk, onto the disk above its floor.
ResultTask<void> CheckpointStore::make_room(bool check_disk) {
  // Before anything goes for it: nothing is deleted in a directory that is away, and what had been evicted came back with it.
  auto there = co_await slot_space();
  if (!there) {
    ++counters_.disk_errors;
    co_return there.error();
  }
  auto room = co_await fit_budget();
  if (!room || !check_disk) co_return room;
  Error error;
  std::optional<std::uint64_t> free_before;  // the last round
  // With tiers the floor is the disk directory's: the slot directory is RAM set aside for it.
  const std::uint64_t floor_bytes = has_tiers() ? 0 : options_.min_free_bytes;
  for (int round = 0; round < max_rounds; ++round) {
    auto space = co_await slot_space();
    if (!space) {
      ++counters_.disk_errors;
      co_return space.error();
    }
    // What other saves have written of their reservations is counted twice: on the safe side.
    const std::uint64_t needed = counters_.reserved_bytes + floor_bytes;
    if (space->free_bytes >= needed) co_return Result<void>{};
    error = disk_error(ErrorCode::no_space, "disk has " + std::to_string(space->free_bytes) + " bytes free, " +
                                                std::to_string(needed) + " are needed");
    if (free_before && space->free_bytes <= *free_before) break;  // deleting frees nothing here: snapshots, say
    free_before = space->free_bytes;
    if (options_.look_only) break;
    std::uint64_t missing = needed - space->free_bytes;
    const std::uint64_t coming = has_tiers() ? 0 : late_space_.coming(space->free_bytes, now_unix_ms());
    if (coming >= missing) break;  // what has been evicted for it is enough
    missing -= coming;
    if (has_tiers()) {
      auto left = co_await leave_slots(missing);
      if (!left) break;
    } else if (!evict(Tier::slots, missing, missing)) {
      break;
    }
    auto tidied = co_await tidy();
    (void)tidied;  // perhaps of files that matter little: the space says
  }
  saving_failed(error);
  co_return error;
}

ResultTask<void> CheckpointStore::fit_budget() {
  const std::uint64_t budget = slot_budget();
  const std::uint64_t low_water = low_water_of(budget);
  Result<void> tidied;
  for (int round = 0; round < max_rounds; ++round) {
    const std::uint64_t wanted = counters_.slot_bytes + held_bytes(Tier::slots) + counters_.reserved_bytes;
    if (wanted > budget && has_tiers()) {
      auto left = co_await leave_slots(wanted - budget);
      if (!left) co_return left;
    } else if (wanted > budget && !evict(Tier::slots, wanted - budget, wanted - low_water)) {
      co_return disk_error(ErrorCode::no_space, "budget of " + std::to_string(budget) + " bytes is full", some_are_in_use());
    }
    // Also when there is nothing to delete: the index thread takes one job after the other, so that deletions which
    // another save asked for are done when this one returns.
    tidied = co_await tidy();
    if (counters_.slot_bytes + counters_.condemned_bytes + counters_.reserved_bytes <= budget) co_return Result<void>{};
    // Not yet: what others condemned meanwhile is on its way out.
  }
  if (!tidied) co_return tidied;
  co_return disk_error(ErrorCode::no_space, "evicted files are still there", true);
}

// The budget may have been lowered. Where pins are beyond it, all that may go goes: the store is as full as it is.
ResultTask<void> CheckpointStore::trim_at_start() {
  auto there = has_tiers() ? disk_space() : slot_space();
  const bool may_delete = (co_await std::move(there)).has_value();
  const Tier tier = floor_tier();
  const std::uint64_t held = tier == Tier::disk ? counters_.disk_bytes : counters_.slot_bytes;
  if (may_delete && held > options_.budget_bytes) {
    const std::uint64_t at_least = std::min(held - options_.budget_bytes, bytes_of(evictable(tier)));
    (void)evict(tier, at_least, held - low_water_of(options_.budget_bytes));
  }
  if (may_delete) {
    auto fitted = co_await fit_budget();
    if (fitted || fitted.error().code != ErrorCode::no_space) co_return fitted;
  }
  auto tidied = co_await tidy();
  (void)tidied;  // tried again later
  co_return Result<void>{};
}

void CheckpointStore::on_pins_fill(PinsCallback callback) {
  on_pins_fill_ = std::move(callback);
  look_at_pins(0);
}

// `wanted`: what another one takes; 0: as much as those that are there.
void CheckpointStore::look_at_pins(std::uint64_t wanted) {
  if (pins_fill_ || !on_pins_fill_) return;
  const StoreCounters now = counters();
  if (wanted == 0 && now.files > 0) wanted = now.bytes / now.files;
  // Of less than half of the budget they are not what is in the way.
  pins_fill_ = now.pinned_bytes >= options_.budget_bytes / 2 && now.pinned_bytes + wanted > options_.budget_bytes;
  if (pins_fill_) on_pins_fill_(now.pinned_bytes, options_.budget_bytes);
}

bool CheckpointStore::some_are_in_use() const {
  const auto goes_then = [this](const Condemned& one) { return !one.on_disk && one.bytes > 0 && in_use(one.id); };
  if (std::ranges::any_of(condemned_, goes_then)) return true;
  return std::ranges::any_of(uses_, [this](const auto& use) {
    const auto entry = entries_.find(use.first);
    return entry != entries_.end() && entry->second.record.in_slots && !entry->second.record.pinned;
  });
}

// Condemns victims of the policy's choice until `at_least` bytes are gone, then as many more as fit into `at_most`. When
// all that may go would not be enough, nothing goes.
bool CheckpointStore::evict(Tier tier, std::uint64_t at_least, std::uint64_t at_most, CheckpointId incoming) {
  const std::vector<const CheckpointRecord*> candidates = evictable(tier, incoming);
  if (bytes_of(candidates) < at_least) return false;
  std::uint64_t gone = 0;
  Victims victims(*policy_, worth_, candidates, now_unix_ms());
  while (gone < at_most) {
    const CheckpointRecord* victim = victims.worst();
    if (victim == nullptr) break;
    // Beyond what must go, a large state is not thrown away for the sake of a round number.
    if (gone >= at_least && gone + victim->bytes > at_most) break;
    gone += victim->bytes;
    victims.take();
    condemn(victim->id, RemovalReason::evicted);
  }
  return gone >= at_least;
}

// Without those that wait for the copy of `incoming`.
std::vector<const CheckpointRecord*> CheckpointStore::evictable(Tier tier, CheckpointId incoming) const {
  std::vector<const CheckpointRecord*> candidates;
  for (const auto& [id, entry] : entries_) {
    const CheckpointRecord& record = entry.record;
    const bool may_go = !record.pinned && !in_use(id) && (tier == Tier::slots ? record.in_slots : record.on_disk);
    if (may_go && !stands_by_for(id, incoming)) candidates.push_back(&record);
  }
  return candidates;
}

bool CheckpointStore::evicting_helps(Tier tier, std::uint64_t at_least) const { return bytes_of(evictable(tier)) >= at_least; }

bool CheckpointStore::worth_more_than_victims(const CheckpointRecord& incoming, Tier tier, std::uint64_t at_least) {
  if (incoming.pinned || !policy_->judges_new_states()) return true;  // what is pinned is kept whatever it is worth
  const std::vector<const CheckpointRecord*> candidates = evictable(tier, incoming.id);
  const Victims victims(*policy_, worth_, candidates, now_unix_ms());
  return victims.bytes_below(incoming) >= at_least;
}

bool CheckpointStore::worth_saving(const CheckpointRecord& incoming) {
  if (has_tiers()) return true;  // it drives nothing out: what leaves RAM goes to the disk, where the same is asked
  const std::uint64_t wanted = counters_.slot_bytes + held_bytes(Tier::slots) + counters_.reserved_bytes + incoming.bytes;
  if (wanted <= slot_budget() || incoming.bytes > slot_budget()) return true;  // too large: refused for that
  if (worth_more_than_victims(incoming, Tier::slots, wanted - slot_budget())) return true;
  ++counters_.declined;
  return false;
}

Task<bool> CheckpointStore::worth_its_room(const CheckpointRecord& incoming) {
  if (!worth_saving(incoming)) co_return false;
  if (has_tiers()) co_return true;
  const auto job = [this] { return files_.space(options_.slot_dir); };
  auto space = co_await index_pool_.run(job);
  if (!space) co_return true;  // reserve() says what is wrong
  const std::uint64_t needed = counters_.reserved_bytes + incoming.bytes + options_.min_free_bytes;
  const std::uint64_t coming = late_space_.coming(space->free_bytes, now_unix_ms());
  const std::uint64_t free = space->free_bytes + coming + counters_.condemned_bytes - held_bytes(Tier::slots);
  if (free >= needed || worth_more_than_victims(incoming, Tier::slots, needed - free)) co_return true;
  if (!evicting_helps(Tier::slots, needed - free)) co_return true;  // refused for that
  ++counters_.declined;
  co_return false;
}

// Bytes that are condemned, but somebody is reading them, or they cannot be deleted.
std::uint64_t CheckpointStore::held_bytes(Tier tier) const {
  std::uint64_t held = 0;
  for (const Condemned& condemned : condemned_) {
    if (condemned.on_disk == (tier == Tier::disk) && (condemned.stuck || in_use(condemned.id))) held += condemned.bytes;
  }
  return held;
}

void CheckpointStore::condemn(CheckpointId id, RemovalReason reason) {
  auto node = entries_.extract(id);
  if (node.empty()) return;
  const CheckpointRecord record = std::move(node.mapped().record);
  hand_standby_on(id);
  counters_.bytes -= record.bytes;
  pins_fill_ = pins_fill_ && !record.pinned;
  if (record.in_slots) {
    counters_.slot_bytes -= record.bytes;
    counters_.condemned_bytes += record.bytes;
  }
  if (record.on_disk) {
    counters_.disk_bytes -= record.bytes;
    counters_.condemned_disk_bytes += record.bytes;
    if (reason == RemovalReason::erased) disk_freed_unix_ms_ = now_unix_ms();
    condemned_.push_back({record.file_name, record.bytes, id, true, true});
  }
  if (record.in_slots || !record.on_disk) condemned_.push_back({record.file_name, record.bytes, id, true, false});
  if (reason == RemovalReason::evicted) ++counters_.evictions;
  if (reason == RemovalReason::bad_file) ++counters_.dropped_bad;
  if (on_removed_) on_removed_(record, reason);
}

void CheckpointStore::condemn_file(std::string file_name) {
  // One that cannot be deleted is found again with each look at the directory.
  const auto is_it = [&](const Condemned& other) { return !other.on_disk && other.file_name == file_name; };
  if (deleting_.contains(slot_path(file_name)) || std::ranges::any_of(condemned_, is_it)) return;
  condemned_.push_back({std::move(file_name), 0, CheckpointId{}, false, false});
}

bool CheckpointStore::late_files_may_come() const {
  const std::int64_t open_ms = now_unix_ms() - opened_unix_ms_;
  return !options_.look_only && slot_lock_ != nullptr && open_ms >= 0 && open_ms < strays_come_ms;
}

// Nobody knows their names: asked for by a process that was killed since, and written after our start-up's sweep.
Task<void> CheckpointStore::condemn_late_files() {
  if (!late_files_may_come()) co_return;
  const auto job = [this] { return half_saved_files(files_, options_.slot_dir); };
  auto found = co_await disk_pool_.run(job);
  if (!found) co_return;  // looked for again
  for (const std::string& name : *found) {
    if (!saving_names_.contains(name)) condemn_file(name);
  }
}

// Deletes what is condemned and writes what changed. What fails stays for the next time. Rows go before files: a crash in
// between leaves files without an entry, which start-up sweeps.
ResultTask<void> CheckpointStore::tidy(std::optional<CheckpointId> own) {
  struct Work {
    std::vector<CheckpointId> rows;
    std::vector<CheckpointRecord> changed;
    std::vector<std::string> paths;
  };
  struct Outcome {
    Result<void> rows, changed;
    std::string rebuilt;  // why the index was
    std::vector<Result<void>> files;
    std::vector<std::uint64_t> left_bytes;  // of those that are still there
    Result<DiskSpace> before, after;  // the deletion of `floor_bytes`
    bool away = false;                // the directory whose files come back with it
  };
  for (const Stray& stray : strays_) condemn_file(stray.file_name);
  std::erase_if(strays_, [now = now_unix_ms()](const Stray& stray) { return stray.until_unix_ms <= now; });
  std::vector<Condemned> taken;
  std::vector<Condemned> waiting;
  Work work;
  std::uint64_t floor_bytes = 0;  // going from the disk whose floor is kept
  for (Condemned& condemned : condemned_) {
    if (condemned.row_left) work.rows.push_back(condemned.id);
    // In use: the row goes now, the file when its last Use has ended.
    if (in_use(condemned.id)) {
      waiting.push_back(condemned);
    } else {
      work.paths.push_back(path_of(condemned.on_disk ? Tier::disk : Tier::slots, condemned.file_name));
      deleting_.insert(work.paths.back());
      if (condemned.on_disk == (floor_tier() == Tier::disk)) floor_bytes += condemned.bytes;
      taken.push_back(std::move(condemned));
    }
  }
  condemned_ = waiting;
  for (auto& [id, entry] : entries_) {
    if (!entry.dirty) continue;
    entry.dirty = false;
    work.changed.push_back(entry.record);
  }

  const bool locked = (has_tiers() ? disk_lock_ : slot_lock_) != nullptr;
  const auto lasts = [this](const Condemned& one) { return one.on_disk == (floor_tier() == Tier::disk); };
  const auto job = [this, &work, &taken, &lasts, floor_bytes, locked] {
    const std::string& directory = has_tiers() ? options_.disk_dir : options_.slot_dir;
    const bool looks = floor_bytes > 0 && options_.min_free_bytes > 0;
    Outcome outcome;
    outcome.rows = index_->remove_checkpoints(work.rows);
    outcome.changed = index_->update_checkpoints(work.changed);
    outcome.rebuilt = index_->take_rebuilt();
    if (looks) outcome.before = files_.space(directory);
    for (const std::string& path : work.paths) {
      outcome.files.push_back(remove_state_files(files_, path));
      outcome.left_bytes.push_back(outcome.files.back() ? 0 : bytes_of_state_files(files_, path));
    }
    if (looks) outcome.after = files_.space(directory);
    if (std::ranges::none_of(taken, lasts)) return outcome;
    // What was not found there is not deleted, unless the directory is the one it was.
    outcome.away = locked ? !same_directory(files_, directory) : !files_.space(directory);
    for (std::size_t i = 0; outcome.away && i < taken.size(); ++i) {
      if (lasts(taken[i]) && outcome.files[i]) outcome.files[i] = another_directory(directory);
    }
    return outcome;
  };
  auto outcome = co_await index_pool_.run(job);
  for (const std::string& path : work.paths) deleting_.erase(deleting_.find(path));
  index_was_rebuilt(outcome.rebuilt);

  Result<void> result;
  const auto note = [&](const Result<void>& done, bool concerns) {
    if (done) return;
    ++counters_.disk_errors;
    if (result && (concerns || !own)) result = done;
  };
  note(outcome.rows, own && std::ranges::find(work.rows, *own) != work.rows.end());
  note(outcome.changed, own && std::ranges::find(work.changed, *own, &CheckpointRecord::id) != work.changed.end());
  // Where nothing can be deleted, evicting more would not make room.
  bool any_deleted = false;
  for (std::size_t i = 0; i < taken.size(); ++i) any_deleted = any_deleted || (outcome.files[i] && taken[i].bytes > 0);
  if (outcome.rows) {
    // Those that wait for their Uses may have been joined by others meanwhile: only what was in this job is done.
    for (Condemned& condemned : condemned_) {
      if (std::find(work.rows.begin(), work.rows.end(), condemned.id) != work.rows.end()) condemned.row_left = false;
    }
  }
  for (std::size_t i = 0; i < taken.size(); ++i) {
    Condemned& condemned = taken[i];
    note(outcome.files[i], own && condemned.id == *own && condemned.row_left);
    if (outcome.rows) condemned.row_left = false;
    if (!outcome.files[i] && lasts(condemned)) floor_bytes -= condemned.bytes;
    // Where its whole directory is away, it goes with the others when that is back.
    condemned.stuck = !outcome.files[i] && !(outcome.away && lasts(condemned)) && (any_deleted || condemned.stuck);
    std::uint64_t& condemned_bytes = condemned.on_disk ? counters_.condemned_disk_bytes : counters_.condemned_bytes;
    if (outcome.files[i]) {
      condemned_bytes -= std::exchange(condemned.bytes, 0);
    } else if (condemned.bytes == 0) {
      condemned_bytes += condemned.bytes = outcome.left_bytes[i];  // what was saved in part, or never committed: it takes room now
    }
    if (condemned.row_left || !outcome.files[i]) condemned_.push_back(std::move(condemned));
  }
  if (floor_bytes > 0 && options_.min_free_bytes > 0 && outcome.before && outcome.after) {
    late_space_.deleted(floor_bytes, outcome.before->free_bytes, outcome.after->free_bytes, now_unix_ms());
  }
  if (!outcome.changed) {
    for (const CheckpointRecord& record : work.changed) {
      const auto entry = entries_.find(record.id);
      if (entry != entries_.end()) entry->second.dirty = true;
    }
  }
  co_return result;
}

}  // namespace cairn

// The store's two tiers: states are saved to and restored from the slot directory, which lies in RAM; their copies in the disk
// directory outlive a reboot, and hold what no longer fits into RAM.
#include <boost/asio/post.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/use_awaitable.hpp>

#include <algorithm>
#include <chrono>
#include <limits>
#include <memory>
#include <optional>
#include <utility>

#include "base/counted.hpp"
#include "base/wakeup.hpp"
#include "checkpoint/index.hpp"
#include "checkpoint/store.hpp"
#include "checkpoint/store_disk.hpp"

namespace cairn {

namespace {
// Of a disk nobody has measured yet, and of the memory that a checksum passes over.
constexpr double guessed_copy_bytes_per_s = 500e6;
constexpr double guessed_checksum_bytes_per_s = 4e9;
constexpr int most_tries = 3;

// Keeps a state on a list while it lives, unless it stood there before.
class Listed {
 public:
  Listed(std::set<CheckpointId>& list, CheckpointId id) : list_(list), id_(id), is_new_(list.insert(id).second) {}
  Listed(const Listed&) = delete;
  Listed& operator=(const Listed&) = delete;
  ~Listed() {
    if (is_new_) list_.erase(id_);
  }
  bool is_new() const { return is_new_; }

 private:
  std::set<CheckpointId>& list_;
  CheckpointId id_;
  bool is_new_;
};
}  // namespace

double CheckpointStore::seconds_before_restore(CheckpointId id) const {
  const auto found = entries_.find(id);
  if (found == entries_.end()) return 0;
  const CheckpointEntry& entry = found->second;
  if (!entry.record.in_slots) return copies_up_.seconds_for(entry.record.bytes, guessed_copy_bytes_per_s);
  if (entry.verified_as.empty() && options_.verify_checksums) return checksums_.seconds_for(entry.record.bytes, guessed_checksum_bytes_per_s);
  return 0;
}

bool CheckpointStore::copies_due() const {
  if (!has_tiers() || copying_pause_.waiting(now_unix_ms())) return false;
  return std::any_of(entries_.begin(), entries_.end(), [this](const auto& entry) { return copy_due(entry.second); });
}

bool CheckpointStore::copy_due(const CheckpointEntry& entry) const {
  if (entry.record.on_disk || !entry.copy_declined_unix_ms) return !entry.record.on_disk;
  const std::int64_t since_ms = now_unix_ms() - *entry.copy_declined_unix_ms;
  // Others may be worth less by then, or somebody has made room.
  return since_ms < 0 || since_ms >= longest_uncopied_ms || *entry.copy_declined_unix_ms < disk_freed_unix_ms_;
}

bool CheckpointStore::copies_wait() const {
  return has_tiers() && std::any_of(entries_.begin(), entries_.end(), [](const auto& entry) { return !entry.second.record.on_disk; });
}

// ---- what waits for its successor's copy

ResultTask<void> CheckpointStore::supersede(CheckpointId old, CheckpointId by) {
  const auto found = entries_.find(old);
  const auto successor = entries_.find(by);
  if (old == by || found == entries_.end() || successor == entries_.end()) co_return Result<void>{};
  const CheckpointRecord& record = found->second.record;
  if (record.pinned) co_return Result<void>{};  // since it was found to be useless
  // Who went on from the old one goes on from this one: a conversation's newest turn is not worth less than its last.
  if (record.uses > successor->second.record.uses) {
    successor->second.record.uses = record.uses;
    successor->second.dirty = true;
  }
  std::int64_t& since = successor->second.uncopied_since_unix_ms;
  if (!record.on_disk) since = std::min(since, found->second.uncopied_since_unix_ms);
  standing_by_[old] = by;
  if (on_standby_) on_standby_(record, true);
  if (successor->second.record.on_disk || !(record.on_disk || copying_.contains(old))) {
    condemn(old, RemovalReason::erased);
  } else if (record.on_disk && record.in_slots) {
    leave_slots(old);
  }
  auto tidied = co_await tidy(old);
  co_return tidied;
}

std::optional<CheckpointId> CheckpointStore::successor_of(CheckpointId id) const {
  std::optional<CheckpointId> last;
  for (auto at = standing_by_.find(id); at != standing_by_.end(); at = standing_by_.find(*last)) last = at->second;
  return last;
}

bool CheckpointStore::stands_by_for(CheckpointId id, CheckpointId successor) const {
  auto at = standing_by_.find(id);
  while (at != standing_by_.end() && at->second != successor) at = standing_by_.find(at->second);
  return at != standing_by_.end();
}

void CheckpointStore::end_standby(CheckpointId id) {
  const bool stood_by = standing_by_.erase(id) > 0;
  if (stood_by && on_standby_) on_standby_(entries_.at(id).record, false);
}

// What waited for the one removed waits for that one's successor, or for nobody any more.
void CheckpointStore::hand_standby_on(CheckpointId removed) {
  const auto node = standing_by_.extract(removed);
  std::vector<CheckpointId> waiting;
  for (const auto& [id, successor] : standing_by_) {
    if (successor == removed) waiting.push_back(id);
  }
  for (const CheckpointId id : waiting) {
    if (node.empty()) {
      end_standby(id);
    } else {
      standing_by_[id] = node.mapped();
      if (entries_.at(node.mapped()).record.on_disk) condemn(id, RemovalReason::erased);
    }
  }
}

// A copy was made, or could not be. True: there is something to tidy up.
bool CheckpointStore::settle_standby(CheckpointId copied) {
  const auto found = entries_.find(copied);
  if (found == entries_.end() || copying_.contains(copied)) return false;
  CheckpointRecord& record = found->second.record;
  std::vector<CheckpointId> done;
  for (const auto& [id, successor] : standing_by_) {
    if (successor == copied && record.on_disk) done.push_back(id);
  }
  for (const CheckpointId id : done) condemn(id, RemovalReason::erased);
  const bool stands_by = standing_by_.contains(copied);
  if (stands_by && !record.on_disk) {
    condemn(copied, RemovalReason::erased);
  } else if (stands_by && record.in_slots) {
    leave_slots(copied);
  }
  return stands_by || !done.empty();
}

// ---- down

ResultTask<void> CheckpointStore::copy_down(std::function<bool()> busy) {
  auto copied = co_await copy_down(std::move(busy), std::numeric_limits<std::int64_t>::max());
  co_return copied;
}

ResultTask<void> CheckpointStore::copy_overdue(std::function<bool()> busy) {
  auto copied = co_await copy_down(std::move(busy), now_unix_ms() - longest_uncopied_ms);
  co_return copied;
}

ResultTask<void> CheckpointStore::copy_down(std::function<bool()> busy, std::int64_t uncopied_since_unix_ms) {
  if (!has_tiers() || copying_pause_.waiting(now_unix_ms())) co_return Result<void>{};
  // What was used last would be missed most.
  std::vector<std::pair<std::int64_t, CheckpointId>> waiting;
  for (const auto& [id, entry] : entries_) {
    if (!copy_due(entry) || entry.uncopied_since_unix_ms > uncopied_since_unix_ms) continue;
    waiting.emplace_back(-entry.record.last_used_unix_ms, id);
  }
  std::sort(waiting.begin(), waiting.end());
  Result<void> result;
  const auto executor = co_await boost::asio::this_coro::executor;
  for (const auto& [age, id] : waiting) {
    if (busy()) break;
    auto copied = co_await copy_down(id);
    if (!copied && result) result = copied;
    const auto found = entries_.find(id);
    if (!copied && found != entries_.end()) found->second.uncopied_since_unix_ms = now_unix_ms();  // not again at once
    if (copying_pause_.waiting(now_unix_ms())) break;
    co_await boost::asio::post(executor, boost::asio::use_awaitable);  // to decline one takes a while, and waits for nothing
  }
  co_return result;
}

ResultTask<void> CheckpointStore::copy_down(CheckpointId id) {
  auto copied = co_await copy_one_down(id);
  for (const std::shared_ptr<Wakeup>& waiting : std::exchange(waiting_for_copies_, {})) waiting->notify();
  if (settle_standby(id)) {
    auto tidied = co_await tidy();
    (void)tidied;  // tried again later
  }
  co_return copied;
}

ResultTask<void> CheckpointStore::copy_one_down(CheckpointId id) {
  const auto found = entries_.find(id);
  if (found == entries_.end() || found->second.record.on_disk || !found->second.record.in_slots) co_return Result<void>{};
  // Somebody else copies it: a second time it would take room, and drive others out for it.
  const Listed copying(copying_, id);
  if (!copying.is_new()) co_return Result<void>{};
  const CheckpointRecord record = found->second.record;
  const Use hold = use(id);
  const Counted reserved(counters_.disk_reserved_bytes, record.bytes);
  auto room = co_await make_room_on_disk(record);
  if (!room) co_return room;
  auto taken = co_await take_the_name_on_disk(record.file_name);
  if (!taken) co_return taken;

  const std::string temporary_name = new_base_name() + std::string(saving_suffix);
  bool ram_is_gone = false;  // no trouble of the disk's
  const auto job = [&]() -> Result<void> {
    auto done = copy_to_disk(files_, slot_path(record.file_name), options_.disk_dir, temporary_name, record);
    if (done || done.error().code != ErrorCode::not_found) return done;
    if (auto same = same_directory(files_, options_.disk_dir); !same) return same;
    auto same = same_directory(files_, options_.slot_dir);
    ram_is_gone = !same;
    return same ? done : same;
  };
  auto copied = co_await background_pool_.run(job);
  if (!copied) {
    const Error error = copied.error();
    condemned_.push_back({temporary_name, 0, CheckpointId{}, false, true});
    // A part may have its name already; unless somebody else has copied it meanwhile.
    const CheckpointRecord* now = find(id);
    if (now == nullptr || !now->on_disk) condemned_.push_back({record.file_name, 0, CheckpointId{}, false, true});
    if (error.code == ErrorCode::corrupt || error.code == ErrorCode::not_found) {
      condemn(id, RemovalReason::bad_file);  // it is not what was committed any more
    } else {
      ++counters_.disk_errors;
      if (!ram_is_gone && copying_pause_.failed(error, now_unix_ms()) && on_copying_) on_copying_(&error);
    }
    auto tidied = co_await tidy();
    (void)tidied;  // tried again later
    co_return error;
  }
  if (copying_pause_.succeeded() && on_copying_) on_copying_(nullptr);
  ++counters_.copied_down;
  const auto again = entries_.find(id);
  if (again == entries_.end()) {  // removed meanwhile
    condemned_.push_back({record.file_name, 0, CheckpointId{}, false, true});
    auto tidied = co_await tidy();
    co_return tidied;
  }
  if (!again->second.record.on_disk) counters_.disk_bytes += record.bytes;  // else somebody else has copied it meanwhile
  again->second.record.on_disk = true;
  judged_on_disk_.reset();
  co_return Result<void>{};
}

// What is left there of an earlier copy, and could not be deleted so far, is replaced: it must not be deleted once it is.
ResultTask<void> CheckpointStore::take_the_name_on_disk(std::string file_name) {
  for (int round = 0; deleting_.contains(disk_path(file_name)); ++round) {
    if (round == most_tries) co_return disk_error(ErrorCode::io, file_name + " is being deleted");
    // The index thread takes one job after the other: a deletion under way is over when this returns.
    auto tidied = co_await tidy();
    (void)tidied;
  }
  std::erase_if(condemned_, [&](const Condemned& one) { return one.on_disk && one.file_name == file_name; });
  co_return Result<void>{};
}

// Of many that are declined one after the other only the first has all states on disk judged.
bool CheckpointStore::surely_declined(const CheckpointRecord& incoming, std::uint64_t at_least) {
  constexpr std::int64_t holds_ms = 1000;
  if (at_least == 0 || incoming.pinned || !policy_->judges_new_states()) return false;
  const std::int64_t now = now_unix_ms();
  if (!judged_on_disk_ || now < judged_unix_ms_ || now - judged_unix_ms_ >= holds_ms) {
    const std::vector<const CheckpointRecord*> candidates = evictable(Tier::disk);
    judged_on_disk_.emplace(*policy_, worth_, candidates, now);
    judged_unix_ms_ = now;
  }
  return judged_on_disk_->bytes_below(incoming) < at_least;
}

// What waits for this very copy is worth nothing beside it, and yet all that a reboot would leave: it goes when there is no room
// without that. What waits for another's is judged like all the rest: it is the only copy of its conversation.
bool CheckpointStore::evict_on_disk_for(const CheckpointRecord& incoming, std::uint64_t at_least, std::uint64_t at_most) {
  std::vector<CheckpointId> waiting;
  std::uint64_t bytes = 0;
  for (const auto& [id, successor] : standing_by_) {
    const CheckpointRecord& record = entries_.at(id).record;
    if (!record.on_disk || in_use(id) || !stands_by_for(id, incoming.id)) continue;
    waiting.push_back(id);
    bytes += record.bytes;
  }
  const std::uint64_t others_least = at_least - std::min(at_least, bytes);
  if (surely_declined(incoming, others_least)) return false;
  const auto makes_room = [&](std::uint64_t least, std::uint64_t most) {
    return least == 0 || (worth_more_than_victims(incoming, Tier::disk, least) && evict(Tier::disk, least, most, incoming.id));
  };
  if (makes_room(at_least, at_most)) return true;
  if (waiting.empty() || !makes_room(others_least, at_most - std::min(at_most, bytes))) return false;
  for (const CheckpointId id : waiting) condemn(id, RemovalReason::evicted);
  return true;
}

// No trouble of the disk's: others are copied meanwhile.
Error CheckpointStore::decline_copy(CheckpointId id) {
  const auto entry = entries_.find(id);
  const bool pinned_meanwhile = entry != entries_.end() && entry->second.record.pinned;
  if (entry != entries_.end() && !pinned_meanwhile) entry->second.copy_declined_unix_ms = now_unix_ms();
  if (entry != entries_.end()) look_at_pins(pinned_meanwhile ? 0 : entry->second.record.bytes);
  return disk_error(ErrorCode::no_space, options_.disk_dir + " is full of better states");
}

// The caller has counted it as reserved.
ResultTask<void> CheckpointStore::make_room_on_disk(const CheckpointRecord& incoming) {
  const std::uint64_t budget = options_.budget_bytes;
  Error error;
  std::optional<std::uint64_t> free_before;  // the last round
  auto space = co_await disk_space();  // before anything goes for it
  for (int round = 0; space && round < most_tries; ++round) {
    const std::uint64_t wanted = counters_.disk_bytes + held_bytes(Tier::disk) + counters_.disk_reserved_bytes;
    if (wanted > budget) {
      const std::uint64_t missing = wanted - budget;
      if (!evict_on_disk_for(incoming, missing, wanted - low_water_of(budget))) co_return decline_copy(incoming.id);
    }
    auto tidied = co_await tidy();
    if (counters_.disk_bytes + counters_.condemned_disk_bytes + counters_.disk_reserved_bytes > budget) {
      error = tidied ? disk_error(ErrorCode::no_space, "evicted files are still there") : tidied.error();
      continue;
    }
    space = co_await disk_space();
    if (!space) break;
    const std::uint64_t needed = counters_.disk_reserved_bytes + options_.min_free_bytes;
    if (space->free_bytes >= needed) co_return Result<void>{};
    error = disk_error(ErrorCode::no_space, "disk has " + std::to_string(space->free_bytes) + " bytes free, " + std::to_string(needed) + " are needed");
    if (free_before && space->free_bytes <= *free_before) break;  // deleting frees nothing here: snapshots, say
    free_before = space->free_bytes;
    const std::uint64_t missing = needed - space->free_bytes;
    const std::uint64_t coming = late_space_.coming(space->free_bytes, now_unix_ms());
    if (coming >= missing) break;
    if (evict_on_disk_for(incoming, missing - coming, missing - coming)) continue;
    if (evicting_helps(Tier::disk, missing - coming)) co_return decline_copy(incoming.id);
    break;
  }
  if (!space) error = space.error();
  ++counters_.disk_errors;
  if (copying_pause_.failed(error, now_unix_ms()) && on_copying_) on_copying_(&error);
  co_return error;
}

// ---- out of the slot directory

// Takes files out of the slot directory, the least valuable first, until so many bytes are on their way out. What has no copy
// yet gets one first; what cannot get one is evicted, unless it is pinned.
ResultTask<void> CheckpointStore::leave_slots(std::uint64_t at_least_bytes) {
  judged_on_disk_.reset();  // what is declined now goes for good
  std::uint64_t gone = 0;
  std::set<CheckpointId> stays;  // pinned, and no copy can be made
  while (gone < at_least_bytes) {
    std::vector<const CheckpointRecord*> candidates;
    for (const auto& [id, entry] : entries_) {
      if (entry.record.in_slots && !in_use(id) && !stays.contains(id)) candidates.push_back(&entry.record);
    }
    Victims victims(*policy_, worth_, candidates, now_unix_ms());
    const CheckpointRecord* victim = victims.worst();
    while (victim != nullptr && victim->on_disk && gone < at_least_bytes) {
      gone += victim->bytes;
      victims.take();
      leave_slots(victim->id);
      victim = victims.worst();
    }
    if (gone >= at_least_bytes) break;
    if (victim == nullptr) {
      if (co_await copy_ends()) co_return Result<void>{};  // more may have gone meanwhile: the caller counts again
      co_return disk_error(ErrorCode::no_space, "budget of " + std::to_string(slot_budget()) + " bytes is full", some_are_in_use());
    }
    const CheckpointId id = victim->id;
    const bool may_go = !victim->pinned;
    const bool tried = copying_pause_.waiting(now_unix_ms());
    if (!tried) {
      auto copied = co_await copy_down(id);
      if (copied) continue;
    }
    const auto found = entries_.find(id);
    if (found == entries_.end() || in_use(id)) continue;
    if (may_go && !found->second.record.pinned) {
      gone += found->second.record.bytes;
      condemn(id, RemovalReason::evicted);
    } else {
      stays.insert(id);
    }
  }
  co_return Result<void>{};
}

// False: nothing may leave RAM when a copy under way has ended, or the disk is too slow for somebody who may hold up others.
Task<bool> CheckpointStore::copy_ends() {
  const auto may_go_then = [this](CheckpointId id) {
    const CheckpointRecord* record = find(id);
    return record != nullptr && record->in_slots && uses_.at(id) == 1;  // the copy's own
  };
  if (!std::ranges::any_of(copying_, may_go_then)) co_return false;
  const auto ended = std::make_shared<Wakeup>(co_await boost::asio::this_coro::executor);
  waiting_for_copies_.push_back(ended);
  constexpr std::chrono::seconds bearable{5};
  co_return co_await ended->wait_for(bearable);
}

// Its copy on disk stays.
void CheckpointStore::leave_slots(CheckpointId id) {
  CheckpointEntry& entry = entries_.at(id);
  entry.record.in_slots = false;
  entry.verified_as.clear();
  counters_.slot_bytes -= entry.record.bytes;
  counters_.condemned_bytes += entry.record.bytes;
  ++counters_.left_slots;
  condemned_.push_back({entry.record.file_name, entry.record.bytes, id, false, false});
}

// ---- up

// Before a file may take this name in the slot directory: an earlier one of that name must be gone, or is taken back.
ResultTask<void> CheckpointStore::clear_the_name(std::string file_name, CheckpointId id) {
  for (int round = 0; round < most_tries; ++round) {
    const auto at = std::find_if(condemned_.begin(), condemned_.end(), [&](const Condemned& one) { return !one.on_disk && one.file_name == file_name; });
    const auto entry = entries_.find(id);
    if (entry == entries_.end()) co_return disk_error(ErrorCode::not_found, "the checkpoint is gone");
    if (at == condemned_.end() && !deleting_.contains(slot_path(file_name))) co_return Result<void>{};
    if (at != condemned_.end() && at->id == id) {
      // It only made room a moment ago.
      counters_.condemned_bytes -= at->bytes;
      counters_.slot_bytes += at->bytes;
      entry->second.record.in_slots = true;
      condemned_.erase(at);
      co_return Result<void>{};
    }
    // The index thread takes one job after the other: a deletion under way is over when this returns.
    auto tidied = co_await tidy();
    (void)tidied;
  }
  co_return disk_error(ErrorCode::io, file_name + " cannot be deleted");
}

ResultTask<VerifyOutcome> CheckpointStore::bring_up(CheckpointId id) {
  const auto found = entries_.find(id);
  if (found == entries_.end()) co_return disk_error(ErrorCode::not_found, "the checkpoint is gone");
  const CheckpointRecord record = found->second.record;
  auto cleared = co_await clear_the_name(record.file_name, id);
  if (!cleared) co_return cleared.error();
  if (const CheckpointRecord* now = find(id); now != nullptr && now->in_slots) co_return co_await verify_copy(id, Tier::slots, nullptr);
  auto reservation = co_await reserve(record.bytes);
  if (!reservation) co_return reservation.error();

  const auto job = [&]() -> Result<Verified> {
    auto done = copy_to_slots(files_, disk_path(record.file_name), options_.slot_dir, reservation->temporary_name(), record);
    if (done || done.error().code != ErrorCode::not_found) return done;
    if (auto same = same_directory(files_, options_.disk_dir); !same) return same.error();
    // The copy is where it was: what was written of it is gone.
    if (files_.status(disk_path(record.file_name))) return another_directory(options_.slot_dir);
    return done;
  };
  auto copied = co_await disk_pool_.run(job);
  const auto again = entries_.find(id);
  if (copied) {
    copies_up_.add(copied->outcome.bytes, copied->outcome.seconds);
    ++counters_.brought_up;
    if (again == entries_.end()) {
      condemn_file(record.file_name);
      co_return disk_error(ErrorCode::not_found, "the checkpoint is gone");
    }
    CheckpointEntry& entry = again->second;
    if (!entry.record.in_slots) counters_.slot_bytes += record.bytes;  // else another request brought it up meanwhile
    entry.record.in_slots = true;
    entry.record.files = copied->stamps;
    entry.verified_as = std::move(copied->stamps);
    entry.dirty = true;
    reservation->renamed();
    co_return copied->outcome;
  }
  const Error error = copied.error();
  if (again != entries_.end() && again->second.record.in_slots) {  // another request brought it up meanwhile
    *reservation = Reservation{};
    co_return co_await verify_copy(id, Tier::slots, nullptr);
  }
  condemn_file(record.file_name);  // a part may have its name already
  if (error.code == ErrorCode::corrupt || error.code == ErrorCode::not_found) {
    condemn(id, RemovalReason::bad_file);
  } else {
    ++counters_.disk_errors;
  }
  *reservation = Reservation{};
  auto tidied = co_await tidy();
  (void)tidied;  // tried again later
  co_return error;
}

}  // namespace cairn

#include "checkpoint/store.hpp"

#include <algorithm>
#include <limits>
#include <utility>

#include "base/unix_time.hpp"
#include "checkpoint/index.hpp"
#include "checkpoint/store_disk.hpp"
#include "checkpoint/store_identity.hpp"
#include "checkpoint/store_startup.hpp"

namespace cairn {

std::string_view to_string(RemovalReason reason) {
  switch (reason) {
    case RemovalReason::evicted: return "evicted";
    case RemovalReason::erased: return "erased";
    case RemovalReason::bad_file: return "bad_file";
  }
  return "unknown";
}

// ---- reservations and uses

CheckpointStore::Reservation::Reservation(CheckpointStore* store, std::uint64_t bytes, std::string name)
    : store_(store), bytes_(bytes), temporary_name_(std::move(name)) {
  store_->counters_.reserved_bytes += bytes_;
  if (!temporary_name_.empty()) store_->saving_names_.insert(temporary_name_);
}

CheckpointStore::Reservation::Reservation(Reservation&& other) noexcept
    : store_(std::exchange(other.store_, nullptr)),
      bytes_(other.bytes_),
      temporary_name_(std::move(other.temporary_name_)) {}

CheckpointStore::Reservation& CheckpointStore::Reservation::operator=(Reservation&& other) noexcept {
  if (this != &other) {
    release();
    store_ = std::exchange(other.store_, nullptr);
    bytes_ = other.bytes_;
    temporary_name_ = std::move(other.temporary_name_);
  }
  return *this;
}

CheckpointStore::Reservation::~Reservation() { release(); }

void CheckpointStore::Reservation::release() {
  if (store_ == nullptr) return;
  store_->counters_.reserved_bytes -= bytes_;
  if (!temporary_name_.empty()) store_->condemn_file(temporary_name_);
  renamed();
  store_ = nullptr;
}

void CheckpointStore::Reservation::renamed() {
  store_->saving_names_.erase(temporary_name_);
  temporary_name_.clear();
}

void CheckpointStore::Reservation::grow(std::uint64_t bytes) {
  if (bytes <= bytes_) return;
  store_->counters_.reserved_bytes += bytes - bytes_;
  bytes_ = bytes;
}

CheckpointStore::Use::Use(CheckpointStore* store, CheckpointId id) : store_(store), id_(id) { ++store_->uses_[id_]; }

CheckpointStore::Use::Use(Use&& other) noexcept : store_(std::exchange(other.store_, nullptr)), id_(other.id_) {}

CheckpointStore::Use& CheckpointStore::Use::operator=(Use&& other) noexcept {
  if (this != &other) {
    release();
    store_ = std::exchange(other.store_, nullptr);
    id_ = other.id_;
  }
  return *this;
}

CheckpointStore::Use::~Use() { release(); }

void CheckpointStore::Use::release() {
  if (store_ == nullptr) return;
  const auto found = store_->uses_.find(id_);
  if (found != store_->uses_.end() && --found->second == 0) store_->uses_.erase(found);
  store_ = nullptr;
}

// ---- opening

CheckpointStore::CheckpointStore(StoreOptions options, FileLayer& files, BlockingPool& disk_pool,
                                 std::unique_ptr<EvictionPolicy> policy)
    : options_(std::move(options)), files_(files), disk_pool_(disk_pool), policy_(std::move(policy)) {
  if (policy_ == nullptr) policy_ = std::make_unique<ValuePolicy>();
  if (!options_.now_unix_ms) options_.now_unix_ms = unix_now_ms;
  counters_.budget_bytes = options_.budget_bytes;
  if (has_tiers()) counters_.ram_budget_bytes = options_.ram_budget_bytes;
  if (options_.look_only) {
    options_.budget_bytes = options_.ram_budget_bytes = std::numeric_limits<std::uint64_t>::max();
    options_.min_free_bytes = 0;
  }
}

CheckpointStore::~CheckpointStore() = default;

ResultTask<std::unique_ptr<CheckpointStore>> CheckpointStore::open(StoreOptions options, FileLayer& files,
                                                                   BlockingPool& disk_pool,
                                                                   std::unique_ptr<EvictionPolicy> policy) {
  std::unique_ptr<CheckpointStore> store(
      new CheckpointStore(std::move(options), files, disk_pool, std::move(policy)));
  CheckpointStore& self = *store;
  const auto job = [&self] {
    return load_and_sweep(self.files_, self.options_, self.entries_);
  };
  auto loaded = co_await self.index_pool_.run(job);
  if (!loaded) co_return loaded.error();
  self.opened_unix_ms_ = self.now_unix_ms();
  self.index_ = std::move(loaded->index);
  self.state_lock_ = std::move(loaded->state_lock);
  self.slot_lock_ = std::move(loaded->slot_lock);
  self.disk_lock_ = std::move(loaded->disk_lock);
  self.settings_ = std::move(loaded->settings);
  self.owner_note_ = std::move(loaded->owner_note);
  for (NamespaceRecord& record : loaded->namespaces) self.namespaces_.emplace(record.id, std::move(record));
  for (const auto& [id, entry] : self.entries_) {
    self.counters_.bytes += entry.record.bytes;
    if (entry.record.in_slots) self.counters_.slot_bytes += entry.record.bytes;
    if (entry.record.on_disk) self.counters_.disk_bytes += entry.record.bytes;
  }
  for (const Loaded::Left& left : loaded->left) {
    self.condemned_.push_back({left.file_name, 0, left.row, left.row != CheckpointId{}, left.on_disk});
  }
  self.index_damage_ = std::move(loaded->index_damage);
  self.strange_states_ = std::move(loaded->strange_states);
  self.counters_.swept_files = loaded->swept_files;
  self.counters_.swept_entries = loaded->swept_entries;
  self.counters_.absent_entries = loaded->absent_entries;
  self.counters_.damaged_entries = loaded->damaged_entries;
  auto trimmed = co_await self.trim_at_start();
  if (!trimmed) co_return trimmed.error();
  co_return store;
}

// ---- saving

ResultTask<CheckpointStore::Reservation> CheckpointStore::reserve(std::uint64_t bytes_estimate) {
  if (bytes_estimate > slot_budget()) {
    ++counters_.refused_reservations;
    co_return disk_error(ErrorCode::no_space, std::to_string(bytes_estimate) + " bytes are more than the whole budget");
  }
  // Counted before anything is awaited: two reservations cannot both take the last of the room.
  Reservation reservation(this, bytes_estimate, {});
  auto room = co_await make_room(true);
  if (!room) {
    if (room.error().code == ErrorCode::no_space) {
      ++counters_.refused_reservations;
      look_at_pins(bytes_estimate);
    } else {
      saving_failed(room.error());
    }
    co_return room.error();
  }
  reservation.temporary_name_ = new_base_name() + std::string(saving_suffix);
  saving_names_.insert(reservation.temporary_name_);
  co_return std::move(reservation);
}

ResultTask<CheckpointStore::Reservation> CheckpointStore::reserve_scratch(std::uint64_t bytes_estimate) {
  auto space = co_await slot_space();
  if (!space) {
    ++counters_.disk_errors;
    saving_failed(space.error());
    co_return space.error();
  }
  if (space->free_bytes < counters_.reserved_bytes + bytes_estimate) co_return co_await reserve(bytes_estimate);
  co_return Reservation(this, 0, new_base_name() + std::string(saving_suffix));
}

ResultTask<CommittedCheckpoint> CheckpointStore::commit(Reservation reservation, NewCheckpoint checkpoint) {
  if (reservation.store_ != this || reservation.temporary_name_.empty()) {
    co_return internal_error("commit without a reservation of this store");
  }
  const std::string temporary_name = reservation.temporary_name_;
  const std::string final_name =
      temporary_name.substr(0, temporary_name.size() - saving_suffix.size()) + std::string(state_suffix);
  const std::string temporary_path = slot_path(temporary_name);
  const std::string final_path = slot_path(final_name);

  Error failure;
  bool disk_failed = false;  // as opposed to a bad file, or a budget that is full
  const auto inspection = [&] { return inspect_saved(files_, temporary_path, checkpoint); };
  auto inspected = co_await commit_pool_.run(inspection);
  bool good = inspected.has_value();
  if (!good) {
    failure = inspected.error();
    disk_failed = failure.code != ErrorCode::corrupt && failure.code != ErrorCode::unsupported;
  }

  if (good && inspected->bytes > reservation.bytes()) {
    reservation.grow(inspected->bytes);
    auto room = co_await make_room(false);  // the disk already holds it
    good = room.has_value();
    if (!good) failure = room.error();
  }

  Sealed sealed;
  if (good) {
    const auto sealing = [&] {
      return seal_saved(files_, options_.slot_dir, temporary_path, final_path, *inspected);
    };
    auto done = co_await commit_pool_.run(sealing);
    good = done.has_value();
    if (good) {
      sealed = std::move(*done);
    } else {
      failure = done.error();
      disk_failed = failure.code != ErrorCode::corrupt;
    }
  }

  CheckpointRecord record;
  if (good) {
    record.namespace_id = checkpoint.namespace_id;
    record.file_name = final_name;
    record.token_count = static_cast<std::uint32_t>(inspected->header.tokens.size());
    record.resume_positions = checkpoint.resume_positions.value_or(sealed.context_checkpoints.positions);
    record.kind = checkpoint.kind;
    record.bytes = inspected->bytes;
    record.cost_to_recompute_s = checkpoint.cost_to_recompute_s;
    record.created_unix_ms = record.last_used_unix_ms = now_unix_ms();
    record.pinned = checkpoint.pin_label.has_value();
    record.pin_label = checkpoint.pin_label.value_or("");
    record.checksum = sealed.checksum;
    record.files = sealed.stamps;
    std::string rebuilt;
    const auto insertion = [&]() -> Result<CheckpointId> {
      if (auto there = index_->is_in_place(); !there) return there.error();
      auto added = index_->add_checkpoint(record, inspected->header.tokens);
      rebuilt = index_->take_rebuilt();
      return added;
    };
    auto id = co_await index_pool_.run(insertion);
    index_was_rebuilt(rebuilt);
    good = id.has_value();
    if (good) {
      record.id = *id;
    } else {
      failure = id.error();
      disk_failed = true;
    }
  }

  if (!good) {
    ++counters_.failed_commits;
    if (disk_failed) {
      ++counters_.disk_errors;
      saving_failed(failure);
    }
    condemn_file(final_name);
    reservation.release();
    auto tidied = co_await tidy();
    (void)tidied;  // tried again later
    co_return failure;
  }

  CommittedCheckpoint committed;
  committed.id = record.id;
  committed.tokens = std::move(inspected->header.tokens);
  committed.bytes = record.bytes;
  committed.state_version = inspected->header.version;
  committed.context_checkpoints = std::move(sealed.context_checkpoints);
  committed.checksum_bytes_per_s =
      sealed.seconds > 0 ? static_cast<double>(record.bytes) / sealed.seconds : 0;
  reservation.renamed();
  reservation.release();
  counters_.bytes += record.bytes;
  counters_.slot_bytes += record.bytes;
  ++counters_.commits;
  if (pause_.succeeded() && on_saving_) on_saving_(nullptr);
  // Hashed by this process a moment ago: verified as it lies there now.
  entries_.emplace(committed.id, CheckpointEntry{std::move(record), false, std::move(sealed.stamps), now_unix_ms()});
  if (checkpoint.pin_label) look_at_pins(0);
  co_return std::move(committed);
}

ResultTask<void> CheckpointStore::discard(Reservation reservation, bool may_come) {
  if (may_come && !reservation.temporary_name_.empty()) strays_.push_back({reservation.temporary_name_, now_unix_ms() + strays_come_ms});
  reservation.release();
  auto tidied = co_await tidy();
  co_return tidied;
}

bool CheckpointStore::strays_may_come() const {
  const std::int64_t now = now_unix_ms();
  return late_files_may_come() || std::ranges::any_of(strays_, [now](const Stray& stray) { return stray.until_unix_ms > now; });
}

// ---- what may change

void CheckpointStore::mark_used(CheckpointId id) {
  const auto found = entries_.find(id);
  if (found == entries_.end()) return;
  ++found->second.record.uses;
  found->second.record.last_used_unix_ms = now_unix_ms();
  found->second.dirty = true;
}

void CheckpointStore::set_resume(CheckpointId id, CheckpointKind kind,
                                 std::vector<std::uint32_t> resume_positions) {
  const auto found = entries_.find(id);
  if (found == entries_.end()) return;
  found->second.record.kind = kind;
  found->second.record.resume_positions = std::move(resume_positions);
  found->second.dirty = true;
}

void CheckpointStore::set_cost(CheckpointId id, double cost_to_recompute_s) {
  const auto found = entries_.find(id);
  if (found == entries_.end()) return;
  found->second.record.cost_to_recompute_s = cost_to_recompute_s;
  found->second.dirty = true;
}

ResultTask<void> CheckpointStore::erase(CheckpointId id, RemovalReason reason) {
  condemn(id, reason);
  auto tidied = co_await tidy(id);
  co_return tidied;
}

ResultTask<void> CheckpointStore::set_pin(CheckpointId id, bool pinned, std::string label) {
  const auto found = entries_.find(id);
  if (found == entries_.end()) {
    co_return disk_error(ErrorCode::not_found, "checkpoint " + std::to_string(static_cast<std::int64_t>(id)) + " is gone");
  }
  if (pinned) end_standby(id);
  if (pinned) found->second.copy_declined_unix_ms.reset();
  found->second.record.pinned = pinned;
  found->second.record.pin_label = std::move(label);
  found->second.dirty = true;
  pins_fill_ = pins_fill_ && pinned;
  if (pinned) look_at_pins(0);
  auto tidied = co_await tidy(id);
  co_return tidied;
}

ResultTask<void> CheckpointStore::pin(CheckpointId id, std::string label) { return set_pin(id, true, std::move(label)); }
ResultTask<void> CheckpointStore::unpin(CheckpointId id) { return set_pin(id, false, {}); }

ResultTask<void> CheckpointStore::flush() {
  co_await condemn_late_files();
  auto tidied = co_await tidy();
  co_return tidied;
}

void CheckpointStore::on_index_rebuilt(RebuiltCallback callback) {
  on_index_rebuilt_ = std::move(callback);
  index_was_rebuilt(std::exchange(untold_rebuild_, {}));
}

void CheckpointStore::index_was_rebuilt(const std::string& why) {
  if (why.empty()) return;
  if (on_index_rebuilt_) {
    on_index_rebuilt_(why);
  } else {
    untold_rebuild_ = why;
  }
}

ResultTask<IndexCheck> CheckpointStore::check_index() {
  const auto look = [path = index_in(options_.state_dir)] { return Index::check(path); };
  auto sound = co_await background_pool_.run(look);
  if (sound) co_return IndexCheck{};
  if (sound.error().code != ErrorCode::corrupt) co_return sound.error();
  IndexCheck check{sound.error().context};
  if (options_.look_only) co_return check;
  const auto rebuild = [this, &check] { return index_->rebuild(check.damage); };
  auto rebuilt = co_await index_pool_.run(rebuild);
  check.rebuilt = rebuilt.has_value();
  auto tidied = co_await tidy();
  (void)tidied;  // tried again later
  co_return check;
}

ResultTask<NamespaceId> CheckpointStore::add_namespace(std::string identity_json, std::string probe,
                                                       std::string facts_json) {
  NamespaceRecord record{NamespaceId{}, std::move(identity_json), std::move(probe), std::move(facts_json),
                         now_unix_ms(), now_unix_ms()};
  if (options_.look_only) {
    record.id = NamespaceId{namespaces_.empty() ? 1 : static_cast<std::int64_t>(namespaces_.rbegin()->first) + 1};
    const NamespaceId id = record.id;
    namespaces_.emplace(id, std::move(record));
    co_return id;
  }
  const auto job = [&] { return index_->add_namespace(record); };
  auto id = co_await index_pool_.run(job);
  if (!id) {
    ++counters_.disk_errors;
    co_return id.error();
  }
  record.id = *id;
  namespaces_.emplace(*id, std::move(record));
  co_return *id;
}

ResultTask<void> CheckpointStore::update_namespace(NamespaceId id, std::string identity_json, std::string probe,
                                                   std::string facts_json) {
  const auto found = namespaces_.find(id);
  if (found == namespaces_.end()) co_return internal_error("update of an unknown namespace");
  NamespaceRecord& record = found->second;
  record.identity = std::move(identity_json);
  record.probe = std::move(probe);
  record.facts = std::move(facts_json);
  record.last_seen_unix_ms = now_unix_ms();
  if (options_.look_only) co_return Result<void>{};
  const NamespaceRecord copy = record;
  const auto job = [&] { return index_->update_namespace(copy); };
  auto done = co_await index_pool_.run(job);
  if (!done) ++counters_.disk_errors;
  co_return done;
}

std::optional<std::string> CheckpointStore::setting(const std::string& key) const {
  const auto found = settings_.find(key);
  if (found == settings_.end()) return std::nullopt;
  return found->second;
}

ResultTask<void> CheckpointStore::put_setting(std::string key, std::string value) {
  settings_[key] = value;
  const auto job = [&] { return index_->put_setting(key, value); };
  auto done = co_await index_pool_.run(job);
  if (!done) ++counters_.disk_errors;
  co_return done;
}

StoreCounters CheckpointStore::counters() const {
  StoreCounters counters = counters_;
  counters.files = entries_.size();
  for (const auto& [id, entry] : entries_) {
    if (entry.record.pinned) counters.pinned_bytes += entry.record.bytes;
  }
  return counters;
}

void CheckpointStore::saving_failed(const Error& error) {
  if (pause_.failed(error, now_unix_ms()) && on_saving_) on_saving_(&error);
}

std::int64_t CheckpointStore::now_unix_ms() const { return options_.now_unix_ms(); }

}  // namespace cairn

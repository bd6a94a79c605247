// The saved states: reserves room for them, commits them so that a crash at any instant leaves nothing half, verifies
// them before they are restored, and evicts them within a byte budget.
// Thread: the I/O thread; disk work and checksums run on `disk_pool`, those that no restore should wait behind on threads of its
// own (two for commits, two for the rest), SQLite and deletions on one more.
// Owner: main. Outlives every task it returned, every Reservation and every Use. `disk_pool` and `files` outlive it.
// Errors: source disk (no_space, io, corrupt, not_found), never an exception; after any of them the store is usable.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/blocking_pool.hpp"
#include "base/populated_memory.hpp"
#include "base/task.hpp"
#include "base/wakeup.hpp"
#include "checkpoint/eviction.hpp"
#include "checkpoint/file_layer.hpp"
#include "checkpoint/late_space.hpp"
#include "checkpoint/record.hpp"
#include "checkpoint/saving_pause.hpp"
#include "prefix/tokens.hpp"

namespace cairn {

class Index;

struct StoreOptions {
  std::string slot_dir;   // the backend's --slot-save-path, as this process sees it
  std::string state_dir;  // Cairn's own data: index.sqlite; made when it is missing
  // Two tiers when it is set: the slot directory is in RAM, and here, on a disk, lie copies that outlive a reboot and states
  // that no longer fit there. Both are made when they are missing.
  std::string disk_dir;
  std::uint64_t budget_bytes = 0;      // of the slot directory; with tiers of the disk directory
  std::uint64_t ram_budget_bytes = 0;  // with tiers: of the slot directory
  std::uint64_t min_free_bytes = 0;    // of the slot directory's disk; with tiers of the disk directory's
  double low_water = 1.0;              // of the budget: what an eviction trims to; below 1 not every save evicts
  bool verify_checksums = true;      // false: only size, inode and times are looked at before a restore
  // For a command that comes by: opening makes, sets aside, forgets and sweeps nothing, nothing is evicted whatever the limits
  // above say, and namespaces are known in memory alone. Where there is no index: `not_found`.
  bool look_only = false;
  bool may_have_no_index = false;    // to look: as if it were an empty one
  bool same_start = false;           // this process has tried before: where states are late it counts as one start
  std::function<std::int64_t()> now_unix_ms;  // the wall clock when empty
};

enum class RemovalReason { evicted, erased, bad_file };
std::string_view to_string(RemovalReason reason);

struct NewCheckpoint {
  NamespaceId namespace_id{};
  Tokens expected_prefix;        // the file's tokens must begin with these
  std::uint64_t saved_tokens = 0;  // `n_saved` of the backend's answer: the file must hold exactly as many
  std::uint64_t saved_bytes = 0;   // `n_written` of it: the file must not be shorter; 0 when unknown
  // nullopt: what the file itself says (its context checkpoints; none on builds that do not save them).
  std::optional<std::vector<std::uint32_t>> resume_positions;
  CheckpointKind kind = CheckpointKind::unknown;
  double cost_to_recompute_s = 0;
  std::optional<std::string> pin_label;  // set: pinned from the start
};

struct CommittedCheckpoint {
  CheckpointId id{};
  Tokens tokens;  // what the file really holds
  std::uint64_t bytes = 0;
  std::uint32_t state_version = 0;  // of the file: below 4 it carries no context checkpoints
  ContextCheckpoints context_checkpoints;  // those in the file
  double checksum_bytes_per_s = 0;
};

struct VerifyOutcome {
  bool checksum_read = false;  // false: the stat alone said that it is the file verified before
  std::uint64_t bytes = 0;     // read
  double seconds = 0;
  std::string other_copy;  // of two that were read one is good; what is wrong with the other
};

struct StoreCounters {
  std::uint64_t files = 0;
  std::uint64_t bytes = 0;           // of committed checkpoints, each once
  std::uint64_t slot_bytes = 0;      // of those in the slot directory; without tiers all
  std::uint64_t disk_bytes = 0;      // of those in the disk directory
  std::uint64_t reserved_bytes = 0;  // being saved, or brought up
  std::uint64_t disk_reserved_bytes = 0;  // being copied to the disk directory
  std::uint64_t condemned_bytes = 0;  // to be deleted from the slot directory, still there: in use or undeletable so far
  std::uint64_t condemned_disk_bytes = 0;  // likewise of the disk directory
  std::uint64_t budget_bytes = 0;
  std::uint64_t ram_budget_bytes = 0;  // 0: no tiers
  std::uint64_t pinned_bytes = 0;
  std::uint64_t commits = 0;
  std::uint64_t failed_commits = 0;
  std::uint64_t refused_reservations = 0;
  std::uint64_t declined = 0;       // not saved: worth less than all they would have driven out
  std::uint64_t copied_down = 0;    // to the disk directory
  std::uint64_t brought_up = 0;     // from there
  std::uint64_t left_slots = 0;     // whose file in the slot directory made room, the copy on disk staying
  std::uint64_t evictions = 0;
  std::uint64_t dropped_bad = 0;
  std::uint64_t swept_files = 0;    // at start-up: files without an entry, half-saved ones
  std::uint64_t swept_entries = 0;  // at start-up: entries without a file or with a wrong size
  std::uint64_t absent_entries = 0;  // at start-up: likewise, but their whole directory seems to be away, and they are kept
  std::uint64_t damaged_entries = 0;  // rows that made no sense, or whose tokens could not be read: dropped, unless to look
  std::uint64_t checksum_bytes = 0;
  double checksum_seconds = 0;
  std::uint64_t disk_errors = 0;
};

struct IndexCheck {
  std::string damage;    // empty: none
  bool rebuilt = false;  // because of it
};

class CheckpointStore {
 public:
  // Room for one save, and the name to save to. Dropped without a commit it gives the room back, and the file is deleted
  // with the store's next piece of work.
  class [[nodiscard]] Reservation {
   public:
    Reservation() = default;
    Reservation(Reservation&& other) noexcept;
    Reservation& operator=(Reservation&& other) noexcept;
    ~Reservation();
    // Plain name, `cairn-<32 hex>.saving`: the "filename" of the backend's save action.
    const std::string& temporary_name() const { return temporary_name_; }
    std::uint64_t bytes() const { return bytes_; }
    explicit operator bool() const { return store_ != nullptr; }

   private:
    friend class CheckpointStore;
    Reservation(CheckpointStore* store, std::uint64_t bytes, std::string name);
    void release();
    void renamed();  // its file: there is nothing to delete
    void grow(std::uint64_t bytes);
    CheckpointStore* store_ = nullptr;
    std::uint64_t bytes_ = 0;
    std::string temporary_name_;
  };

  // While it lives the file is neither evicted nor deleted.
  class [[nodiscard]] Use {
   public:
    Use() = default;
    Use(Use&& other) noexcept;
    Use& operator=(Use&& other) noexcept;
    ~Use();
    explicit operator bool() const { return store_ != nullptr; }

   private:
    friend class CheckpointStore;
    Use(CheckpointStore* store, CheckpointId id);
    void release();
    CheckpointStore* store_ = nullptr;
    CheckpointId id_{};
  };

  using RemovalCallback = std::function<void(const CheckpointRecord&, RemovalReason)>;
  using TokenVisitor = std::function<void(const CheckpointRecord&, TokenSpan)>;

  // Locks both directories (`invalid` when another Cairn holds one; it may be tried again unless that one serves), loads the
  // index and sweeps what a crash left. Only regular files named `cairn-<32 hex>.state|.saving`, with or without a side suffix,
  // are ever deleted. A damaged index is set aside as index.sqlite.bad and an empty one begun; one of a newer format as
  // index.sqlite.newer. To look, both are errors (`corrupt`, `unsupported`).
  // `policy` null: ValuePolicy.
  static ResultTask<std::unique_ptr<CheckpointStore>> open(StoreOptions options, FileLayer& files,
                                                           BlockingPool& disk_pool,
                                                           std::unique_ptr<EvictionPolicy> policy = nullptr);
  ~CheckpointStore();
  CheckpointStore(const CheckpointStore&) = delete;
  CheckpointStore& operator=(const CheckpointStore&) = delete;

  // Called when the disk begins to refuse saves (the Error) and when one succeeds again (nullptr); not at each failure.
  using SavingCallback = std::function<void(const Error*)>;
  void on_saving(SavingCallback callback) { on_saving_ = std::move(callback); }
  // The disk refused a save a moment ago: nothing is tried until a while has passed.
  bool saving_waits() const { return pause_.waiting(now_unix_ms()); }
  const std::optional<Error>& saving_trouble() const { return pause_.trouble(); }
  // The backend, who writes the files, could not.
  void note_save_refused(const Error& error) { saving_failed(error); }

  // Called when pinned states are found to leave no room in the budget for another one, which may be at once; again only when fewer
  // are pinned than then.
  using PinsCallback = std::function<void(std::uint64_t pinned_bytes, std::uint64_t budget_bytes)>;
  void on_pins_fill(PinsCallback callback);

  // Called when the index was built anew of what could be read, for it was damaged (why); at once where that was at the start.
  using RebuiltCallback = std::function<void(const std::string&)>;
  void on_index_rebuilt(RebuiltCallback callback);

  // Called at each removal after open (tell the prefix tree); the record is already gone from the store.
  void on_removed(RemovalCallback callback) { on_removed_ = std::move(callback); }
  // Who knows what a state is worth keeping for; asked in each round of evictions.
  void on_worth(WorthOf worth) { worth_ = std::move(worth); }
  // Called when a state is kept only until its successor, which offers all that it does, lies on disk as well (`stands_by`), and when
  // it is wanted for its own sake again.
  using StandbyCallback = std::function<void(const CheckpointRecord&, bool stands_by)>;
  void on_standby(StandbyCallback callback) { on_standby_ = std::move(callback); }

  // Hands out the tokens of every checkpoint, in batches, for rebuilding the prefix tree; returns how many. An entry whose
  // tokens do not match their hash is removed (bad_file). Of most of them `announce` is told
  // `announced_ahead` turns before.
  static constexpr std::size_t announced_ahead = 12;
  ResultTask<std::size_t> load_tokens(TokenVisitor visitor, TokenVisitor announce = {});
  ResultTask<Tokens> tokens_of(CheckpointId id);

  // Makes room for a file of about so many bytes, evicting where needed. no_space when it cannot.
  ResultTask<Reservation> reserve(std::uint64_t bytes_estimate);
  // For a file that is deleted at once: room on the disk is enough, whatever the budget and the floor of free disk say.
  ResultTask<Reservation> reserve_scratch(std::uint64_t bytes_estimate);
  // False: it would have to drive out states that are worth more than it, by the policy of eviction. `incoming` has the bytes,
  // tokens and cost it will have, and an id for which `on_worth` answers.
  bool worth_saving(const CheckpointRecord& incoming);
  // The same, and of the floor of free disk as well.
  Task<bool> worth_its_room(const CheckpointRecord& incoming);
  // Takes the file saved under the reservation's name: checks its tokens and size, makes it durable, gives it its final
  // name and its entry. On any error the file is gone, and the reservation with it. corrupt: not what was expected.
  ResultTask<CommittedCheckpoint> commit(Reservation reservation, NewCheckpoint checkpoint);
  // Deletes the temporary file now instead of later. `may_come`: nobody knows whether the backend will still write it, so for ten
  // minutes it is deleted again with each piece of work (flush() is one).
  ResultTask<void> discard(Reservation reservation, bool may_come = false);
  // Likewise for ten minutes after opening: the backend may still write what the process before asked it for.
  bool strays_may_come() const;

  // nullptr when there is none (or no longer). Valid until the next co_await or non-const member.
  const CheckpointRecord* find(CheckpointId id) const;
  void for_each(const std::function<void(const CheckpointRecord&)>& visitor) const;
  // An empty Use when there is no such checkpoint.
  Use use(CheckpointId id);
  // Hold a Use meanwhile and until the restore is over. Reads the whole file the first time in this process and whenever
  // size, inode or times differ; else a stat. A bad one is removed, and the Error (corrupt, not_found) says what it was.
  // Trouble with reading (io), or with the whole directory, removes nothing; but with tiers what is in RAM, and on disk too, is
  // replaced whatever is wrong with it.
  // `afresh`: reads it whatever is known of it.
  // With tiers a state that lies on disk alone is brought up, verified on the way; `afresh` reads each copy where it is.
  ResultTask<VerifyOutcome> verify_before_restore(CheckpointId id, bool afresh = false);
  // Bytes that the reading afresh which is under way has read so far, of all copies; nullopt: none is.
  std::optional<std::uint64_t> read_afresh(CheckpointId id) const;
  // What that will take: copying up, or a first checksum. 0 when nothing is to be done.
  double seconds_before_restore(CheckpointId id) const;

  // --- tiers
  bool has_tiers() const { return !options_.disk_dir.empty(); }
  // Some state lies in the slot directory alone, and the disk is not refusing copies just now, nor was this one declined a moment ago.
  bool copies_due() const;
  // Copies such states to the disk directory, one by one, until `busy` says true. What is worth less than all that it would drive out
  // is declined, and asked for again after a minute. Errors: of the disk; tried again later.
  ResultTask<void> copy_down(std::function<bool()> busy);
  // The same of those alone that have waited too long for a quiet moment.
  static constexpr std::int64_t longest_uncopied_ms = 60'000;
  ResultTask<void> copy_overdue(std::function<bool()> busy);
  // Some state lies in the slot directory alone.
  bool copies_wait() const;
  // Called when the disk directory begins to refuse copies, and when it takes one again.
  void on_copying(SavingCallback callback) { on_copying_ = std::move(callback); }

  // Counts a use; written with the next flush, commit or removal.
  void mark_used(CheckpointId id);
  // Corrects what the file is believed to be good for; written likewise.
  void set_resume(CheckpointId id, CheckpointKind kind, std::vector<std::uint32_t> resume_positions);
  void set_cost(CheckpointId id, double cost_to_recompute_s);
  // The entry goes at once; the file too, or when its last Use ends. `reason` is what the callback is told.
  ResultTask<void> erase(CheckpointId id, RemovalReason reason = RemovalReason::erased);
  // `by` offers all that `old` does, which goes: at once, but where it lies on disk, and `by` does not yet, only its file in the
  // slot directory, and the rest when `by` was copied.
  ResultTask<void> supersede(CheckpointId old, CheckpointId by);
  // Whose copy it waits for in order to go; nullopt: for nobody's.
  std::optional<CheckpointId> successor_of(CheckpointId id) const;
  ResultTask<void> pin(CheckpointId id, std::string label);
  ResultTask<void> unpin(CheckpointId id);
  // Writes what is not written yet and deletes what waits for deletion (call it when idle and at shutdown).
  ResultTask<void> flush();
  // Reads all of the index, also where no reading of ours goes. One that is damaged is built anew of what can be read, unless to look.
  ResultTask<IndexCheck> check_index();

  const std::map<NamespaceId, NamespaceRecord>& namespaces() const { return namespaces_; }
  ResultTask<NamespaceId> add_namespace(std::string identity_json, std::string probe, std::string facts_json);
  // Replaces identity, probe and facts, and sets last_seen to now.
  ResultTask<void> update_namespace(NamespaceId id, std::string identity_json, std::string probe,
                                    std::string facts_json);
  // Values that outlive a restart: measured rates and the like. Read from memory, written through.
  std::optional<std::string> setting(const std::string& key) const;
  ResultTask<void> put_setting(std::string key, std::string value);

  StoreCounters counters() const;
  std::int64_t now_unix_ms() const;
  // Why open() set the index aside and began an empty one; empty when it did not.
  const std::string& index_damage() const { return index_damage_; }
  // Where states lie that another index has known, whose disk may be late, or which stands where we cannot see it; empty: nowhere. They
  // are left alone.
  const std::string& strange_states() const { return strange_states_; }
  const StoreOptions& options() const { return options_; }

 private:
  // Gone from memory; its row and its files are still to be deleted.
  struct Condemned {
    std::string file_name;
    std::uint64_t bytes = 0;
    CheckpointId id{};  // 0: never had a row
    bool row_left = false;
    bool on_disk = false;  // in the disk directory, not the slot directory
    bool stuck = false;    // others could be deleted, it could not
  };
  // Bytes passed and how long they took, with a first guess that weighs as much as 64 MiB.
  struct Pace {
    double bytes = 0, seconds = 0;
    void add(std::uint64_t more_bytes, double more_seconds) {
      bytes += static_cast<double>(more_bytes);
      seconds += more_seconds;
    }
    double seconds_for(std::uint64_t wanted, double guessed_bytes_per_s) const {
      constexpr double weight = 64 << 20;
      return static_cast<double>(wanted) * (seconds + weight / guessed_bytes_per_s) / (bytes + weight);
    }
  };

  CheckpointStore(StoreOptions options, FileLayer& files, BlockingPool& disk_pool,
                  std::unique_ptr<EvictionPolicy> policy);
  ResultTask<void> make_room(bool check_disk);
  ResultTask<DiskSpace> slot_space();
  ResultTask<DiskSpace> disk_space();
  ResultTask<void> fit_budget();
  ResultTask<void> trim_at_start();
  void look_at_pins(std::uint64_t wanted_bytes);
  // The first error of anything; with `own` only of what concerns that checkpoint: its row, and its files when it is going.
  ResultTask<void> tidy(std::optional<CheckpointId> own = std::nullopt);
  enum class Tier { slots, disk };
  std::uint64_t low_water_of(std::uint64_t budget) const {
    return options_.low_water >= 1 ? budget : static_cast<std::uint64_t>(options_.low_water * static_cast<double>(budget));
  }
  std::uint64_t slot_budget() const { return has_tiers() ? options_.ram_budget_bytes : options_.budget_bytes; }
  bool evict(Tier tier, std::uint64_t at_least_bytes, std::uint64_t at_most_bytes, CheckpointId incoming = {});
  bool worth_more_than_victims(const CheckpointRecord& incoming, Tier tier, std::uint64_t at_least_bytes);
  bool evicting_helps(Tier tier, std::uint64_t at_least_bytes) const;
  std::vector<const CheckpointRecord*> evictable(Tier tier, CheckpointId incoming = {}) const;
  static constexpr std::int64_t strays_come_ms = 600'000;
  std::uint64_t held_bytes(Tier tier) const;
  Tier floor_tier() const { return has_tiers() ? Tier::disk : Tier::slots; }  // whose disk has the floor
  // Tiers (store_tiers.cpp).
  ResultTask<void> leave_slots(std::uint64_t at_least_bytes);
  void leave_slots(CheckpointId id);
  Task<bool> copy_ends();
  ResultTask<void> copy_down(std::function<bool()> busy, std::int64_t uncopied_since_unix_ms);
  ResultTask<void> copy_down(CheckpointId id);
  ResultTask<void> copy_one_down(CheckpointId id);
  bool settle_standby(CheckpointId copied);
  bool surely_declined(const CheckpointRecord& incoming, std::uint64_t at_least_bytes);
  Error decline_copy(CheckpointId id);
  bool copy_due(const CheckpointEntry& entry) const;
  bool evict_on_disk_for(const CheckpointRecord& incoming, std::uint64_t at_least_bytes, std::uint64_t at_most_bytes);
  bool stands_by_for(CheckpointId id, CheckpointId successor) const;
  void end_standby(CheckpointId id);
  void hand_standby_on(CheckpointId removed);
  ResultTask<void> make_room_on_disk(const CheckpointRecord& incoming);
  ResultTask<VerifyOutcome> bring_up(CheckpointId id);
  ResultTask<void> clear_the_name(std::string file_name, CheckpointId id);
  ResultTask<void> take_the_name_on_disk(std::string file_name);
  ResultTask<VerifyOutcome> verify_copy(CheckpointId id, Tier tier, std::atomic<std::uint64_t>* afresh);  // counts the bytes; null: not afresh
  ResultTask<void> set_pin(CheckpointId id, bool pinned, std::string label);
  void condemn(CheckpointId id, RemovalReason reason);
  void condemn_file(std::string file_name);
  bool late_files_may_come() const;
  Task<void> condemn_late_files();
  bool in_use(CheckpointId id) const { return uses_.contains(id); }
  bool some_are_in_use() const;  // that may leave the slot directory when they are not any more
  void saving_failed(const Error& error);
  void index_was_rebuilt(const std::string& why);
  std::string slot_path(const std::string& name) const { return options_.slot_dir + "/" + name; }
  std::string disk_path(const std::string& name) const { return options_.disk_dir + "/" + name; }
  std::string path_of(Tier tier, const std::string& name) const { return tier == Tier::slots ? slot_path(name) : disk_path(name); }

  StoreOptions options_;
  FileLayer& files_;
  BlockingPool& disk_pool_;
  std::unique_ptr<EvictionPolicy> policy_;
  RemovalCallback on_removed_;
  StandbyCallback on_standby_;
  SavingCallback on_saving_;
  SavingCallback on_copying_;
  PinsCallback on_pins_fill_;
  RebuiltCallback on_index_rebuilt_;
  std::string untold_rebuild_;
  bool pins_fill_ = false;  // and it was said
  SavingPause pause_;
  SavingPause copying_pause_;  // of copies to the disk directory
  WorthOf worth_;
  std::int64_t disk_freed_unix_ms_ = 0;  // otherwise than for room
  std::optional<Victims> judged_on_disk_;  // a moment ago
  std::int64_t judged_unix_ms_ = 0;
  std::string owner_note_;  // for lock files made anew
  std::unique_ptr<FileLock> state_lock_;
  std::shared_ptr<FileLock> slot_lock_;  // these two are looked at by work under way
  std::shared_ptr<FileLock> disk_lock_;
  std::pmr::unsynchronized_pool_resource entry_memory_{{.max_blocks_per_chunk = 4096}, &populated_memory()};
  CheckpointEntries entries_{&entry_memory_};
  std::unordered_map<CheckpointId, int> uses_;
  std::map<CheckpointId, const std::atomic<std::uint64_t>*> reading_afresh_;
  std::set<CheckpointId> copying_;  // down
  std::vector<std::shared_ptr<Wakeup>> waiting_for_copies_;
  std::map<CheckpointId, CheckpointId> standing_by_;  // states that are kept until another is copied
  struct Stray {
    std::string file_name;
    std::int64_t until_unix_ms = 0;
  };
  std::vector<Stray> strays_;
  std::set<std::string> saving_names_;  // of reservations
  std::int64_t opened_unix_ms_ = 0;
  std::vector<Condemned> condemned_;
  std::multiset<std::string> deleting_;  // paths on their way out on the index thread
  LateSpace late_space_;  // of the directory whose floor of free disk is kept
  Pace checksums_, copies_up_;
  std::map<NamespaceId, NamespaceRecord> namespaces_;
  std::map<std::string, std::string> settings_;
  StoreCounters counters_;
  std::string index_damage_, strange_states_;
  std::unique_ptr<Index> index_;  // touched on index_pool_ alone once it is open
  BlockingPool index_pool_{1};
  // Copies to the disk tier and reading all afresh, hashing and syncing what was saved: gigabytes at a slow disk's pace. A commit may be
  // waited for as well, and not behind the others.
  BlockingPool background_pool_{2};
  BlockingPool commit_pool_{2};  // these three are joined first
};

}  // namespace cairn

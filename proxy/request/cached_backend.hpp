// One backend with all that Cairn knows of it: what it can do, what its slots hold, what things cost there, and the upkeep
// (noticing that it came, went or changed; writing states back when nobody is served).
// Thread: the I/O thread. Owner: ModelServer. Outlives every request.
#pragma once

#include <boost/asio/any_io_executor.hpp>

#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "backend/async.hpp"
#include "backend/llama_api.hpp"
#include "backend/upstream.hpp"
#include "base/blocking_pool.hpp"
#include "base/cancel.hpp"
#include "base/wakeup.hpp"
#include "checkpoint/catalogue.hpp"
#include "checkpoint/evicted_states.hpp"
#include "checkpoint/store.hpp"
#include "plan/admission.hpp"
#include "plan/cost_model.hpp"
#include "plan/pauses.hpp"
#include "plan/planner.hpp"
#include "request/adapter_spaces.hpp"
#include "request/derivations.hpp"
#include "request/generation_suffix.hpp"
#include "request/infill.hpp"
#include "request/probe.hpp"
#include "request/probe_schedule.hpp"
#include "request/shared_server.hpp"
#include "request/token_memo.hpp"
#include "request/unproved_options.hpp"
#include "request/warmed_prompt.hpp"
#include "slots/backend_ram_cache.hpp"
#include "slots/scheduler.hpp"
#include "slots/slot_table.hpp"

namespace cairn {

struct CacheOptions {
  CheckpointPolicy policy;
  std::uint32_t ubatch_tokens = 512;                // the backend's --ubatch-size; places its context checkpoints
  std::uint32_t shortest_prompt_tokens = 64;        // shorter ones are neither saved nor restored
  std::uint32_t worth_saving_tokens = 16;           // fewer new ones than this are not worth a file
  Scheduler::Limits queue;
  bool log_prompts = false;                         // text of prompts may stand in logs and on the status page
  std::size_t memo_bytes = 64u << 20;
  std::chrono::milliseconds write_back_delay{15};   // of idleness, at least, before a slot is written back
  std::chrono::milliseconds probe_wait{20'000};     // a request waits so long for a probe under way; for a model to load, as long as that takes
  std::chrono::milliseconds comment_after{10'000};  // of silence in an event stream
  std::chrono::milliseconds head_within{45'000};    // of pieces a stream's client gets a head
  std::string api_key;
  std::string name;                                 // of one model of several; empty where the server has one
  ModelRoute route;                                 // empty: the server has one model
};

enum class BackendPhase {
  connecting,  // nobody answers, or the model still loads
  probing,
  ready,       // states are saved and restored
  plain,       // it answers, but cannot be cached; `trouble` says why
};
std::string_view to_string(BackendPhase phase);

class CachedBackend {
 public:
  // `store` and `catalogue` may be null: then nothing is saved or restored. With `shared` it is one model of several, which is
  // looked at only when a client's request wants it.
  CachedBackend(boost::asio::any_io_executor executor, Upstream& upstream, CheckpointStore* store, Catalogue* catalogue,
                BlockingPool& pool, CacheOptions options, SharedServer* shared = nullptr);

  // Begins to look for the backend; returns when it was probed, or after `patience` when it does not answer yet.
  Task<void> start(std::chrono::milliseconds patience);
  // The store could be opened after all: the backend is probed again. Both outlive this object.
  void attach(CheckpointStore& store, Catalogue& catalogue);
  // Ends every call of Cairn's own to the backend: those that requests wait for fail.
  void cut();
  // Saves what is worth it and waits for work under way. No request may come after.
  Task<void> stop(std::chrono::milliseconds limit);

  // For a client's request: waits while the model is loaded, and (for at most probe_wait) while a probe is under way; true when
  // requests can be cached.
  Task<bool> wait_ready(CancelSource& cancel);
  bool is_waited_for() const { return wanted_ > 0; }  // in wait_ready()
  // Before a task that may take any slot: it does not come into those of a probe under way, for at most probe_wait.
  Task<void> probe_passes(CancelSource& cancel);
  // Of a server of several models; empty where it has one.
  Task<SharedServer::Turn> begin_turn(CancelSource& cancel);
  // Somebody found nobody listening, or a dead connection: look again.
  void suspect_down();
  // Before a prompt is understood: is it still the process (and the model) that was probed? True also while it does not say. False: it
  // is not, or cannot be asked; all beliefs are gone and a probe is under way. Costs a short call, and another beside it when nothing runs.
  Task<bool> still_the_same(CancelSource& cancel);
  // Its server has no other: a call that the model sleeps through, or is not there for, wakes and loads nobody else's.
  bool only_model() const { return shared_ == nullptr; }

  // What a restore of the state has to read first is read (its checksum; from the disk tier, a copy), and what is bad dropped.
  ResultTask<void> read_ahead(CheckpointId checkpoint);

  // --- slots and states; the caller holds the slot's lease.
  // Puts a saved state into the slot. On an error, and when it is cancelled, we know nothing of what the slot holds.
  ResultTask<void> restore(int slot, CheckpointId checkpoint, CancelSource& cancel);
  // Before one, within the start gate: true when the slot holds what a request has just left there that the backend placed, which no
  // task has moved into its RAM cache. It is believed now.
  Task<bool> find_placed(int slot);
  // Saves what the slot holds. A state that is not worth it, or already saved, is no error. `on_written`: called when the backend has
  // written the file, before the disk's part begins: from then on the slot may be given to others.
  ResultTask<void> save(int slot, std::function<void()> on_written = {});
  // From now on it is noted what becomes of this prompt, which is to be saved: `tokens` of the model's own.
  void watch(const std::shared_ptr<WarmedPrompt>& prompt, TokenSpan tokens);
  ToldOutcome outcome_of(const WarmedPrompt& prompt) const;
  // Computes tokens[0, end) in the slot; what it held stays where it fits.
  ResultTask<Timings> prefill(int slot, TokenSpan tokens, std::uint32_t expected_base, CancelSource& cancel);
  // The start gate where the backend needs one, else an empty one.
  ResultTask<StartGate> gate_if_needed(CancelSource& cancel);
  // Before a task starts on a backend that clears idle slots: their states are saved as far as they are worth it.
  Task<void> save_idle_slots(int except);
  // A task has started: on such a backend every other idle slot is empty now.
  void note_task_started(int slot);
  // An answer of `slot` reported that it reused `reused` of `base` tokens expected from `source`; `common` is what the
  // prompt and the state shared, `state_length` how long that state was; `alone`: no request that may use any slot was about.
  void learn_from_reuse(Source source, CheckpointId checkpoint, std::uint32_t base, std::uint32_t common,
                        std::uint32_t state_length, std::int64_t reused, bool alone);
  // Of a slot; the greatest number there is where it is not told.
  std::uint32_t context_tokens() const;
  // The best saved states for a prompt, at most `most`; without those that could not be read lately.
  std::vector<Catalogue::Candidate> candidates(TokenSpan prompt, std::size_t most) const;
  // What saved states could bring back of `tokens`.
  std::uint32_t recoverable(TokenSpan tokens) const;
  // Whatever the slot holds is gone. A prompt of the model's own must not go on from tokens that another request's adapters
  // computed: llama-server notices only where a request names its adapters (build 11669).
  // `cancel`: null where it must not end with a client.
  ResultTask<void> empty(int slot, CancelSource* cancel);
  // Beside what other slots hold (or those only in which a task runs), so many tokens would not fit in `slot` if all share one room, as
  // they do on default flags (a unified KV cache) and with --kv-unified.
  bool lacks_room(int slot, std::uint32_t tokens, bool beside_running_only) const;
  bool can_empty() const;  // at once, and without anything that survives it
  // Grows with each request that may use any slot.
  std::uint64_t foreign_epoch() const { return foreign_epoch_; }
  // There are more tasks about than slots: one that is put off gets whichever slot comes free, be it for a moment between two pieces.
  bool foreign_may_wait() const { return unleased_ > 0 && scheduler_.leased() + unleased_ > slots_.slots().size(); }
  // As many wait as may, those included that the backend lets wait: one more is refused.
  bool crowded() const;
  // A prompt was computed in pieces. `lost`: what they had left was not there for the next one.
  void note_pieces(bool lost);
  bool pieces_hold() const { return std::chrono::steady_clock::now() >= pieces_from_; }
  // The backend has emptied a slot whose state would have served more than `beyond` tokens of the prompt.
  bool was_cleared(TokenSpan prompt, std::uint32_t beyond) const { return cleared_.would_have_served(probe_.name_space, prompt, beyond); }
  // A request with adapters of its own runs in the slot.
  void note_other_weights(int slot);
  // A request of the model's own reused `reused` tokens of `prompt` in the slot, before the belief about it is renewed: more than was
  // there came from the backend's own cache, where the states of other adapters are told apart by nothing.
  void check_weights(int slot, TokenSpan prompt, std::int64_t reused);
  // Where states of requests with these adapters belong: in slots only, they are not saved. Below 0.
  std::int64_t name_space_of(const std::string& lora) { return adapter_spaces_.of(lora); }
  // Marks a slot's new content as worth saving, or not.
  void note_slot_content(int slot);

  // While one lives a request runs that may use any slot (it was passed on unpinned).
  class Foreign {
   public:
    enum class Holds { no_slot, a_slot };  // a lease: one is kept free for it, be it another than the backend takes
    explicit Foreign(CachedBackend& backend, Holds holds = Holds::no_slot);
    Foreign(const Foreign&) = delete;
    Foreign& operator=(const Foreign&) = delete;
    ~Foreign();

   private:
    CachedBackend* backend_;
    bool unleased_;
  };
  Task<void> save_before_foreign(CancelSource& cancel);
  // A request whose slot the backend chooses has been sent: finds out which, so that nobody is sent there to wait.
  // Not `soon`: after a while, if nobody is looking already.
  void find_taken(bool soon = true);
  // Until the backend ends a task whose client has left: it notices after a second of silence, and then ends its batch.
  double seconds_until_noticed() const;
  // Before its process may be stopped for another model: the same, and a save under way is waited for.
  Task<void> save_before_stop(CancelSource& cancel);
  void note_foreign_started(bool other_weights);

  // Of one model of several; empty where there is one.
  const std::string& name() const { return options_.name; }
  BackendPhase phase() const { return phase_; }
  bool looked_at() const { return generation_ > 0; }  // it answered a probe once
  const std::string& trouble() const { return trouble_; }
  // Of the latest probe: what began under an earlier one may have been computed by another process, or with other adapters.
  std::uint64_t generation() const { return generation_; }
  const ProbeResult& probe() const { return probe_; }
  MemoryKind kind() const { return kind_; }
  bool can_save() const { return keeps_states() && !store_->saving_waits(); }
  // Now, or once the disk allows it again.
  bool keeps_states() const {
    return store_ != nullptr && phase_ == BackendPhase::ready && probe_.can_save && !saving_off_ && restores_work();
  }
  // False: state after state was restored and none was reused.
  bool restores_work() const { return restores_in_vain_ < most_restores_in_vain; }
  NamespaceId name_space() const { return probe_.name_space; }
  std::uint64_t foreign() const { return foreign_; }

  // Chance that a prompt of this namespace is gone on from later: that a slot's content is asked for again.
  double return_chance();
  // What the backend's own RAM cache should bring back of `prompt` if it chooses the slot itself: it puts there what it clears from
  // idle slots.
  BackendRamCache::Offer in_ram_cache(TokenSpan prompt) const;
  void note_ram_cache(Tokens cleared, std::vector<std::uint32_t> resume_points);
  // A request that was left to the backend, for `promised` tokens in its RAM cache, reused so many tokens of its prompt. Returns the
  // resume points that came with them.
  std::vector<std::uint32_t> learn_from_ram_cache(TokenSpan prompt, std::uint32_t promised, std::int64_t reused);
  // Where idle slots are not cleared the backend's RAM cache has what other prompts took the slots of, and where nothing can be saved
  // nobody else has. It gives a state back to the whole prompt, and not to a small piece of it.
  bool may_bring_back() const { return !probe_.clears_idle && !can_save(); }
  // How long a request has a slot, on the average.
  double lease_seconds() const { return lease_s_; }
  void note_lease_ended(double seconds);
  // A prompt was computed: `gap` tokens of it at most lie without a state to go on from, and `seconds_a_token` of it went into
  // other things than computing.
  void note_prompt(std::uint32_t gap, double seconds_a_token);
  // Tokens: what an edit in the middle of `tokens` new ones makes us compute again at worst, by present costs and by what the
  // latest prompts were left with.
  std::uint32_t checkpoint_interval(std::uint32_t tokens) const;
  // What earlier prompts have left of their share of time for stops; `seconds` more, or less.
  double stop_credit_s() const { return stop_credit_s_; }
  void add_stop_credit(double seconds);
  // Cached requests between their first byte and their last.
  class Presence {
   public:
    explicit Presence(CachedBackend& backend);
    Presence(const Presence&) = delete;
    Presence& operator=(const Presence&) = delete;
    ~Presence();

   private:
    CachedBackend* backend_;
  };
  int present() const { return present_; }

  LlamaApi& api() { return api_; }
  Upstream& upstream() { return upstream_; }
  SlotTable& slots() { return slots_; }
  Scheduler& scheduler() { return scheduler_; }
  BlockingPool& pool() { return pool_; }
  CostModel& costs() { return costs_; }
  const CostModel& costs() const { return costs_; }
  double bytes_of(const SlotState& state) const;  // in a file
  // Counts on no state any more that has been removed.
  void believe_removals();
  // Saving it while somebody waits costs less than losing it would.
  bool worth_a_stall(const SlotState& state, double chance_lost = 1.0) const;
  Catalogue* catalogue() { return catalogue_; }
  CheckpointStore* store() { return store_; }
  TokenMemo& memo() { return memo_; }
  GenerationSuffixes& suffixes() { return suffixes_; }
  Derivations& derivations() { return derivations_; }
  OptionTrials& option_trials() { return option_trials_; }
  // nullopt: not asked yet; an error: it cannot be told.
  const std::optional<Result<InfillLayout>>& infill_layout() const { return infill_layout_; }
  void set_infill_layout(Result<InfillLayout> layout) { infill_layout_ = std::move(layout); }
  const CacheOptions& options() const { return options_; }
  boost::asio::any_io_executor executor() const { return executor_; }

 private:
  static constexpr int most_restores_in_vain = 3;
  // While one lives a look at the slots is under way; whoever waits for it is told at its end.
  class Checking {
   public:
    explicit Checking(CachedBackend& backend) : backend_(&backend) { backend.checking_ = true; }
    Checking(const Checking&) = delete;
    Checking& operator=(const Checking&) = delete;
    ~Checking();

   private:
    CachedBackend* backend_;
  };
  Task<void> save_idle(int surely, double chance, CancelSource& cancel);
  ResultTask<void> save_state(int slot, std::function<void()> on_written);
  bool pays_to_keep(const SlotState& state) const;
  bool is_saved(const WarmedPrompt& prompt) const;
  std::vector<std::shared_ptr<WarmedPrompt>> watched();
  void note_saved();  // a state
  void note_not_saved(TokenSpan held, const std::string& why);
  std::string rates_key() const;
  CheckpointKind kind_of_states() const;
  // To the disk tier, where there is one, until then; nullopt: while nobody is served.
  Task<void> copy_down(std::optional<std::chrono::steady_clock::time_point> until);
  void copy_late();
  Task<void> copy_overdue();
  double save_seconds(const SlotState& state) const;
  bool trusts_ram_cache() const;
  enum class Process { same, other, not_said };  // yet: it answers too late
  Task<Process> which_process(CancelSource& cancel);  // by the random marker in /props, where there is one
  ResultTask<bool> same_adapters(CancelSource& cancel);  // they can be switched at run time
  // Before a state is saved or put in. Errors: closed, when it is another process or has other adapters; timeout, when it does not say.
  ResultTask<void> still_ours();
  // By a request that the backend placed. `left`: whom it is asked for.
  Task<bool> taken(int slot, const CancelSource* left = nullptr);
  Task<void> look_for_taken(bool at_first_soon);
  Task<void> look_who_runs();
  bool ends_by_itself(const SlotState& state) const;
  ResultTask<void> wash(int slot);
  Task<void> drop(CheckpointId checkpoint);
  void believe(const std::vector<SlotInfo>& infos);
  void learn_clearing(const std::vector<SlotInfo>& infos);
  void see_slots(const std::vector<SlotInfo>& infos);
  void recall_clearing(ProbeResult& probed) const;
  void set_clears_idle(bool clears, std::string_view because);
  void clear_idle(int started);
  void note_cleared(const SlotState& state);  // for the one whose prompt it served
  static bool puts_off(const Error& error);   // a save that is worth another try later
  Task<bool> believe_all(const Result<std::vector<SlotInfo>>& infos, CancelSource& cancel);
  Task<void> find_chosen();
  Task<void> look_at_slots();
  Task<void> watch();
  Task<bool> look();  // one probe; true when it answered
  ResultTask<void> wake();  // before it: whether it may be probed at all
  Task<bool> worth_another_probe();
  std::string label() const;
  Task<bool> may_touch();   // with a call that no client waits for
  Task<bool> phase_change(std::chrono::milliseconds limit, CancelSource& cancel);  // false: there was none
  void became(BackendPhase phase, std::string trouble);
  void schedule_write_back(bool again = false);  // `again`: something is in the way, and may be for a while
  bool nobody_is_about() const { return present_ == 0 && foreign_ == 0 && scheduler_.leased() == 0 && scheduler_.waiting() == 0; }
  void note_begun();  // a request, before it is counted
  bool breaks_off() const;
  Task<void> rest(std::chrono::milliseconds limit);  // less when we stop
  void sweep_strays();
  Task<void> sweep();
  std::chrono::milliseconds quiet_before_write_back() const;
  Task<void> write_back(bool again);
  void set_kind(MemoryKind kind, std::string_view because);
  void keep_facts();
  void spawn(Task<void> task);

  boost::asio::any_io_executor executor_;
  Upstream& upstream_;
  CheckpointStore* store_;
  Catalogue* catalogue_;
  BlockingPool& pool_;
  CacheOptions options_;
  SharedServer* shared_;
  LlamaApi api_;
  TokenMemo memo_;
  GenerationSuffixes suffixes_;
  Derivations derivations_;
  OptionTrials option_trials_;
  std::optional<Result<InfillLayout>> infill_layout_;
  CostModel costs_;

  std::shared_ptr<Wakeup> look_soon_;  // null: nobody looks for what the backend has placed
  bool sweeping_ = false;
  bool copying_late_ = false;
  BackendPhase phase_ = BackendPhase::connecting;
  std::string trouble_;
  ProbeResult probe_;
  MemoryKind kind_ = MemoryKind::unknown;
  bool saving_off_ = false;
  int broken_promises_ = 0;
  std::uint64_t generation_ = 0;     // of probes: what began before the latest must not act on its slots
  std::uint64_t foreign_epoch_ = 0;  // grows with each request that may use any slot
  std::int64_t last_task_ = -1;      // the backend's latest task number when last asked
  std::map<CheckpointId, int> strikes_;
  std::map<CheckpointId, std::chrono::steady_clock::time_point> unreadable_;  // until then not tried again
  SlotTable slots_;  // outlives the backend's restarts: leases may be out when it goes
  Scheduler scheduler_;

  std::vector<std::shared_ptr<Wakeup>> phase_waiters_;
  std::shared_ptr<Wakeup> look_now_;
  int wanted_ = 0;        // requests in wait_ready()
  bool loading_ = false;  // the model, or those in its way are waited for
  std::chrono::steady_clock::time_point plain_since_{};
  ProbeSchedule probes_;
  bool suspected_ = false;  // since the last probe, of being another process or gone
  CancelSource stopping_;  // ends upkeep
  // For calls that must not end with a client.
  std::unique_ptr<CancelSource> background_ = std::make_unique<CancelSource>();
  bool write_back_scheduled_ = false;
  std::chrono::steady_clock::time_point late_until_;  // the backend did not answer when a slot was to be saved, or others had the room: not before
  std::vector<std::weak_ptr<WarmedPrompt>> watched_;
  EvictedStates cleared_;     // by the backend, out of slots
  bool last_chance_ = false;  // to save: at shutdown
  int tasks_ = 0;  // upkeep coroutines alive
  std::uint64_t foreign_ = 0;
  std::uint64_t unleased_ = 0;  // of them
  BackendRamCache ram_cache_;
  bool other_weights_seen_ = false;    // its own cache may hold states of requests with adapters of their own, by tokens alone
  AdapterSpaces adapter_spaces_;
  // Idle slots that held something at the latest look. That one is empty which nobody has touched since tells that other tasks clear
  // them; that it is not, although such a task has ended, that they do not.
  struct Seen {
    std::int64_t tokens = 0;
    std::uint64_t content = 0;
    std::uint64_t foreign_epoch = 0;
    int started = -1;        // the slot of a task of ours that was started since
    bool ended = false;      // it has ended
    SlotTable::Placed held;  // what was believed until then
  };
  std::map<int, Seen> seen_;
  std::deque<std::uint32_t> latest_gaps_;  // tokens, newest first
  double overhead_s_a_token_ = 0;
  double lease_s_ = 0;
  double stop_credit_s_ = 0;
  int present_ = 0;
  Pauses pauses_;
  std::chrono::steady_clock::time_point idle_since_ = std::chrono::steady_clock::now();  // no request since
  std::uint64_t removals_seen_ = 0;
  bool checking_ = false;
  Condition checked_{executor_};   // a look at the slots has ended
  Condition released_{executor_};  // a slot's lease has
  std::optional<NamespaceId> costs_of_;  // whose costs were learned
  int restores_in_vain_ = 0;             // one after the other
  int rewinds_in_vain_ = 0;              // of a memory that is believed to be truncatable
  int cut_back_ = 0;                     // states of a memory that is believed not to be, further than checkpoints of ours reach
  int pieces_in_vain_ = 0;               // prompts whose pieces were lost, one after the other
  std::chrono::steady_clock::time_point pieces_from_{};  // no pieces before
};

}  // namespace cairn

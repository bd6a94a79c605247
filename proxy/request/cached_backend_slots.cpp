// What CachedBackend does with slots and states (but for restores), and what it learns from how they were reused.
#include <spdlog/spdlog.h>

#include <algorithm>
#include <chrono>
#include <limits>
#include <utility>

#include "base/counted.hpp"
#include "base/unix_time.hpp"
#include "request/cached_backend.hpp"

namespace cairn {

namespace {
constexpr int strikes_to_drop = 2;
constexpr int broken_promises_to_change_kind = 2;
}  // namespace

void CachedBackend::note_other_weights(int slot) {
  slots_.at(slot).other_weights = true;
  other_weights_seen_ = true;
}

void CachedBackend::check_weights(int slot, TokenSpan prompt, std::int64_t reused) {
  const SlotState& state = slots_.at(slot);
  const auto common = static_cast<std::int64_t>(common_prefix(state.known, prompt));
  const bool whole = common == static_cast<std::int64_t>(state.known.size());
  if (other_weights_seen_ && reused > common + (whole ? state.unknown_tail : 0)) note_other_weights(slot);
}

Task<void> CachedBackend::copy_down(std::optional<std::chrono::steady_clock::time_point> until) {
  if (store_ == nullptr) co_return;
  std::function<bool()> enough = [this, until] {
    if (until) return std::chrono::steady_clock::now() >= *until;
    return scheduler_.leased() > 0 || scheduler_.waiting() > 0 || foreign_ > 0 || stopping_.cancelled();
  };
  (void)co_await store_->copy_down(std::move(enough));  // trouble is said by the store
}

void CachedBackend::copy_late() {
  if (store_ != nullptr && store_->copies_wait() && !std::exchange(copying_late_, true)) spawn(copy_overdue());
}

// Where requests leave no quiet moment a power cut would cost all since the last one.
Task<void> CachedBackend::copy_overdue() {
  constexpr std::chrono::milliseconds between{10'000};
  while (store_->copies_wait() && !stopping_.cancelled()) {
    co_await rest(between);
    std::function<bool()> enough = [this] { return stopping_.cancelled(); };
    (void)co_await store_->copy_overdue(std::move(enough));
  }
  copying_late_ = false;
}

// Of what is saved now; where a checkpointed state can be resumed, the file itself says.
CheckpointKind CachedBackend::kind_of_states() const {
  return kind_ == MemoryKind::truncatable || kind_ == MemoryKind::exact ? kind_ : CheckpointKind::checkpointed;
}

ResultTask<void> CachedBackend::save_state(int slot, std::function<void()> on_written) {
  SlotState& state = slots_.at(slot);
  const Counted saving(state.saves);
  const std::uint64_t generation = generation_;
  const std::uint64_t content = state.content;
  const auto asked = std::chrono::steady_clock::now();
  if (keeps_states() && store_->saving_waits() && !last_chance_) co_return Result<void>{};  // later
  state.unsaved = false;  // whatever comes of it: not tried again until the content changes, or the disk allows it
  if (!keeps_states() || state.known.empty() || state.other_weights) co_return Result<void>{};
  const auto if_the_disk_refused = [&](Error error, bool later = false) {
    const bool holds_it = generation == generation_ && content == state.content && !state.known.empty();
    if (holds_it) state.unsaved = keeps_states() && (later || store_->saving_waits());
    return error;
  };
  // Another model's state under this namespace would be a wrong answer one day.
  if (const Result<void> ours = co_await still_ours(); !ours) {
    state.unsaved = ours.error().code == ErrorCode::timeout && !state.known.empty();
    co_return ours.error();
  }
  if (co_await taken(slot)) co_return upstream_error(ErrorCode::unsupported, "a request that the backend placed runs in the slot");
  if (phase_ != BackendPhase::ready || state.name_space != static_cast<std::int64_t>(probe_.name_space)) co_return Result<void>{};
  const auto bytes = static_cast<std::uint64_t>(bytes_of(state) * 1.1) + 4096;
  CheckpointRecord coming;
  coming.namespace_id = probe_.name_space;
  coming.kind = kind_of_states();
  coming.bytes = bytes;
  coming.cost_to_recompute_s = costs_.prefill_seconds(0, static_cast<double>(state.known.size()));
  if (coming.kind == CheckpointKind::checkpointed) coming.resume_positions = state.resume_points;
  std::optional<Catalogue::Incoming> incoming;
  incoming.emplace(*catalogue_, std::move(coming), state.known, unix_now_ms());
  if (!co_await incoming->worth_its_room()) {
    spdlog::debug("slot {} is not saved: what would have to go for it is worth more", slot);
    note_not_saved(state.known, "what would have to go for it is worth more");
    co_return Result<void>{};
  }
  Result<CheckpointStore::Reservation> reservation = co_await store_->reserve(bytes);
  incoming.reset();
  if (!reservation) co_return if_the_disk_refused(reservation.error(), reservation.error().may_retry);
  const std::string name = reservation->temporary_name();
  const auto began = std::chrono::steady_clock::now();
  Result<SlotAction> saved = co_await api_.save(slot, name, *background_);
  if (!saved) {
    (void)co_await store_->discard(std::move(*reservation), may_write_yet(saved.error()));
    sweep_strays();
    if (saved.error().code == ErrorCode::unsupported) saving_off_ = true;
    // 500 "Unable to save slot": its disk is full, read-only or not there.
    if (saved.error().code == ErrorCode::rejected && saved.error().status >= 500) store_->note_save_refused(saved.error());
    co_return if_the_disk_refused(saved.error());
  }
  if (generation != generation_) {
    (void)co_await store_->discard(std::move(*reservation));
    co_return upstream_error(ErrorCode::closed, "the backend was restarted");
  }
  // A request that the backend places may have taken the slot since we asked, with adapters of its own.
  const auto was_taken = [&state] { return state.known.empty() || state.other_weights; };
  if (was_taken()) {
    (void)co_await store_->discard(std::move(*reservation));
    co_return Result<void>{};
  }
  const double wall_s = std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
  costs_.observe_save(static_cast<double>(saved->bytes), saved->seconds > 0 ? saved->seconds : wall_s);
  if (saved->n_tokens < static_cast<std::int64_t>(state.known.size())) {
    // The backend had emptied or replaced it.
    if (saved->n_tokens == 0 && !state.by_length && !state.unresolved) set_clears_idle(true, "one was empty when it was to be saved");
    note_cleared(state);
    if (probe_.clears_idle) note_ram_cache(state.known, state.resume_points);
    slots_.forget(slot);
    (void)co_await store_->discard(std::move(*reservation));
    co_return Result<void>{};
  }
  NewCheckpoint checkpoint;
  checkpoint.namespace_id = probe_.name_space;
  checkpoint.expected_prefix = state.known;
  checkpoint.saved_tokens = static_cast<std::uint64_t>(saved->n_tokens);
  checkpoint.saved_bytes = static_cast<std::uint64_t>(saved->bytes);
  checkpoint.cost_to_recompute_s = costs_.prefill_seconds(0, static_cast<double>(saved->n_tokens));
  checkpoint.kind = kind_of_states();
  state.attempted.reset();
  if (on_written) on_written();
  Result<CommittedCheckpoint> committed = co_await store_->commit(std::move(*reservation), std::move(checkpoint));
  if (!committed) {
    if (committed.error().code == ErrorCode::corrupt && content == state.content) slots_.forget(slot);  // it held something else
    co_return if_the_disk_refused(committed.error());
  }
  const auto number = [](CheckpointId id) { return static_cast<std::int64_t>(id); };
  spdlog::debug("slot {} is saved: checkpoint {}, {} tokens, {} bytes", slot, number(committed->id), committed->tokens.size(), committed->bytes);
  const std::vector<CheckpointId> useless = catalogue_->add(committed->id, committed->tokens, unix_now_ms());
  note_saved();
  for (const CheckpointId old : useless) {
    spdlog::debug("checkpoint {} takes the place of checkpoint {}", number(committed->id), number(old));
    (void)co_await store_->supersede(old, committed->id);
  }
  copy_late();
  if (generation != generation_) co_return upstream_error(ErrorCode::closed, "the backend was restarted");
  const double in_all_s = std::chrono::duration<double>(std::chrono::steady_clock::now() - asked).count();
  costs_.observe_commit(static_cast<double>(committed->bytes), std::max(0.0, in_all_s - wall_s));
  ContextCheckpoints& inside = committed->context_checkpoints;
  costs_.observe_state(static_cast<double>(committed->tokens.size()), inside.count, static_cast<double>(inside.bytes),
                       static_cast<double>(committed->bytes));
  if (kind_ == MemoryKind::exact && inside.count > 0) {
    set_kind(MemoryKind::checkpointed, "its saved files carry context checkpoints");
  }
  if (was_taken()) co_return Result<void>{};
  if (content != state.content) {
    // Its next turn began, or has even ended, meanwhile.
    state.recoverable = recoverable(state.known);
    if (state.unsaved && !state.leased) note_slot_content(slot);
  } else {
    state.doubtful = state.by_length = state.unresolved = false;
    state.known = std::move(committed->tokens);
    state.unknown_tail = 0;
    state.tail_counted = true;
    state.unsaved = false;
    state.pieces_since_save = 0;
    state.recoverable = static_cast<std::uint32_t>(state.known.size());
    if (kind_ == MemoryKind::checkpointed) state.resume_points = std::move(inside.positions);
  }
  co_return Result<void>{};
}

ResultTask<Timings> CachedBackend::prefill(int slot, TokenSpan tokens, std::uint32_t expected_base, CancelSource& cancel) {
  SlotState& state = slots_.at(slot);
  note_task_started(slot);
  const std::uint64_t generation = generation_;
  state.piece_end = static_cast<std::uint32_t>(tokens.size());
  const std::uint32_t held_before = state.held();
  const auto began = std::chrono::steady_clock::now();
  Result<Timings> timings = co_await api_.prefill(slot, tokens, cancel);
  state.running = false;
  if (generation != generation_) co_return upstream_error(ErrorCode::closed, "the backend was restarted");
  // Refused, it has touched nothing.
  if (!timings && timings.error().code == ErrorCode::rejected && timings.error().status / 100 == 4) co_return timings.error();
  if (!timings) {
    // How far it came we do not know; what was there before may be overwritten beyond the common part.
    const std::size_t common = common_prefix(state.known, tokens);
    state.known.resize(std::min<std::size_t>(common, expected_base));
    cut_resume_points(state.resume_points, static_cast<std::uint32_t>(state.known.size()));
    state.unknown_tail = 1;
    state.tail_counted = false;
    state.unsaved = false;
    if (timings.error().code != ErrorCode::rejected) slots_.note_attempt(slot, tokens, held_before);
    state.name_space = static_cast<std::int64_t>(probe_.name_space);
    co_return timings.error();
  }
  check_weights(slot, tokens, timings->cache_n);
  const auto from = static_cast<std::uint32_t>(timings->cache_n);
  const auto to = static_cast<std::uint32_t>(tokens.size());
  const auto common = static_cast<std::uint32_t>(common_prefix(state.known, tokens));
  state.doubtful = state.by_length = state.unresolved = false;
  costs_.observe_prefill(from, static_cast<double>(timings->prompt_n), timings->prompt_ms / 1000.0);
  costs_.observe_piece_overhead(std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count() - timings->prompt_ms / 1000.0);
  cut_resume_points(state.resume_points, std::min(from, common));  // more came out of the backend's RAM cache
  if (kind_ != MemoryKind::truncatable) add_piece_resume_points(state.resume_points, from, to, options_.ubatch_tokens);
  thin_resume_points(state.resume_points);
  state.pieces_since_save = from > 0 ? state.pieces_since_save + 1 : 1;
  state.known.assign(tokens.begin(), tokens.end());
  state.unknown_tail = 0;
  state.tail_counted = true;
  state.name_space = static_cast<std::int64_t>(probe_.name_space);
  slots_.touch(slot);
  co_return timings;
}

ResultTask<StartGate> CachedBackend::gate_if_needed(CancelSource& cancel) {
  if (!probe_.clears_idle) co_return StartGate{};
  co_return co_await scheduler_.enter_gate(cancel);
}

void CachedBackend::note_lease_ended(double seconds) {
  constexpr double newest = 0.2;
  lease_s_ += (lease_s_ > 0 ? newest : 1.0) * (seconds - lease_s_);
}

double CachedBackend::bytes_of(const SlotState& state) const {
  return costs_.state_bytes(state.held(), static_cast<double>(state.resume_points.size()));
}

double CachedBackend::save_seconds(const SlotState& state) const { return costs_.save_seconds(bytes_of(state)); }

bool CachedBackend::worth_a_stall(const SlotState& state, double chance_lost) const {
  // What the backend clears goes to its own RAM cache: gone only when it is restarted, or has to make room.
  constexpr double chance_gone_from_cache = 0.3;
  const double chance_gone = trusts_ram_cache() ? chance_gone_from_cache : 1.0;
  const auto all = std::as_const(slots_).slots();
  const auto stalled = 1 + std::ranges::count_if(all, &SlotState::running) + static_cast<std::ptrdiff_t>(scheduler_.waiting());
  const double loss_s = costs_.prefill_seconds(state.recoverable, state.held()) * state.return_chance * chance_gone * chance_lost;
  return save_seconds(state) * static_cast<double>(stalled) + costs_.commit_seconds(bytes_of(state)) < loss_s;
}

// What was late is so for a while; so is what others use of the room.
bool CachedBackend::puts_off(const Error& error) {
  return error.code == ErrorCode::timeout || (error.source == ErrorSource::disk && error.may_retry);
}

Task<void> CachedBackend::save_idle_slots(int except) {
  if (!probe_.clears_idle) co_return;
  // Those that are leased and wait at the gate are idle to the backend as well, and while one is saved another may end.
  for (std::size_t i = 0; i < slots_.slots().size();) {
    const SlotState& state = slots_.slots()[i];
    if (state.id == except || state.running || state.upkeep || !state.unsaved || !can_save() || !worth_a_stall(state)) {
      ++i;
      continue;
    }
    // Not through the queue: whoever waits there cannot start before the gate is free, and we hold it.
    Result<void> saved = co_await save(state.id);
    if (!saved) spdlog::debug("slot {} was not saved before it is cleared: {}", state.id, to_string(saved.error()));
    if (!saved && puts_off(saved.error())) co_return;  // it would be asked for ever
    i = 0;
  }
}

void CachedBackend::note_task_started(int slot) {
  SlotState& started = slots_.at(slot);
  started.running = started.leased;
  started.taken = false;
  // Where nobody has seen the end of a task that was broken off, what is counted later may be its doing.
  started.unresolved = started.unresolved || started.attempted != nullptr;
  started.attempted.reset();
  ++started.content;
  for (auto& [id, seen] : seen_) {
    if (id != slot && seen.started < 0) seen.started = slot;
  }
  if (probe_.clears_idle) clear_idle(slot);
}

void CachedBackend::note_cleared(const SlotState& state) {
  const bool ours = state.name_space == static_cast<std::int64_t>(probe_.name_space) && !state.other_weights;
  if (ours && state.known.size() >= options_.shortest_prompt_tokens) cleared_.add(probe_.name_space, state.known, state.resume_points);
}

void CachedBackend::note_ram_cache(Tokens cleared, std::vector<std::uint32_t> resume_points) {
  if (cleared.size() >= options_.shortest_prompt_tokens) ram_cache_.note(std::move(cleared), std::move(resume_points));
}

bool CachedBackend::trusts_ram_cache() const {
  return probe_.clears_idle && !other_weights_seen_ && ram_cache_.trusted(std::chrono::steady_clock::now());
}

BackendRamCache::Offer CachedBackend::in_ram_cache(TokenSpan prompt) const {
  return trusts_ram_cache() ? ram_cache_.offer(prompt, kind_) : BackendRamCache::Offer{};
}

std::vector<std::uint32_t> CachedBackend::learn_from_ram_cache(TokenSpan prompt, std::uint32_t promised, std::int64_t reused) {
  BackendRamCache::Learnt learnt = ram_cache_.learn(prompt, promised, reused, std::chrono::steady_clock::now());
  if (learnt.distrusted) {
    spdlog::info("the backend's own RAM cache did not bring back what it was believed to hold, twice: it is not counted on for some "
                 "minutes (--cache-ram)");
  }
  return std::move(learnt.resume_points);
}

void CachedBackend::believe_removals() {
  if (catalogue_ == nullptr || std::exchange(removals_seen_, catalogue_->removals()) == catalogue_->removals()) return;
  for (const SlotState& state : std::as_const(slots_).slots()) {
    if (!state.leased && state.saves == 0 && state.recoverable > 0 && recoverable(state.known) < state.recoverable) note_slot_content(state.id);
  }
}

void CachedBackend::note_pieces(bool lost) {
  constexpr int enough = 2;
  constexpr std::chrono::minutes without{10};
  pieces_in_vain_ = lost ? pieces_in_vain_ + 1 : 0;
  if (pieces_in_vain_ < enough) return;
  pieces_in_vain_ = 0;
  pieces_from_ = std::chrono::steady_clock::now() + without;
  spdlog::warn("what pieces of a prompt had left was not there for the next piece, twice: for {} minutes prompts are computed whole. "
               "Does somebody use the backend directly? -np N keeps what idle slots hold", without.count());
}

// What is cheaper to compute than to bring back is not kept.
bool CachedBackend::pays_to_keep(const SlotState& state) const {
  return costs_.restore_seconds(bytes_of(state)) < costs_.prefill_seconds(0, state.held());
}

void CachedBackend::note_slot_content(int slot) {
  SlotState& state = slots_.at(slot);
  const bool ran = state.attempted == nullptr && !state.by_length;
  for (auto& [id, seen] : seen_) seen.ended = seen.ended || (ran && seen.started == slot);
  state.recoverable = recoverable(state.known);
  const std::uint32_t held = state.held();
  // Of an exact state only what extends it goes on: an answer that the next turn writes otherwise is not worth a file.
  const std::uint32_t counted = kind_ == MemoryKind::exact ? static_cast<std::uint32_t>(state.known.size()) : held;
  const std::uint32_t gain = counted > state.recoverable ? counted - state.recoverable : 0;
  // A task that was sent before this one ended, and begins after it, clears the slot; its state goes to the backend's cache.
  const auto all = std::as_const(slots_).slots();
  state.doubtful = probe_.clears_idle && std::any_of(all.begin(), all.end(), [&](const SlotState& other) { return other.id != slot && other.running; });
  if (state.doubtful) note_ram_cache(state.known, state.resume_points);
  state.unsaved = keeps_states() && !state.other_weights && pays_to_keep(state) && held >= options_.shortest_prompt_tokens && gain >= options_.worth_saving_tokens;
}

std::uint32_t CachedBackend::context_tokens() const {
  const std::int64_t context = probe_.meta.n_ctx;
  return context > 0 ? static_cast<std::uint32_t>(context) : std::numeric_limits<std::uint32_t>::max();
}

std::vector<Catalogue::Candidate> CachedBackend::candidates(TokenSpan prompt, std::size_t most) const {
  const auto now = std::chrono::steady_clock::now();
  const auto unreadable = static_cast<std::size_t>(std::ranges::count_if(unreadable_, [&](const auto& one) { return one.second > now; }));
  std::vector<Catalogue::Candidate> best = catalogue_->candidates(probe_.name_space, prompt, kind_, most + unreadable, context_tokens());
  std::erase_if(best, [&](const Catalogue::Candidate& candidate) {
    const auto found = unreadable_.find(candidate.checkpoint);
    return found != unreadable_.end() && found->second > now;
  });
  if (best.size() > most) best.resize(most);
  return best;
}

std::uint32_t CachedBackend::recoverable(TokenSpan tokens) const {
  if (catalogue_ == nullptr || tokens.empty()) return 0;
  // As a prompt that goes on after them would find it.
  Tokens longer(tokens.begin(), tokens.end());
  longer.push_back(-1);
  const std::vector<Catalogue::Candidate> best = candidates(longer, 1);
  return best.empty() ? 0 : best.front().usable_tokens;
}

void CachedBackend::learn_from_reuse(Source source, CheckpointId checkpoint, std::uint32_t base, std::uint32_t common,
                                     std::uint32_t state_length, std::int64_t reused, bool alone) {
  if ((source != Source::live && source != Source::restore) || reused < 0) return;
  constexpr std::int64_t tolerance = 8;
  const bool rewound = common < state_length;
  if (reused + tolerance >= static_cast<std::int64_t>(base)) {
    broken_promises_ = 0;
    if (rewound) rewinds_in_vain_ = 0;
    if (source == Source::restore) {
      strikes_.erase(checkpoint);
      restores_in_vain_ = 0;
    }
    // It went back much further than any context checkpoint of ours: nothing needs them here. Unless the backend had another state in
    // its RAM cache, which may give more than what was in the slot.
    constexpr std::uint32_t deep = 8192;
    constexpr int enough_of_them = 2;
    const bool cut_back = state_length > common + deep && reused + tolerance >= common && reused <= common + tolerance;
    if (alone && kind_ != MemoryKind::truncatable && cut_back && base + options_.ubatch_tokens < common && ++cut_back_ == enough_of_them) {
      set_kind(MemoryKind::truncatable, "states were cut back further than a sliding window reaches");
    }
    return;
  }
  // Beside requests that may use any slot nothing is proved, nor by a slot that is empty: others may have cleared it.
  const bool may_be_cleared = probe_.clears_idle || kind_ != MemoryKind::truncatable;
  if (!alone || (reused == 0 && source == Source::live && may_be_cleared)) return;
  if (source == Source::restore && reused == 0 && common >= state_length && ++restores_in_vain_ == most_restores_in_vain) {
    spdlog::warn("restored states are not reused by this backend at all: nothing is saved or restored until it is started anew; "
                 "a newer llama-server (b11669 is known to work) would mend it");
  }
  if (source == Source::restore && ++strikes_[checkpoint] >= strikes_to_drop) {
    spdlog::warn("checkpoint {} did not give what it promised twice ({} of {} tokens) and is dropped",
                 static_cast<std::int64_t>(checkpoint), reused, base);
    strikes_.erase(checkpoint);
    if (store_->find(checkpoint) != nullptr) spawn(drop(checkpoint));
  }
  if (!rewound) return;
  if (kind_ == MemoryKind::truncatable) {
    // Somebody who speaks to the backend directly may have been in the slot. What the model's file says is beyond doubt.
    constexpr int enough = 2;
    if (!probe_.kind_certain && ++rewinds_in_vain_ == enough) set_kind(MemoryKind::checkpointed, "states could not be cut back");
  } else if (kind_ == MemoryKind::checkpointed && reused == 0 && ++broken_promises_ >= broken_promises_to_change_kind) {
    set_kind(MemoryKind::exact, "context checkpoints did not come back; --ctx-checkpoints 32 or a newer llama-server would mend it");
  }
}

Task<void> CachedBackend::drop(CheckpointId checkpoint) {
  (void)co_await store_->erase(checkpoint, RemovalReason::bad_file);
}

void CachedBackend::set_kind(MemoryKind kind, std::string_view because) {
  if (kind == kind_) return;
  spdlog::warn("the backend's memory is {}, not {}: {}", to_string(kind), to_string(kind_), because);
  kind_ = kind;
  broken_promises_ = rewinds_in_vain_ = cut_back_ = 0;
  keep_facts();
}

void CachedBackend::keep_facts() {
  if (store_ == nullptr || probe_.identity.empty()) return;
  const auto& known = store_->namespaces();
  const auto at = known.find(probe_.name_space);
  if (at == known.end()) return;
  probe_.facts = make_facts(probe_, kind_);
  const auto write = [](CachedBackend* self, std::string packed) -> Task<void> {
    (void)co_await self->store_->update_namespace(self->probe_.name_space, self->probe_.identity, std::move(packed),
                                                  self->probe_.facts);
  };
  spawn(write(this, at->second.probe));
}

Task<void> CachedBackend::probe_passes(CancelSource& cancel) {
  const auto deadline = std::chrono::steady_clock::now() + options_.probe_wait;
  while (phase_ == BackendPhase::probing && !cancel.cancelled()) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now());
    if (left.count() <= 0) co_return;
    (void)co_await phase_change(left, cancel);
  }
}

}  // namespace cairn

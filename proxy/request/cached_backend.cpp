#include "request/cached_backend.hpp"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>

#include <algorithm>
#include <exception>
#include <utility>

namespace cairn {

namespace {
using std::chrono::milliseconds;
constexpr milliseconds first_retry{100};
constexpr milliseconds longest_retry{2000};
constexpr milliseconds plain_retry{30'000};
constexpr int strikes_to_drop = 2;
constexpr int broken_promises_to_change_kind = 2;
}  // namespace

std::string_view to_string(BackendPhase phase) {
  switch (phase) {
    case BackendPhase::connecting: return "connecting";
    case BackendPhase::probing: return "probing";
    case BackendPhase::ready: return "ready";
    case BackendPhase::plain: return "plain";
  }
  return "?";
}

CachedBackend::CachedBackend(boost::asio::any_io_executor executor, Upstream& upstream, CheckpointStore* store,
                             Catalogue* catalogue, BlockingPool& pool, CacheOptions options)
    : executor_(executor),
      upstream_(upstream),
      store_(store),
      catalogue_(catalogue),
      pool_(pool),
      options_(std::move(options)),
      api_(upstream, options_.api_key),
      memo_(api_, options_.memo_bytes),
      scheduler_(executor, slots_, options_.max_waiting),
      phase_changed_(std::make_shared<Wakeup>(executor)),
      look_now_(std::make_shared<Wakeup>(executor)) {
  scheduler_.on_release([this](int) { schedule_write_back(); });
  if (store_ != nullptr) {
    if (const std::optional<std::string> rates = store_->setting("rates")) costs_.load(*rates);
  }
}

void CachedBackend::spawn(Task<void> task) {
  ++tasks_;
  boost::asio::co_spawn(executor_, std::move(task), [this](std::exception_ptr error) {
    --tasks_;
    if (error) std::rethrow_exception(error);
  });
}

std::int64_t CachedBackend::now_ms() const {
  return std::chrono::duration_cast<milliseconds>(std::chrono::system_clock::now().time_since_epoch()).count();
}

Task<void> CachedBackend::start(milliseconds patience) {
  spawn(watch());
  const auto deadline = std::chrono::steady_clock::now() + patience;
  while (phase_ == BackendPhase::connecting || phase_ == BackendPhase::probing) {
    const auto left = std::chrono::duration_cast<milliseconds>(deadline - std::chrono::steady_clock::now());
    // A probe under way is waited for longer than a backend that is not there.
    const milliseconds limit = phase_ == BackendPhase::probing ? options_.probe_wait : left;
    if (limit.count() <= 0) co_return;
    const std::shared_ptr<Wakeup> change = phase_changed_;
    if (!co_await change->wait_for(limit)) co_return;
  }
}

Task<void> CachedBackend::stop(milliseconds limit) {
  stopping_.cancel();
  look_now_->notify();
  Wakeup pause(executor_);
  const auto deadline = std::chrono::steady_clock::now() + limit;
  while (tasks_ > 0 && std::chrono::steady_clock::now() < deadline) {
    Wakeup tick(executor_);
    (void)co_await tick.wait_for(milliseconds{5});
  }
  if (phase_ == BackendPhase::ready && can_save()) {
    for (const SlotState& state : std::as_const(slots_).slots()) {
      if (!state.unsaved || state.leased || std::chrono::steady_clock::now() >= deadline) continue;
      std::optional<Lease> lease = scheduler_.try_acquire(state.id);
      if (!lease) continue;
      Result<void> saved = co_await save(state.id);
      if (!saved) spdlog::warn("slot {} could not be saved at shutdown: {}", state.id, to_string(saved.error()));
    }
  }
  keep_facts();
  if (store_ != nullptr) {
    (void)co_await store_->put_setting("rates", costs_.to_json());
    (void)co_await store_->flush();
  }
  // Whatever still runs loses its connection now.
  background_.cancel();
  while (tasks_ > 0) {
    Wakeup tick(executor_);
    (void)co_await tick.wait_for(milliseconds{5});
  }
}

void CachedBackend::became(BackendPhase phase, std::string trouble) {
  phase_ = phase;
  trouble_ = std::move(trouble);
  const std::shared_ptr<Wakeup> old = std::exchange(phase_changed_, std::make_shared<Wakeup>(executor_));
  old->notify();
}

Task<void> CachedBackend::watch() {
  milliseconds pause = first_retry;
  bool told = false;
  while (!stopping_.cancelled()) {
    if (phase_ == BackendPhase::connecting) {
      const bool answered = co_await look();
      if (!answered) became(BackendPhase::connecting, trouble_);  // whoever waits for this look goes on without
      if (answered) {
        pause = first_retry;
        told = false;
      } else if (!told) {
        spdlog::warn("the backend at {} does not answer yet; requests get 502 until it does",
                     upstream_.address().host_header());
        told = true;
      }
    }
    const bool settled = phase_ == BackendPhase::ready || phase_ == BackendPhase::plain;
    const std::shared_ptr<Wakeup> wake = look_now_;
    if (phase_ == BackendPhase::ready) {
      co_await wake->wait();
    } else {
      // A plain backend may be restarted with better flags without our noticing: look again now and then.
      const bool woken = co_await wake->wait_for(settled ? plain_retry : pause);
      if (!woken && phase_ == BackendPhase::plain && scheduler_.leased() == 0 && foreign_ == 0) {
        phase_ = BackendPhase::connecting;
      }
      pause = std::min(pause * 2, longest_retry);
    }
    if (wake->notified()) {
      look_now_ = std::make_shared<Wakeup>(executor_);
      pause = first_retry;
    }
  }
}

Task<bool> CachedBackend::look() {
  Result<bool> healthy = co_await api_.healthy(stopping_);
  if (!healthy || !*healthy) co_return false;
  became(BackendPhase::probing, "");
  Result<ProbeResult> probed = co_await probe_backend(api_, store_, pool_, stopping_);
  if (!probed) {
    became(BackendPhase::connecting, to_string(probed.error()));
    co_return false;
  }
  probe_ = std::move(*probed);
  kind_ = probe_.kind;
  saving_off_ = false;
  broken_promises_ = 0;
  memo_.clear();
  suffixes_.clear();

  const int count = probe_.can_pin ? probe_.props.total_slots : 0;
  slots_.reset(count);
  if (probe_.can_pin) {
    Result<std::vector<SlotInfo>> infos = co_await api_.slots(stopping_);
    if (infos) {
      for (const SlotInfo& info : *infos) {
        if (info.id >= 0 && info.id < count) slots_.at(info.id).fresh = !info.n_prompt_tokens.has_value();
      }
    }
  }

  spdlog::info("backend {}: {} ({}), {} slots of {} tokens, memory {} ({}), saving {}, idle slots {}; {} tokens computed to find out",
               upstream_.address().host_header(), probe_.meta.id, probe_.props.build_info, count, probe_.meta.n_ctx,
               to_string(kind_), probe_.kind_because, probe_.can_save ? "works" : "off",
               probe_.clears_idle ? "are cleared by other tasks" : "keep their state", probe_.computed_tokens);
  if (!probe_.can_save) spdlog::warn("states are not saved: {}", probe_.save_trouble);
  became(probe_.can_pin && probe_.can_save ? BackendPhase::ready : BackendPhase::plain, probe_.save_trouble);
  co_return true;
}

Task<bool> CachedBackend::wait_ready() {
  const auto deadline = std::chrono::steady_clock::now() + options_.probe_wait;
  bool looked = false;
  while (phase_ == BackendPhase::probing || (phase_ == BackendPhase::connecting && !looked)) {
    const auto left = std::chrono::duration_cast<milliseconds>(deadline - std::chrono::steady_clock::now());
    if (left.count() <= 0) break;
    // Perhaps it has just come back: one look now, rather than when the next is due.
    looked = looked || phase_ == BackendPhase::connecting;
    const std::shared_ptr<Wakeup> change = phase_changed_;
    if (phase_ == BackendPhase::connecting) look_now_->notify();
    (void)co_await change->wait_for(left);
  }
  co_return phase_ == BackendPhase::ready;
}

void CachedBackend::suspect_down() {
  if (phase_ == BackendPhase::probing) return;
  slots_.forget_all();
  phase_ = BackendPhase::connecting;
  look_now_->notify();
}

Task<bool> CachedBackend::same_process(CancelSource& cancel) {
  if (probe_.process.empty()) co_return true;  // an older build does not tell
  Result<BackendProps> props = co_await api_.props(cancel);
  co_return props && props->media_marker == probe_.process;
}

Task<bool> CachedBackend::still_the_same(CancelSource& cancel) {
  // Polling while something runs would put off the backend's notice of a client that left; and what runs proves that the
  // process lives.
  if (scheduler_.leased() > 0 || foreign_ > 0) co_return true;
  bool same = co_await same_process(cancel);
  Result<std::vector<SlotInfo>> infos = co_await api_.slots(cancel);
  if (!infos) co_return false;
  // The probe used a slot: where none was ever used, it is another process.
  const bool any_used = std::any_of(infos->begin(), infos->end(), [](const SlotInfo& info) { return info.n_prompt_tokens.has_value(); });
  if (static_cast<int>(infos->size()) != static_cast<int>(slots_.slots().size()) || !any_used) same = false;
  if (!same) {
    spdlog::warn("the backend was restarted: probing it again");
    suspect_down();
    co_return false;
  }
  for (const SlotInfo& info : *infos) {
    if (info.id < 0 || info.id >= static_cast<int>(slots_.slots().size())) continue;
    slots_.believe_length(info.id, info.n_prompt_tokens);
  }
  co_return true;
}

ResultTask<void> CachedBackend::restore(int slot, CheckpointId id) {
  SlotState& state = slots_.at(slot);
  const CheckpointStore::Use use = store_->use(id);
  if (!use) co_return disk_error(ErrorCode::not_found, "the checkpoint is gone");
  Result<VerifyOutcome> verified = co_await store_->verify_before_restore(id);
  if (!verified) {
    spdlog::warn("checkpoint {} is not what was saved: {}", static_cast<std::int64_t>(id), to_string(verified.error()));
    co_return verified.error();
  }
  // A request may have waited long since its plan was made: the model may be another one by now.
  if (!co_await same_process(background_)) {
    suspect_down();
    co_return upstream_error(ErrorCode::closed, "the backend was restarted");
  }
  const CheckpointRecord* record = store_->find(id);
  if (record == nullptr) co_return disk_error(ErrorCode::not_found, "the checkpoint is gone");
  if (phase_ != BackendPhase::ready || record->namespace_id != probe_.name_space) {
    co_return upstream_error(ErrorCode::closed, "the backend is another one now");
  }
  const std::string name = record->file_name;
  const std::uint32_t token_count = record->token_count;
  const std::uint64_t bytes = record->bytes;
  std::vector<std::uint32_t> resume_points = record->resume_positions;
  Tokens tokens = catalogue_->tokens_of(id);
  if (tokens.size() != token_count) co_return internal_error("a checkpoint without its path in the tree");

  slots_.forget(slot);
  // Builds whose files carry no context checkpoints keep those of the slot's previous prompt through a restore, and would
  // later rewind to them: another prompt's state.
  if (probe_.state_version < 4 && !state.fresh) {
    note_task_started(slot);
    Result<void> washed = co_await api_.wash(slot, background_);
    state.running = false;
    if (!washed) co_return washed.error();
    state.fresh = true;
  }
  const auto began = std::chrono::steady_clock::now();
  Result<SlotAction> restored = co_await api_.restore(slot, name, background_);
  if (!restored || restored->n_tokens != static_cast<std::int64_t>(token_count)) {
    const Error error = restored ? upstream_error(ErrorCode::rejected, "restored another number of tokens") : restored.error();
    const bool its_fault = error.code == ErrorCode::rejected;
    if (its_fault && ++strikes_[id] >= strikes_to_drop) {
      spdlog::warn("checkpoint {} was refused by the backend twice and is dropped: {}", static_cast<std::int64_t>(id), to_string(error));
      (void)co_await store_->erase(id, RemovalReason::bad_file);
    }
    co_return error;
  }
  const double wall_s = std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
  costs_.observe_restore(static_cast<double>(bytes), std::max(restored->seconds, wall_s * 0.5));
  store_->mark_used(id);
  state.known = std::move(tokens);
  state.unknown_tail = 0;
  state.resume_points = std::move(resume_points);
  state.unsaved = false;
  state.recoverable = token_count;
  state.name_space = static_cast<std::int64_t>(probe_.name_space);
  slots_.touch(slot);
  co_return Result<void>{};
}

ResultTask<void> CachedBackend::save(int slot) {
  SlotState& state = slots_.at(slot);
  state.unsaved = false;  // whatever comes of it: not tried again until the content changes
  if (!can_save() || state.known.empty()) co_return Result<void>{};
  const std::uint32_t held = state.held();
  const double bytes_guess = costs_.state_bytes(held, static_cast<double>(state.resume_points.size()));
  Result<CheckpointStore::Reservation> reservation = co_await store_->reserve(static_cast<std::uint64_t>(bytes_guess * 1.1) + 4096);
  if (!reservation) co_return reservation.error();
  const std::string name = reservation->temporary_name();
  const auto began = std::chrono::steady_clock::now();
  Result<SlotAction> saved = co_await api_.save(slot, name, background_);
  if (!saved) {
    (void)co_await store_->discard(std::move(*reservation));
    if (saved.error().code == ErrorCode::unsupported) saving_off_ = true;
    co_return saved.error();
  }
  const double wall_s = std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
  costs_.observe_save(static_cast<double>(saved->bytes), std::max(saved->seconds, wall_s * 0.5));
  if (saved->n_tokens < static_cast<std::int64_t>(state.known.size())) {
    // The backend had emptied or replaced it.
    slots_.forget(slot);
    (void)co_await store_->discard(std::move(*reservation));
    co_return Result<void>{};
  }
  costs_.observe_state(static_cast<double>(saved->n_tokens), static_cast<double>(state.resume_points.size()),
                       static_cast<double>(saved->bytes));
  NewCheckpoint fresh;
  fresh.namespace_id = probe_.name_space;
  fresh.expected_prefix = state.known;
  fresh.saved_tokens = static_cast<std::uint64_t>(saved->n_tokens);
  fresh.saved_bytes = static_cast<std::uint64_t>(saved->bytes);
  fresh.cost_to_recompute_s = costs_.prefill_seconds(0, static_cast<double>(saved->n_tokens));
  if (kind_ == MemoryKind::truncatable) {
    fresh.kind = CheckpointKind::truncatable;
  } else if (kind_ == MemoryKind::exact) {
    fresh.kind = CheckpointKind::exact;
  } else {
    fresh.kind = CheckpointKind::checkpointed;  // where it can be resumed, the file itself says
  }
  Result<CommittedCheckpoint> committed = co_await store_->commit(std::move(*reservation), std::move(fresh));
  if (!committed) {
    if (committed.error().code == ErrorCode::corrupt) slots_.forget(slot);  // it held something else
    co_return committed.error();
  }
  state.known = std::move(committed->tokens);
  state.unknown_tail = 0;
  state.unsaved = false;
  state.recoverable = static_cast<std::uint32_t>(state.known.size());
  if (kind_ == MemoryKind::checkpointed) state.resume_points = std::move(committed->context_checkpoints);
  const std::vector<CheckpointId> useless = catalogue_->add(committed->id, state.known, now_ms());
  for (const CheckpointId old : useless) (void)co_await store_->erase(old);
  co_return Result<void>{};
}

ResultTask<Timings> CachedBackend::prefill(int slot, TokenSpan tokens, std::uint32_t expected_base, CancelSource& cancel) {
  SlotState& state = slots_.at(slot);
  note_task_started(slot);
  Result<Timings> timings = co_await api_.prefill(slot, tokens, {}, cancel);
  state.running = false;
  if (!timings) {
    // How far it came we do not know; what was there before may be overwritten beyond the common part.
    const std::size_t common = common_prefix(state.known, tokens);
    state.known.resize(std::min<std::size_t>(common, expected_base));
    cut_resume_points(state.resume_points, static_cast<std::uint32_t>(state.known.size()));
    state.unknown_tail = 1;
    state.unsaved = false;
    co_return timings.error();
  }
  const auto from = static_cast<std::uint32_t>(timings->cache_n);
  const auto to = static_cast<std::uint32_t>(tokens.size());
  costs_.observe_prefill(from, static_cast<double>(timings->prompt_n), timings->prompt_ms / 1000.0);
  cut_resume_points(state.resume_points, from);
  if (kind_ != MemoryKind::truncatable) add_piece_resume_points(state.resume_points, from, to, options_.ubatch_tokens);
  state.known.assign(tokens.begin(), tokens.end());
  state.unknown_tail = 0;
  state.name_space = static_cast<std::int64_t>(probe_.name_space);
  slots_.touch(slot);
  co_return timings;
}

ResultTask<StartGate> CachedBackend::gate_if_needed(CancelSource& cancel) {
  if (!probe_.clears_idle) co_return StartGate{};
  co_return co_await scheduler_.enter_gate(cancel);
}

Task<void> CachedBackend::save_idle_slots(int except) {
  if (!probe_.clears_idle) co_return;
  for (std::size_t i = 0; i < slots_.slots().size(); ++i) {
    const SlotState& state = slots_.slots()[i];
    if (state.id == except || state.leased || !state.unsaved) continue;
    // Not through the queue: whoever waits there cannot start before the gate is free, and we hold it.
    Result<void> saved = co_await save(state.id);
    if (!saved) spdlog::debug("slot {} was not saved before it is cleared: {}", state.id, to_string(saved.error()));
  }
}

void CachedBackend::note_task_started(int slot) {
  SlotState& started = slots_.at(slot);
  started.fresh = false;
  started.running = started.leased;
  if (!probe_.clears_idle) return;
  for (const SlotState& state : std::as_const(slots_).slots()) {
    // One that is leased but waits at the start gate is idle to the backend.
    if (state.id != slot && !state.running) slots_.forget(state.id);
  }
}

void CachedBackend::note_slot_content(int slot) {
  SlotState& state = slots_.at(slot);
  state.recoverable = recoverable(state.known);
  const std::uint32_t held = state.held();
  const std::uint32_t gain = held > state.recoverable ? held - state.recoverable : 0;
  state.unsaved = can_save() && held >= options_.shortest_prompt_tokens && gain >= options_.worth_saving_tokens;
}

std::uint32_t CachedBackend::recoverable(TokenSpan tokens) const {
  if (catalogue_ == nullptr || tokens.empty()) return 0;
  // As a prompt that goes on after them would find it.
  Tokens longer(tokens.begin(), tokens.end());
  longer.push_back(-1);
  const std::vector<Catalogue::Candidate> best = catalogue_->candidates(probe_.name_space, longer, kind_, 1);
  return best.empty() ? 0 : best.front().usable_tokens;
}

void CachedBackend::learn_from_reuse(Source source, CheckpointId checkpoint, std::uint32_t base, std::uint32_t common,
                                     std::uint32_t state_length, std::int64_t reused) {
  if (source == Source::recompute || reused < 0) return;
  constexpr std::int64_t tolerance = 8;
  if (reused + tolerance >= static_cast<std::int64_t>(base)) {
    broken_promises_ = 0;
    if (source == Source::restore) strikes_.erase(checkpoint);
    // It went back much further than any context checkpoint of ours: nothing needs them here.
    constexpr std::uint32_t deep = 8192;
    if (kind_ != MemoryKind::truncatable && state_length > common + deep && reused + tolerance >= common &&
        base + options_.ubatch_tokens < common) {
      set_kind(MemoryKind::truncatable, "a state was cut back further than a sliding window reaches");
    }
    return;
  }
  if (source == Source::restore && ++strikes_[checkpoint] >= strikes_to_drop) {
    spdlog::warn("checkpoint {} did not give what it promised twice ({} of {} tokens) and is dropped",
                 static_cast<std::int64_t>(checkpoint), reused, base);
    strikes_.erase(checkpoint);
    if (store_->find(checkpoint) != nullptr) {
      const auto drop = [](CheckpointStore* store, CheckpointId id) -> Task<void> {
        (void)co_await store->erase(id, RemovalReason::bad_file);
      };
      spawn(drop(store_, checkpoint));
    }
  }
  const bool rewound = common < state_length;
  if (!rewound) return;
  if (kind_ == MemoryKind::truncatable) {
    // A slot that turns out empty may just have been cleared by somebody else: once is no proof.
    const bool proven = source == Source::restore || reused > 0;
    if (proven || ++broken_promises_ >= broken_promises_to_change_kind) {
      set_kind(MemoryKind::checkpointed, "a state could not be cut back");
    }
    return;
  }
  if (kind_ == MemoryKind::checkpointed && reused == 0 && ++broken_promises_ >= broken_promises_to_change_kind) {
    set_kind(MemoryKind::exact, "context checkpoints did not come back; --ctx-checkpoints 32 or a newer llama-server would mend it");
  }
}

void CachedBackend::set_kind(MemoryKind kind, std::string_view because) {
  if (kind == kind_) return;
  spdlog::warn("the backend's memory is {}, not {}: {}", to_string(kind), to_string(kind_), because);
  kind_ = kind;
  broken_promises_ = 0;
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

Task<void> CachedBackend::begin_foreign() {
  ++foreign_;
  if (phase_ != BackendPhase::ready) co_return;
  // It may take any idle slot: what is worth keeping there is saved first.
  for (std::size_t i = 0; i < slots_.slots().size(); ++i) {
    const SlotState& state = slots_.slots()[i];
    if (!state.unsaved) continue;
    std::optional<Lease> lease = scheduler_.try_acquire(state.id);
    if (!lease) continue;
    const Result<StartGate> gate = co_await gate_if_needed(background_);
    if (!gate) co_return;
    Result<void> saved = co_await save(state.id);
    if (!saved) spdlog::debug("slot {} was not saved: {}", state.id, to_string(saved.error()));
  }
}

Task<void> CachedBackend::end_foreign() {
  --foreign_;
  if (phase_ != BackendPhase::ready) co_return;
  if (probe_.clears_idle) {
    for (const SlotState& state : std::as_const(slots_).slots()) {
      if (!state.leased) slots_.forget(state.id);
    }
    co_return;
  }
  if (scheduler_.leased() > 0 || foreign_ > 0) {
    // Not the moment to ask; a slot that was overwritten shows when it is next used, and costs only time.
    co_return;
  }
  Result<std::vector<SlotInfo>> infos = co_await api_.slots(background_);
  if (!infos) co_return;
  for (const SlotInfo& info : *infos) {
    if (info.id >= 0 && info.id < static_cast<int>(slots_.slots().size())) {
      SlotState& state = slots_.at(info.id);
      state.fresh = state.fresh && !info.n_prompt_tokens.has_value();
      slots_.believe_length(info.id, info.n_prompt_tokens);
    }
  }
}

void CachedBackend::schedule_write_back() {
  if (write_back_scheduled_ || stopping_.cancelled() || phase_ != BackendPhase::ready) return;
  const auto slots = std::as_const(slots_).slots();
  if (std::none_of(slots.begin(), slots.end(), [](const SlotState& state) { return state.unsaved; })) return;
  write_back_scheduled_ = true;
  spawn(write_back());
}

Task<void> CachedBackend::write_back() {
  // A moment of quiet first: a client that sends its next request at once should not find the backend saving.
  Wakeup pause(executor_);
  const std::function<void()> wake = [&pause] { pause.notify(); };
  const CancelSource::Registration registration = stopping_.on_cancel(wake);
  (void)co_await pause.wait_for(options_.write_back_delay);
  write_back_scheduled_ = false;
  if (stopping_.cancelled()) co_return;
  for (std::size_t i = 0; i < slots_.slots().size(); ++i) {
    // A save stalls every slot of the backend: only while nobody is served. The last lease to end brings us back.
    if (scheduler_.leased() > 0 || scheduler_.waiting() > 0 || foreign_ > 0 || phase_ != BackendPhase::ready) co_return;
    const SlotState& state = slots_.slots()[i];
    if (!state.unsaved) continue;
    std::optional<Lease> lease = scheduler_.try_acquire(state.id);
    if (!lease) continue;
    // Nobody may start a task before the backend has the save: it would clear the slot.
    const Result<StartGate> gate = co_await gate_if_needed(stopping_);
    if (!gate) co_return;
    Result<void> saved = co_await save(state.id);
    if (!saved) {
      spdlog::warn("slot {} was not saved: {}", lease->slot(), to_string(saved.error()));
      if (saved.error().source == ErrorSource::upstream && saved.error().code == ErrorCode::refused) suspect_down();
    }
  }
}

}  // namespace cairn

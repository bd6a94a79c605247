#include "request/cached_backend.hpp"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/steady_timer.hpp>

#include <algorithm>
#include <exception>
#include <utility>

namespace cairn {

namespace {
using std::chrono::milliseconds;
constexpr milliseconds first_retry{100}, longest_retry{2000}, plain_retry = ProbeSchedule::first;
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
                             Catalogue* catalogue, BlockingPool& pool, CacheOptions options, SharedServer* shared)
    : executor_(executor),
      upstream_(upstream),
      store_(store),
      catalogue_(catalogue),
      pool_(pool),
      options_(std::move(options)),
      shared_(shared),
      api_(upstream, options_.api_key, options_.route),
      memo_(api_, options_.memo_bytes),
      scheduler_(executor, slots_, options_.queue),
      look_now_(std::make_shared<Wakeup>(executor)) {
  scheduler_.on_release([this](int) {
    released_.notify_all();
    // One that waits in the backend for a slot begins now.
    if (unleased_ > static_cast<std::uint64_t>(std::ranges::count_if(std::as_const(slots_).slots(), &SlotState::taken))) find_taken();
    schedule_write_back();
  });
}

void CachedBackend::spawn(Task<void> task) {
  ++tasks_;
  boost::asio::co_spawn(executor_, std::move(task), [this](std::exception_ptr error) {
    --tasks_;
    if (!error) return;
    try {
      std::rethrow_exception(error);
    } catch (const std::exception& bug) {
      spdlog::error("upkeep ended by a bug: {}", bug.what());
    }
  });
}

Task<void> CachedBackend::start(milliseconds patience) {
  spawn(watch());
  const auto deadline = std::chrono::steady_clock::now() + patience;
  while (phase_ == BackendPhase::connecting || phase_ == BackendPhase::probing) {
    const auto left = std::chrono::duration_cast<milliseconds>(deadline - std::chrono::steady_clock::now());
    // A probe under way is waited for longer than a backend that is not there.
    const milliseconds limit = phase_ == BackendPhase::probing ? options_.probe_wait : left;
    if (limit.count() <= 0 || !co_await phase_change(limit, stopping_)) co_return;
  }
}

void CachedBackend::attach(CheckpointStore& store, Catalogue& catalogue) {
  store_ = &store;
  catalogue_ = &catalogue;
  suspect_down();
}

void CachedBackend::cut() { background_->cancel(); }

Task<void> CachedBackend::stop(milliseconds limit) {
  stopping_.cancel();
  look_now_->notify();
  const auto deadline = std::chrono::steady_clock::now() + limit;
  // A save that takes longer than there is time loses its connection.
  boost::asio::steady_timer last_call(executor_);
  last_call.expires_at(deadline);
  last_call.async_wait([this](boost::system::error_code error) {
    if (!error) cut();
  });
  while (tasks_ > 0 && std::chrono::steady_clock::now() < deadline) {
    Wakeup tick(executor_);
    (void)co_await tick.wait_for(milliseconds{5});
  }
  // What was cut for requests that did not end is cut; the saves to come are not.
  if (tasks_ == 0) background_ = std::make_unique<CancelSource>();
  last_chance_ = true;  // of a disk that has refused, too
  if (phase_ == BackendPhase::ready && keeps_states() && (shared_ == nullptr || co_await shared_->is_there(*this, *background_))) {
    co_await find_chosen();
    for (const SlotState& state : std::as_const(slots_).slots()) {
      if (!state.unsaved || state.leased || std::chrono::steady_clock::now() >= deadline) continue;
      std::optional<Lease> lease = scheduler_.try_acquire(state.id);
      if (!lease) continue;
      Result<void> saved = co_await save(state.id);
      if (!saved) spdlog::warn("slot {} could not be saved at shutdown: {}", state.id, to_string(saved.error()));
      if (!saved && store_->saving_waits()) break;
    }
  }
  keep_facts();
  if (catalogue_ != nullptr) (void)co_await catalogue_->keep_learned(probe_.name_space);
  if (store_ != nullptr) {
    (void)co_await store_->put_setting(rates_key(), costs_.to_json());
    co_await copy_down(deadline);
    (void)co_await store_->flush();
  }
  last_call.cancel();
  cut();  // whatever still runs loses its connection now
  while (tasks_ > 0) {
    Wakeup tick(executor_);
    (void)co_await tick.wait_for(milliseconds{5});
  }
}

void CachedBackend::became(BackendPhase phase, std::string trouble) {
  phase_ = phase;
  trouble_ = std::move(trouble);
  if (phase == BackendPhase::plain) plain_since_ = std::chrono::steady_clock::now();
  for (const std::shared_ptr<Wakeup>& waiter : std::exchange(phase_waiters_, {})) waiter->notify();
}

// A Wakeup each: it takes one waiter.
Task<bool> CachedBackend::phase_change(milliseconds limit, CancelSource& cancel) {
  auto told = std::make_shared<Wakeup>(executor_);
  phase_waiters_.push_back(told);
  const std::function<void()> wake = [told] { told->notify(); };
  const CancelSource::Registration registration = cancel.on_cancel(wake);
  const bool changed = co_await told->wait_for(limit) && !cancel.cancelled();
  if (!changed) std::erase(phase_waiters_, told);
  co_return changed;
}

Task<bool> CachedBackend::may_touch() {
  if (shared_ == nullptr) co_return true;
  co_return co_await shared_->may_touch(*this);
}

Task<SharedServer::Turn> CachedBackend::begin_turn(CancelSource& cancel) {
  if (shared_ == nullptr) co_return SharedServer::Turn{};
  co_return co_await shared_->begin_turn(*this, cancel);
}

Task<void> CachedBackend::watch() {
  milliseconds pause = first_retry;
  std::string told;
  while (!stopping_.cancelled()) {
    if (phase_ == BackendPhase::connecting && (shared_ == nullptr || wanted_ > 0)) {
      const bool answered = co_await look();
      if (!answered) became(BackendPhase::connecting, trouble_);  // whoever waits for this look goes on without
      if (answered) {
        pause = first_retry;
        told.clear();
      } else if (told != trouble_) {
        spdlog::warn("{} cannot be used yet: {}", label(), trouble_);
        told = trouble_;
      }
    }
    const bool settled = phase_ == BackendPhase::ready || phase_ == BackendPhase::plain;
    const std::shared_ptr<Wakeup> wake = look_now_;
    if (phase_ == BackendPhase::ready || shared_ != nullptr) {
      co_await wake->wait();
    } else {
      // A plain backend may be restarted with better flags without our noticing: look again now and then.
      const bool woken = co_await wake->wait_for(settled ? plain_retry : pause);
      // A probe overwrites a slot, so only another process is worth one.
      if (!woken && phase_ == BackendPhase::plain && co_await worth_another_probe()) phase_ = BackendPhase::connecting;
      pause = std::min(pause * 2, longest_retry);
    }
    if (wake->notified()) {
      look_now_ = std::make_shared<Wakeup>(executor_);
      pause = first_retry;
    }
  }
}

// Of one that is passed by: another process, perhaps with better flags; or when the trouble may have passed.
Task<bool> CachedBackend::worth_another_probe() {
  if (!probe_.process.empty() && co_await which_process(stopping_) == Process::other) co_return true;
  co_return store_ != nullptr && !store_->saving_waits() && probes_.due(std::chrono::steady_clock::now());
}

std::string CachedBackend::label() const {
  const std::string address = upstream_.address().host_header();
  return name().empty() ? "the backend at " + address : fmt::format("{} at {}", name(), address);
}

ResultTask<void> CachedBackend::wake() {
  if (shared_ == nullptr) {
    Result<bool> healthy = co_await api_.healthy(stopping_);
    if (!healthy) co_return healthy.error();
    if (!*healthy) co_return upstream_error(ErrorCode::rejected, "its model is being loaded");
    co_return Result<void>{};
  }
  loading_ = true;
  co_await shared_->before_load(*this);
  const Result<BackendProps> props = co_await api_.load(stopping_);
  shared_->after_load(*this);
  loading_ = false;
  constexpr int not_found = 404;
  if (!props && props.error().status == not_found) shared_->suspect_changed();
  if (!props) co_return props.error();
  co_return Result<void>{};
}

Task<bool> CachedBackend::look() {
  if (shared_ != nullptr) became(BackendPhase::probing, "");
  const Result<void> awake = co_await wake();
  if (!awake) {
    trouble_ = awake.error().context;
    co_return false;
  }
  if (shared_ == nullptr) became(BackendPhase::probing, "");
  Result<ProbeResult> probed = co_await probe_backend(api_, store_, pool_, wanted_ > 0, stopping_);
  sweep_strays();
  if (!probed) {
    const bool wants_key = probed.error().status == 401 || probed.error().status == 403;
    became(BackendPhase::connecting, wants_key ? "it wants a key for Cairn's own calls (backend_api_key, --backend-api-key); until then requests "
                                                 "are passed on uncached"
                                               : probed.error().context);
    if (shared_ != nullptr && probed.error().code == ErrorCode::not_found) shared_->suspect_changed();
    co_return false;
  }
  ++generation_;
  const bool same_process = !std::exchange(suspected_, false) && probe_.process == probed->process;
  // Slots go on from what the adapters before have computed, and so does the backend's own cache.
  const bool switched = generation_ > 1 && probe_.process == probed->process && probe_.lora != probed->lora;
  recall_clearing(*probed);
  probe_ = std::move(*probed);
  kind_ = probe_.kind;
  restores_in_vain_ = 0;
  if (std::exchange(costs_of_, probe_.name_space) != probe_.name_space) {
    // What another model cost says nothing of this one.
    costs_ = CostModel{};
    const std::optional<std::string> rates = store_ != nullptr ? store_->setting(rates_key()) : std::nullopt;
    if (!rates || !costs_.load(*rates)) costs_.expect_state(probe_.state_base_bytes, probe_.state_bytes_a_token);
  }
  costs_.expect_context_checkpoints(probe_.context_checkpoint_bytes);
  saving_off_ = false;
  broken_promises_ = rewinds_in_vain_ = cut_back_ = pieces_in_vain_ = 0;
  pieces_from_ = {};
  strikes_.clear();
  latest_gaps_.clear();
  ram_cache_.clear();
  last_task_ = -1;
  memo_.reset();
  suffixes_.clear();
  derivations_.reset();
  option_trials_.clear();
  infill_layout_.reset();
  other_weights_seen_ = false;
  seen_.clear();

  const int count = probe_.can_pin ? probe_.props.total_slots : 0;
  slots_.reset(count);
  for (int slot = 0; switched && slot < static_cast<int>(slots_.slots().size()); ++slot) note_other_weights(slot);

  if (probe_.server != ServerKind::single) {
    const bool router = probe_.server == ServerKind::router;
    spdlog::info("{}: {}, each of its models is looked at when a request wants it", label(), router ? "a router" : "llama-swap");
    became(BackendPhase::plain, router ? "it is a router: see its models" : "it is llama-swap: see its models");
    scheduler_.slots_changed();
    co_return true;
  }
  const bool told = probes_.note(probe_, same_process, std::chrono::steady_clock::now());
  spdlog::log(told ? spdlog::level::debug : spdlog::level::info,
               "{}: {} ({}), {} slots of {} tokens, memory {} ({}), saving {}, idle slots {}; {} tokens computed to find out",
               label(), probe_.meta.id, probe_.props.build_info, count, probe_.meta.n_ctx,
               to_string(kind_), probe_.kind_because, probe_.can_save ? "works" : "off",
               !probe_.clears_idle ? "keep their state" : probe_.clears_idle_known ? "are cleared by other tasks" : "may be cleared by other tasks",
               probe_.computed_tokens);
  if (!probe_.can_save && !told) spdlog::warn("states are not saved: {}", probe_.save_trouble);
  became(probe_.usable() ? BackendPhase::ready : BackendPhase::plain, probe_.save_trouble);
  scheduler_.slots_changed();
  co_return true;
}

Task<bool> CachedBackend::wait_ready(CancelSource& cancel) {
  auto deadline = std::chrono::steady_clock::now() + options_.probe_wait;
  bool looked = false;
  ++wanted_;
  // Nobody looks now and then at one model of several.
  if (shared_ != nullptr && phase_ == BackendPhase::plain && std::chrono::steady_clock::now() > plain_since_ + plain_retry) {
    plain_since_ = std::chrono::steady_clock::now();
    if (co_await worth_another_probe() && phase_ == BackendPhase::plain) phase_ = BackendPhase::connecting;
  }
  while (!cancel.cancelled() && (phase_ == BackendPhase::probing || (phase_ == BackendPhase::connecting && !looked))) {
    if (loading_) deadline = std::chrono::steady_clock::now() + options_.probe_wait;
    const auto left = std::chrono::duration_cast<milliseconds>(deadline - std::chrono::steady_clock::now());
    if (left.count() <= 0) break;
    // Perhaps it has just come back: one look now, rather than when the next is due.
    looked = looked || phase_ == BackendPhase::connecting;
    if (phase_ == BackendPhase::connecting) look_now_->notify();
    (void)co_await phase_change(left, cancel);
  }
  --wanted_;
  if (shared_ != nullptr) shared_->wait_ended();
  co_return phase_ == BackendPhase::ready;
}

void CachedBackend::suspect_down() {
  if (phase_ == BackendPhase::probing) return;
  suspected_ = true;
  slots_.forget_all();
  phase_ = BackendPhase::connecting;
  look_now_->notify();
}

std::string CachedBackend::rates_key() const { return fmt::format("rates:{}", static_cast<std::int64_t>(probe_.name_space)); }

void CachedBackend::note_begun() {
  if (present_ > 0 || foreign_ > 0) return;
  pauses_.note(std::chrono::duration<double>(std::chrono::steady_clock::now() - idle_since_).count());
}

CachedBackend::Presence::Presence(CachedBackend& backend) : backend_(&backend) {
  backend.note_begun();
  ++backend.present_;
}

CachedBackend::Presence::~Presence() {
  backend_->idle_since_ = std::chrono::steady_clock::now();
  if (--backend_->present_ == 0) backend_->schedule_write_back();
}

CachedBackend::Foreign::Foreign(CachedBackend& backend, Holds holds) : backend_(&backend), unleased_(holds == Holds::no_slot) {
  backend.note_begun();
  ++backend.foreign_;
  backend.unleased_ += unleased_ ? 1 : 0;
  ++backend.foreign_epoch_;
}

CachedBackend::Foreign::~Foreign() {
  backend_->idle_since_ = std::chrono::steady_clock::now();
  backend_->unleased_ -= unleased_ ? 1 : 0;
  const std::span<SlotState> slots = backend_->slots_.slots();
  if (--backend_->foreign_ == 0) {
    for (SlotState& state : slots) state.taken = false;
  } else if (std::ranges::any_of(slots, &SlotState::taken)) {
    backend_->find_taken();  // it may have been this one's
  }
  backend_->scheduler_.reconsider();
  backend_->spawn(backend_->look_at_slots());
}

bool CachedBackend::crowded() const {
  const std::size_t slots = slots_.slots().size();
  if (slots == 0) return false;  // how many it serves at a time is not known
  return scheduler_.leased() + scheduler_.waiting() + unleased_ >= slots + options_.queue.max_waiting;
}

Task<void> CachedBackend::save_before_foreign(CancelSource& cancel) {
  const auto all = std::as_const(slots_).slots();
  const auto idle = std::ranges::count_if(all, [](const SlotState& state) { return !state.leased; });
  const SlotState* oldest = nullptr;
  for (const SlotState& state : all) {
    if (!state.leased && (oldest == nullptr || state.last_used < oldest->last_used)) oldest = &state;
  }
  // It takes the idle slot that was used longest ago, or the one that is most like its prompt, which we do not know.
  const double another = probe_.clears_idle ? 1.0 : 1.0 / static_cast<double>(std::max<std::ptrdiff_t>(idle, 1));
  co_await save_idle(oldest != nullptr ? oldest->id : -1, another, cancel);
}

// `chance`: that what idle slots hold goes, but for `surely`, which does.
Task<void> CachedBackend::save_idle(int surely, double chance, CancelSource& cancel) {
  if (phase_ != BackendPhase::ready) co_return;
  for (std::size_t i = 0; i < slots_.slots().size() && !cancel.cancelled(); ++i) {
    const SlotState& state = slots_.slots()[i];
    if (!state.unsaved || state.leased) continue;
    if (!worth_a_stall(state, state.id == surely ? 1.0 : chance)) continue;
    std::optional<Lease> lease = scheduler_.try_acquire(state.id);
    if (!lease) continue;
    Result<void> saved = co_await save(lease->slot());
    if (!saved) spdlog::debug("slot {} was not saved: {}", lease->slot(), to_string(saved.error()));
  }
}

Task<void> CachedBackend::save_before_stop(CancelSource& cancel) {
  const auto saving = [this] {
    return std::ranges::any_of(std::as_const(slots_).slots(), [](const SlotState& state) { return state.upkeep; });
  };
  const std::function<void()> wake = [this] { released_.notify_all(); };
  const CancelSource::Registration registration = cancel.on_cancel(wake);
  while (saving() && !cancel.cancelled()) co_await released_.wait();
  co_await save_idle(-1, 1.0, cancel);
}

void CachedBackend::note_foreign_started(bool other_weights) {
  // It may begin later, in a slot that is in use now.
  for (std::size_t i = 0; other_weights && i < slots_.slots().size(); ++i) note_other_weights(static_cast<int>(i));
  slots_.forget_placed();
  for (SlotState& state : slots_.slots()) {
    if (!state.leased) state.attempted.reset();  // what is counted there may be this one's
  }
  for (const SlotState& state : std::as_const(slots_).slots()) {
    // With adapters of its own it leaves our tokens with another model's state behind.
    if (state.running || !(probe_.clears_idle || (other_weights && !state.leased))) continue;
    if (probe_.clears_idle) note_cleared(state);
    if (probe_.clears_idle && !other_weights) note_ram_cache(state.known, state.resume_points);
    slots_.forget(state.id);
  }
}

double CachedBackend::return_chance() {
  constexpr double unlearned = 0.5, least = 0.015, most = 0.9;
  // The next turns of a dozen conversations that have just begun are still to come.
  constexpr double weight_of_unlearned = 4;
  if (catalogue_ == nullptr) return unlearned;
  return std::clamp(catalogue_->end_offsets(probe_.name_space).followed(unlearned, weight_of_unlearned), least, most);
}

void CachedBackend::note_prompt(std::uint32_t gap, double seconds_a_token) {
  constexpr std::size_t remembered = 16;
  constexpr double newest = 0.2;
  latest_gaps_.push_front(gap);
  if (latest_gaps_.size() > remembered) latest_gaps_.pop_back();
  overhead_s_a_token_ += newest * (seconds_a_token - overhead_s_a_token_);
}

std::uint32_t CachedBackend::checkpoint_interval(std::uint32_t tokens) const {
  const double returning = catalogue_ != nullptr ? catalogue_->end_offsets(probe_.name_space).returning() : 1;
  const std::uint32_t now =
      interval_for(tokens, kind_, options_.ubatch_tokens, can_save(), options_.policy, costs_, overhead_s_a_token_, returning);
  if (kind_ == MemoryKind::truncatable || !options_.policy.adaptive || latest_gaps_.empty()) return now;
  return std::max(now, *std::max_element(latest_gaps_.begin(), latest_gaps_.end()));
}

void CachedBackend::add_stop_credit(double seconds) {
  constexpr double most_stops = 32;
  stop_credit_s_ = std::clamp(stop_credit_s_ + seconds, 0.0, most_stops * costs_.boundary_seconds());
}

}  // namespace cairn

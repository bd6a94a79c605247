// What the backend says of itself and its slots: whether it is the process that was probed, and what is believed of its slots.
#include <spdlog/spdlog.h>

#include <boost/asio/experimental/awaitable_operators.hpp>

#include <algorithm>
#include <optional>
#include <tuple>
#include <utility>

#include "request/cached_backend.hpp"

namespace cairn {

namespace {
bool is_late(const Error& error) { return error.code == ErrorCode::timeout; }
}  // namespace

Task<CachedBackend::Process> CachedBackend::which_process(CancelSource& cancel) {
  if (shared_ != nullptr && !co_await shared_->is_there(*this, cancel)) co_return Process::other;
  Result<BackendProps> props = co_await api_.props(cancel);
  // Its threads may all be busy with long requests.
  if (!props && is_late(props.error())) co_return Process::not_said;
  // An error is no proof that it is the same: a replaced one may be loading its model just now. One that sleeps has lost its slots.
  if (!props || props->sleeping) co_return Process::other;
  const bool same = !probe_.process.empty() ? props->media_marker == probe_.process
                                            : props->model_path == probe_.props.model_path && props->build_info == probe_.props.build_info;
  co_return same ? Process::same : Process::other;
}

Task<bool> CachedBackend::still_the_same(CancelSource& cancel) {
  using namespace boost::asio::experimental::awaitable_operators;
  // Polling slots while something runs would put off the backend's notice of a client that left.
  const auto may_look = [this] { return scheduler_.leased() == 0 && foreign_ == 0; };
  Process process = Process::other;
  const std::uint64_t generation = generation_;
  std::optional<Checking> checking;
  std::optional<Result<std::vector<SlotInfo>>> infos;
  if (only_model() && !checking_ && may_look()) {
    checking.emplace(*this);
    std::tie(process, infos) = co_await (which_process(cancel) && api_.slots(cancel));
  } else {
    process = co_await which_process(cancel);
  }
  if (cancel.cancelled()) co_return true;
  bool same = process == Process::same;
  if (same && !checking && checking_) {
    // One look serves all who come at once: a second would have to wait for the first one's task.
    co_await checked_.wait();
    co_return cancel.cancelled() || phase_ == BackendPhase::ready;
  }
  if (same && !checking && may_look()) {
    checking.emplace(*this);
    infos = co_await api_.slots(cancel);
    if (cancel.cancelled()) co_return true;
  }
  // What was asked before another probe began, or while one runs, says nothing of the process that is there now.
  const auto outdated = [&] { return generation != generation_ || phase_ != BackendPhase::ready; };
  if (outdated()) co_return false;
  // What we believe is planned with, and no state is put in or saved before it has said (still_ours()).
  if (process == Process::not_said) co_return true;
  if (same && infos) same = co_await believe_all(*infos, cancel);
  if (cancel.cancelled()) co_return true;
  if (outdated()) co_return false;
  if (!same && phase_ == BackendPhase::ready) {
    spdlog::log(only_model() ? spdlog::level::warn : spdlog::level::info, "{} is not the one that was probed any more: probing it again", label());
    suspect_down();
  }
  co_return same;
}

// False: it is another process, or has other adapters.
Task<bool> CachedBackend::believe_all(const Result<std::vector<SlotInfo>>& infos, CancelSource& cancel) {
  // Between two batches only do some builds answer this, on a slow machine later than we wait; which process it is it has said.
  if (!infos && is_late(infos.error()) && !probe_.process.empty()) co_return true;
  if (!infos || infos->size() < slots_.slots().size()) co_return false;
  // The probe used a slot, and tasks are numbered upwards: where none was used, or the numbers went back, it is another
  // process (older builds tell in no other way).
  std::int64_t latest = -1;
  for (const SlotInfo& info : *infos) latest = std::max(latest, info.n_prompt_tokens ? std::max<std::int64_t>(info.id_task, 0) : -1);
  const bool same = latest >= 0 && latest >= last_task_;
  last_task_ = latest;
  if (!same) co_return false;
  const Result<bool> adapters = co_await same_adapters(cancel);
  if (!adapters) co_return true;
  if (!*adapters) co_return false;
  believe(*infos);
  co_return true;
}

// They can be switched behind our back, too. An error: it does not say now, as it answers this between two batches only.
ResultTask<bool> CachedBackend::same_adapters(CancelSource& cancel) {
  if (probe_.lora == "[]") co_return true;
  const Result<std::string> lora = co_await api_.lora_adapters(cancel);
  if (!lora && is_late(lora.error()) && !probe_.process.empty()) co_return lora.error();
  co_return lora && *lora == probe_.lora;
}

ResultTask<void> CachedBackend::still_ours() {
  const Process process = co_await which_process(*background_);
  if (process == Process::not_said) co_return upstream_error(ErrorCode::timeout, "the backend does not say which process it is");
  bool same = process == Process::same;
  if (same) {
    const Result<bool> adapters = co_await same_adapters(*background_);
    if (!adapters) co_return adapters.error();
    same = *adapters;
  }
  if (same) co_return Result<void>{};
  suspect_down();
  co_return upstream_error(ErrorCode::closed, "the backend was restarted");
}

CachedBackend::Checking::~Checking() {
  backend_->checking_ = false;
  backend_->checked_.notify_all();
}

void CachedBackend::believe(const std::vector<SlotInfo>& infos) {
  std::vector<SlotTable::Length> lengths;
  for (const SlotInfo& info : infos) lengths.push_back(SlotTable::Length{info.id, info.n_prompt_tokens, info.processing});
  learn_clearing(infos);
  for (const SlotTable::Length& one : lengths) {
    if (one.id < 0 || one.id >= static_cast<int>(slots_.slots().size()) || one.tokens.value_or(0) > 0) continue;
    const SlotState& state = std::as_const(slots_).at(one.id);
    if (!state.leased) note_cleared(state);
  }
  std::vector<int> broken_off;
  for (const SlotState& state : std::as_const(slots_).slots()) {
    if (state.attempted != nullptr && !state.leased) broken_off.push_back(state.id);
  }
  for (const int id : slots_.believe_lengths(lengths)) {
    const SlotState& state = std::as_const(slots_).at(id);
    // That it holds this is said again when another task clears the slot.
    ram_cache_.remove(state.known);
    note_slot_content(id);
  }
  for (const int id : broken_off) {
    const SlotState& state = std::as_const(slots_).at(id);
    // At the end there is no later.
    if (!state.known.empty() && (state.attempted == nullptr || stopping_.cancelled())) note_slot_content(id);
  }
  see_slots(infos);
}

void CachedBackend::see_slots(const std::vector<SlotInfo>& infos) {
  seen_.clear();
  if (foreign_ > 0 || (probe_.clears_idle && probe_.clears_idle_known)) return;
  for (const SlotInfo& info : infos) {
    if (info.id < 0 || info.id >= static_cast<int>(slots_.slots().size()) || info.processing || info.n_prompt_tokens.value_or(0) <= 0) continue;
    const SlotState& state = std::as_const(slots_).at(info.id);
    if (!state.leased) seen_.emplace(info.id, Seen{*info.n_prompt_tokens, state.content, foreign_epoch_, -1, false, {}});
  }
}

// Whether tasks clear idle slots: a probe beside others' tasks may not have found out, or wrongly.
void CachedBackend::learn_clearing(const std::vector<SlotInfo>& infos) {
  // A task whose slot the backend chose has come where it was believed to.
  const auto is_where_believed = [&](int id) {
    const auto info = std::ranges::find(infos, id, &SlotInfo::id);
    return info != infos.end() && info->n_prompt_tokens == static_cast<std::int64_t>(std::as_const(slots_).at(id).held());
  };
  bool cleared = false;
  std::vector<SlotTable::Placed> spared;
  for (const SlotInfo& info : infos) {
    const auto at = seen_.find(info.id);
    if (at == seen_.end() || foreign_ > 0) continue;
    Seen& seen = at->second;
    const SlotState& state = std::as_const(slots_).at(info.id);
    if (state.leased || info.processing || seen.content != state.content) continue;
    const bool among_ours = seen.foreign_epoch == foreign_epoch_;
    // One that has slept holds none either, and tells no number.
    if (info.n_prompt_tokens == 0 && seen.started >= 0 && among_ours) {
      cleared = true;
      note_ram_cache(state.known, state.resume_points);
    } else if (info.n_prompt_tokens == seen.tokens && seen.ended && (among_ours || is_where_believed(seen.started))) {
      spared.push_back(std::move(seen.held));
    }
  }
  if (cleared) {
    set_clears_idle(true, "one was empty that no task had come into");
  } else if (!spared.empty() && !probe_.clears_idle_known) {
    set_clears_idle(false, "one held the same after a task in another");
    for (SlotTable::Placed& held : spared) {
      if (!held.known.empty()) slots_.note_placed(std::move(held));
    }
  }
}

void CachedBackend::set_clears_idle(bool clears, std::string_view because) {
  const bool changed = std::exchange(probe_.clears_idle, clears) != clears;
  // One may be empty for another reason: somebody erased it, the backend made room, or a batch failed. Those that are spared will show.
  if (changed || !clears) probe_.clears_idle_known = !clears;
  if (changed) spdlog::info("{}: idle slots {}: {}", label(), clears ? "are cleared by other tasks" : "keep their state", because);
}

// What could not be found out now was perhaps known before.
void CachedBackend::recall_clearing(ProbeResult& probed) const {
  const bool same = !probed.process.empty() && probed.process == probe_.process;
  if (!same || probed.clears_idle_known || !probe_.clears_idle_known) return;
  probed.clears_idle = probe_.clears_idle;
  probed.clears_idle_known = true;
}

// The backend has: a task was started in another slot.
void CachedBackend::clear_idle(int started) {
  slots_.forget_placed();
  for (const SlotState& state : std::as_const(slots_).slots()) {
    // One that is leased but waits at the start gate is idle to the backend.
    if (state.id == started || state.running) continue;
    note_cleared(state);
    note_ram_cache(state.known, state.resume_points);
    const auto seen = seen_.find(state.id);
    const bool untouched = seen != seen_.end() && seen->second.content == state.content && !state.leased;
    if (untouched && !state.known.empty()) {
      seen->second.held = SlotTable::Placed{state.known, state.unknown_tail, state.resume_points, state.proven, state.return_chance, state.name_space};
    }
    slots_.forget(state.id);
    if (untouched) seen->second.content = state.content;
  }
}

// Where tasks ran whose slot the backend chose, and how far those came that were broken off, unless that is known already.
Task<void> CachedBackend::find_chosen() {
  const bool moved = std::ranges::any_of(std::as_const(slots_).slots(), [](const SlotState& state) { return state.chosen_for_us || state.attempted != nullptr; });
  if (!moved && !slots_.looks_for_placed()) co_return;
  Result<std::vector<SlotInfo>> infos = co_await api_.slots(*background_);
  if (infos) {
    believe(*infos);
  } else if (!is_late(infos.error())) {
    for (SlotState& state : slots_.slots()) state.attempted.reset();
  }
}

Task<void> CachedBackend::look_at_slots() {
  // While something runs is not the moment to ask; a slot that was overwritten shows when it is next used. But the next restore must not
  // go where the backend has placed something.
  const bool quiet = scheduler_.leased() == 0 || slots_.looks_for_placed();
  if (phase_ == BackendPhase::ready && quiet && foreign_ == 0 && co_await may_touch()) {
    Result<std::vector<SlotInfo>> infos = co_await api_.slots(stopping_);
    if (infos) believe(*infos);
  }
  schedule_write_back();
}

void CachedBackend::sweep_strays() {
  if (store_ != nullptr && store_->strays_may_come() && !std::exchange(sweeping_, true)) spawn(sweep());
}

// Files of saves that nobody waits for any more.
Task<void> CachedBackend::sweep() {
  constexpr std::chrono::seconds longest{60};
  for (std::chrono::seconds wait{1}; store_->strays_may_come() && !stopping_.cancelled(); wait = std::min(wait * 2, longest)) {
    co_await rest(wait);
    (void)co_await store_->flush();
  }
  sweeping_ = false;
}

// llama-server would put a slot action off until that request ends, and what it has put off besides for longer: ending an action, it
// does not begin the next of those (seen with build 11669).
Task<bool> CachedBackend::taken(int slot, const CancelSource* left) {
  if (foreign_ == 0) co_return false;
  // One of ours that was broken off ends by itself, once the backend has been asked nothing for a second.
  constexpr std::chrono::milliseconds quiet{1200};
  for (;;) {
    const Result<std::vector<SlotInfo>> infos = co_await api_.slots(*background_);
    if (!infos) co_return false;
    const bool busy = std::ranges::any_of(*infos, [&](const SlotInfo& info) { return info.id == slot && info.processing; });
    if (!busy) co_return false;
    if (stopping_.cancelled() || !ends_by_itself(std::as_const(slots_).at(slot))) break;
    co_await rest(quiet);
    if (left != nullptr && left->cancelled()) co_return false;  // nobody wants it any more
  }
  slots_.forget(slot);
  co_return true;
}

// The task there is one of ours whose client has left, for all we know. Our looks put its end off.
bool CachedBackend::ends_by_itself(const SlotState& state) const {
  constexpr double put_off_s = 1.2;
  const std::chrono::duration<double> since = std::chrono::steady_clock::now() - state.attempted_at;
  return state.attempted != nullptr && since.count() < seconds_until_noticed() + put_off_s;
}

double CachedBackend::seconds_until_noticed() const {
  constexpr double silence_s = 1.0;
  constexpr double batch = 2048;  // its default
  return silence_s + costs_.prefill_seconds(0, batch);
}

Task<bool> CachedBackend::find_placed(int slot) {
  if (!slots_.looks_for_placed()) co_return false;
  const Result<std::vector<SlotInfo>> infos = co_await api_.slots(*background_);
  if (!infos) co_return false;
  const auto info = std::ranges::find(*infos, slot, &SlotInfo::id);
  if (info == infos->end() || !slots_.believe_placed(slot, info->n_prompt_tokens.value_or(0))) co_return false;
  note_slot_content(slot);
  SlotState& state = slots_.at(slot);
  state.doubtful = false;  // nothing starts meanwhile
  ram_cache_.remove(state.known);
  co_return true;
}

void CachedBackend::find_taken(bool soon) {
  if (look_soon_ == nullptr) {
    look_soon_ = std::make_shared<Wakeup>(executor_);
    spawn(look_for_taken(soon));
  } else if (soon) {
    look_soon_->notify();
  }
}

// While somebody waits for such a slot it is looked at again: what runs there may have ended unnoticed. Seldom, for what the backend is
// asked puts off its notice of a client that left.
Task<void> CachedBackend::look_for_taken(bool at_first_soon) {
  constexpr std::chrono::milliseconds soon{20}, later{200}, seldom{1200}, most{5000};
  const auto found = [this] { return static_cast<std::uint64_t>(std::ranges::count_if(std::as_const(slots_).slots(), &SlotState::taken)); };
  std::chrono::milliseconds pause = at_first_soon ? soon : seldom;
  for (;;) {
    const std::shared_ptr<Wakeup> asked = look_soon_;
    const std::function<void()> wake = [asked] { asked->notify(); };
    const CancelSource::Registration registration = stopping_.on_cancel(wake);
    const bool hurry = co_await asked->wait_for(pause) && pause > soon;
    if (foreign_ == 0 || phase_ != BackendPhase::ready || stopping_.cancelled()) break;
    if (!hurry) {
      co_await look_who_runs();
      scheduler_.reconsider();
    }
    if (asked->notified()) {
      pause = soon;
      look_soon_ = std::make_shared<Wakeup>(executor_);
    } else if (pause == soon && found() < foreign_) {
      pause = later;  // its task had not begun
    } else if (found() > 0 && scheduler_.waiting() > 0) {
      pause = std::clamp(pause * 2, seldom, most);
    } else {
      break;
    }
  }
  look_soon_.reset();
}

Task<void> CachedBackend::look_who_runs() {
  std::vector<bool> ours;
  for (const SlotState& state : std::as_const(slots_).slots()) ours.push_back(state.running);
  const Result<std::vector<SlotInfo>> infos = co_await api_.slots(stopping_);
  if (!infos || foreign_ == 0) co_return;
  for (const SlotInfo& info : *infos) {
    if (info.id < 0 || info.id >= static_cast<int>(std::min(ours.size(), slots_.slots().size()))) continue;
    SlotState& state = slots_.at(info.id);
    state.taken = info.processing && !state.running && !ours[static_cast<std::size_t>(info.id)] && !ends_by_itself(state);
  }
}

}  // namespace cairn

// Upkeep: what slots hold is saved once nobody is about.
#include <spdlog/spdlog.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <optional>
#include <utility>

#include "request/cached_backend.hpp"

namespace cairn {

namespace {
using std::chrono::milliseconds;
}  // namespace

void CachedBackend::schedule_write_back(bool again) {
  if (write_back_scheduled_ || stopping_.cancelled() || phase_ != BackendPhase::ready) return;
  const bool unsaved = std::ranges::any_of(std::as_const(slots_).slots(), [](const SlotState& state) { return state.unsaved; });
  if (!unsaved && !breaks_off() && (store_ == nullptr || !store_->copies_due())) return;
  write_back_scheduled_ = true;
  spawn(write_back(again));
}

// A task whose client has left is still being computed, as far as we know.
bool CachedBackend::breaks_off() const {
  return std::ranges::any_of(std::as_const(slots_).slots(), [](const SlotState& state) { return state.attempted != nullptr && !state.leased; });
}

// A client that sends its next request at once should not find the backend saving: what takes long waits as long before it is
// begun, and where requests come in a rhythm, until that is over.
milliseconds CachedBackend::quiet_before_write_back() const {
  constexpr double longest_s = 3.0;
  constexpr double noticed_s = 0.5;
  constexpr double bearable_share = 0.03;  // of the time that requests take
  constexpr milliseconds while_disk_refuses{5000};
  // The backend looks for clients that have left when nothing has come back for them, and nobody has asked it anything, for a second.
  constexpr milliseconds until_it_notices{2000};
  if (store_ != nullptr && store_->saving_waits()) return while_disk_refuses;
  if (breaks_off()) return std::max(options_.write_back_delay, until_it_notices);
  double save_s = 0;
  for (const SlotState& state : std::as_const(slots_).slots()) {
    if (!state.unsaved) continue;
    save_s = std::max(save_s, save_seconds(state) + costs_.commit_seconds(bytes_of(state)));
  }
  double quiet_s = std::min(save_s, longest_s);
  if (save_s > noticed_s) quiet_s = pauses_.quiet_before(quiet_s, save_s, bearable_share * lease_s_);
  return std::max(options_.write_back_delay, milliseconds{static_cast<int>(quiet_s * 1000)});
}

Task<void> CachedBackend::rest(milliseconds limit) {
  Wakeup pause(executor_);
  const std::function<void()> wake = [&pause] { pause.notify(); };
  const CancelSource::Registration registration = stopping_.on_cancel(wake);
  (void)co_await pause.wait_for(limit);
}

Task<void> CachedBackend::write_back(bool again) {
  // First a moment of quiet since the last request, as the next may come at once; and since the last try.
  milliseconds quiet = quiet_before_write_back();
  co_await rest(again ? quiet : options_.write_back_delay);
  for (milliseconds left{1}; left.count() > 0 && !stopping_.cancelled();) {
    quiet = quiet_before_write_back();
    const auto past = std::chrono::steady_clock::now() - idle_since_;
    left = std::chrono::ceil<milliseconds>(std::max(quiet - past, late_until_ - std::chrono::steady_clock::now()));
    if (left.count() > 0) co_await rest(left);
  }
  write_back_scheduled_ = false;
  if (store_ != nullptr && store_->saving_waits()) {
    schedule_write_back(true);
    co_return;
  }
  if (stopping_.cancelled() || !co_await may_touch()) co_return;
  if (nobody_is_about() && phase_ == BackendPhase::ready) {
    co_await find_chosen();
    // Behind what is still being computed a save would be put off; and what was just found may ask for more quiet.
    if (breaks_off() || quiet_before_write_back() > quiet) {
      schedule_write_back(true);
      co_return;
    }
  }
  for (std::size_t i = 0; i < slots_.slots().size(); ++i) {
    // A save stalls every slot of the backend: only while nobody is served. The last request to end brings us back.
    if (!nobody_is_about() || phase_ != BackendPhase::ready) co_return;
    const SlotState& state = slots_.slots()[i];
    if (!state.unsaved || !can_save()) continue;
    std::optional<Lease> lease = scheduler_.try_acquire(state.id);
    if (!lease) continue;
    slots_.at(state.id).upkeep = true;
    // Nobody may start a task before the backend has the save: it would clear the slot.
    Result<StartGate> gate = co_await gate_if_needed(stopping_);
    if (!gate) co_return;
    if (!co_await may_touch()) co_return;
    // Whoever comes for the slot need not wait for the disk.
    std::function<void()> give_back = [&gate, &lease] {
      gate->release();
      lease->release();
    };
    Result<void> saved = co_await save(state.id, std::move(give_back));
    if (!saved) {
      // Most likely it would be again at once.
      constexpr std::chrono::seconds while_late{10};
      const auto now = std::chrono::steady_clock::now();
      const bool late = puts_off(saved.error());
      const bool again_late = late && now - late_until_ < while_late;
      if (late) late_until_ = now + while_late;
      // Trouble with the disk is said once, by the store.
      const bool said = store_->saving_trouble().has_value() || again_late;
      spdlog::log(said ? spdlog::level::debug : spdlog::level::warn, "slot {} was not saved: {}", lease->slot(), to_string(saved.error()));
      if (saved.error().source == ErrorSource::upstream && saved.error().code == ErrorCode::refused) suspect_down();
    }
  }
  if (store_ != nullptr && store_->saving_waits()) schedule_write_back(true);
  if (catalogue_ != nullptr) (void)co_await catalogue_->keep_learned(probe_.name_space);
  if (store_ != nullptr) (void)co_await store_->put_setting(rates_key(), costs_.to_json());
  co_await copy_down(std::nullopt);
}

}  // namespace cairn

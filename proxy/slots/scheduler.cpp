#include "slots/scheduler.hpp"

#include <algorithm>
#include <utility>

namespace cairn {

Error too_many_wait() { return Error{ErrorCode::no_space, ErrorSource::internal, false, 0, "too many requests wait for a slot"}; }

Lease::Lease(Lease&& other) noexcept : scheduler_(std::exchange(other.scheduler_, nullptr)), slot_(other.slot_) {}
Lease& Lease::operator=(Lease&& other) noexcept {
  if (this != &other) {
    release();
    scheduler_ = std::exchange(other.scheduler_, nullptr);
    slot_ = other.slot_;
  }
  return *this;
}
void Lease::release() {
  if (Scheduler* scheduler = std::exchange(scheduler_, nullptr)) scheduler->release(slot_);
}

StartGate::StartGate(StartGate&& other) noexcept : scheduler_(std::exchange(other.scheduler_, nullptr)) {}
StartGate& StartGate::operator=(StartGate&& other) noexcept {
  if (this != &other) {
    release();
    scheduler_ = std::exchange(other.scheduler_, nullptr);
  }
  return *this;
}
void StartGate::release() {
  if (Scheduler* scheduler = std::exchange(scheduler_, nullptr)) scheduler->leave_gate();
}

Scheduler::Scheduler(boost::asio::any_io_executor executor, SlotTable& table, Limits limits)
    : executor_(std::move(executor)), table_(table), limits_(limits) {}

void Scheduler::take(int slot) {
  SlotState& state = table_.at(slot);
  state.leased = true;
  state.leased_at = std::chrono::steady_clock::now();
  ++leased_;
}

Lease Scheduler::grant(int slot) {
  take(slot);
  return Lease{this, slot};
}

ResultTask<Lease> Scheduler::acquire(Choose choose, CancelSource& cancel) {
  if (cancel.cancelled()) co_return upstream_error(ErrorCode::cancelled, "left before it had a slot");
  if (table_.slots().empty()) co_return upstream_error(ErrorCode::unsupported, "the backend has no slots");
  auto waiter = std::make_shared<Waiter>(executor_);
  waiter->choose = std::move(choose);
  queue_.push_back(waiter);
  dispatch();
  // Those that wait may have declined the idle slots.
  if (waiter->slot < 0 && queue_.size() > limits_.max_waiting) {
    queue_.remove(waiter);
    co_return too_many_wait();
  }
  if (waiter->slot < 0 && table_.slots().size() == leased_) (void)waiter->choose({}, true);
  std::function<void()> leave = [waiter] {
    waiter->cancelled = true;
    waiter->wakeup.notify();
  };
  const CancelSource::Registration registration = cancel.on_cancel(std::move(leave));
  const bool limited = limits_.longest_wait.count() > 0;
  const auto patience = limited ? std::min(limits_.patience, limits_.longest_wait) : limits_.patience;
  if (!co_await wait_patiently(waiter, patience)) {
    waiter->patient = false;
    dispatch();
    if (limited) {
      (void)co_await waiter->wakeup.wait_for(limits_.longest_wait - patience);
    } else {
      co_await waiter->wakeup.wait();
    }
  }
  if (waiter->slot < 0) {
    queue_.remove(waiter);
    if (!waiter->cancelled) co_return Error{ErrorCode::no_space, ErrorSource::internal, false, 0, "no slot came free in time"};
    if (!cancel.cancelled()) co_return upstream_error(ErrorCode::unsupported, "the backend has no slots any more");
    co_return upstream_error(ErrorCode::cancelled, "left while it waited for a slot");
  }
  // dispatch() has leased it already: it is ours even when the client left in the meantime.
  co_return Lease{this, waiter->slot};
}

// False: nobody has woken it for so long. An idle slot that it declined for a busy one's sake is offered again now and then: that one
// may take longer than was thought.
Task<bool> Scheduler::wait_patiently(std::shared_ptr<Waiter> waiter, std::chrono::milliseconds patience) {
  while (patience.count() > 0) {
    const auto slice = std::min(patience, limits_.offered_again);
    if (co_await waiter->wakeup.wait_for(slice)) co_return true;
    patience -= slice;
    // The others are asked along with the first.
    if (patience.count() > 0 && !queue_.empty() && queue_.front() == waiter) dispatch();
  }
  co_return waiter->slot >= 0;
}

std::optional<Lease> Scheduler::try_acquire(int slot) {
  if (!queue_.empty() || table_.at(slot).leased) return std::nullopt;
  return grant(slot);
}

void Scheduler::dispatch() {
  for (auto at = queue_.begin(); at != queue_.end();) {
    const std::shared_ptr<Waiter> waiter = *at;
    if (waiter->cancelled) {
      at = queue_.erase(at);
      continue;
    }
    std::vector<int> idle;
    for (const SlotState& slot : std::as_const(table_).slots()) {
      if (!slot.leased) idle.push_back(slot.id);
    }
    if (idle.empty()) return;
    const std::optional<int> slot = waiter->choose(idle, waiter->patient && leased_ > 0);
    if (!slot) {
      ++at;
      continue;
    }
    at = queue_.erase(at);
    take(*slot);
    waiter->slot = *slot;
    waiter->wakeup.notify();
  }
}

void Scheduler::slots_changed() {
  if (!table_.slots().empty()) {
    dispatch();
    return;
  }
  for (const std::shared_ptr<Waiter>& waiter : queue_) {
    waiter->cancelled = true;
    waiter->wakeup.notify();
  }
}

void Scheduler::release(int slot) {
  SlotState& state = table_.at(slot);
  state.leased = false;
  state.running = false;
  state.upkeep = false;
  state.target.reset();
  state.in_pieces = false;
  state.piece_end = 0;
  state.wanted_stops.clear();
  --leased_;
  dispatch();
  if (on_release_) on_release_(slot);
}

ResultTask<StartGate> Scheduler::enter_gate(CancelSource& cancel) {
  if (!gate_held_) {
    gate_held_ = true;
    co_return StartGate{this};
  }
  auto waiter = std::make_shared<Waiter>(executor_);
  gate_queue_.push_back(waiter);
  std::function<void()> leave = [waiter] {
    waiter->cancelled = true;
    waiter->wakeup.notify();
  };
  const CancelSource::Registration registration = cancel.on_cancel(std::move(leave));
  co_await waiter->wakeup.wait();
  if (waiter->slot == 0) co_return StartGate{this};  // handed over, perhaps just before the client left
  gate_queue_.remove(waiter);
  co_return upstream_error(ErrorCode::cancelled, "left while it waited for its turn to start");
}

void Scheduler::leave_gate() {
  while (!gate_queue_.empty()) {
    const std::shared_ptr<Waiter> next = gate_queue_.front();
    gate_queue_.pop_front();
    if (next->cancelled) continue;
    next->slot = 0;  // stays held, now by the next
    next->wakeup.notify();
    return;
  }
  gate_held_ = false;
}

}  // namespace cairn

// Hands out the slots of one backend: a queue in order of arrival, a lease per request, and the start gate.
// Thread: the I/O thread. Errors: cancelled (the client left while it waited), no_space (the queue is full, or the wait was too
// long), unsupported (there are no slots, or none any more).
#pragma once

#include <boost/asio/any_io_executor.hpp>

#include <chrono>
#include <cstddef>
#include <functional>
#include <list>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "base/cancel.hpp"
#include "base/task.hpp"
#include "base/wakeup.hpp"
#include "slots/slot_table.hpp"

namespace cairn {

class Scheduler;

// What a request gets that finds the queue full.
Error too_many_wait();

// A slot while somebody uses it. Gives it back when it goes out of scope.
class [[nodiscard]] Lease {
 public:
  Lease() = default;
  Lease(Lease&& other) noexcept;
  Lease& operator=(Lease&& other) noexcept;
  ~Lease() { release(); }
  void release();
  int slot() const { return slot_; }
  explicit operator bool() const { return scheduler_ != nullptr; }

 private:
  friend class Scheduler;
  Lease(Scheduler* scheduler, int slot) : scheduler_(scheduler), slot_(slot) {}
  Scheduler* scheduler_ = nullptr;
  int slot_ = -1;
};

// While it is held nobody else starts a task. Needed on backends that clear idle slots when any task starts: what was
// restored into a slot must not be cleared before the request that needs it has begun.
class [[nodiscard]] StartGate {
 public:
  StartGate() = default;
  StartGate(StartGate&& other) noexcept;
  StartGate& operator=(StartGate&& other) noexcept;
  ~StartGate() { release(); }
  void release();
  explicit operator bool() const { return scheduler_ != nullptr; }

 private:
  friend class Scheduler;
  explicit StartGate(Scheduler* scheduler) : scheduler_(scheduler) {}
  Scheduler* scheduler_ = nullptr;
};

class Scheduler {
 public:
  struct Limits {
    std::size_t max_waiting = 1024;
    std::chrono::milliseconds patience{10'000};  // to wait for a better slot than those that are idle
    std::chrono::milliseconds offered_again{1000};  // an idle slot that was declined meanwhile
    std::chrono::milliseconds longest_wait{0};   // in the queue altogether; 0: as long as the client does
  };
  Scheduler(boost::asio::any_io_executor executor, SlotTable& table, Limits limits);

  // Picks one of the idle slots, or nullopt to wait for a better one. Those behind may take these meanwhile, and it is asked
  // again, before them, whenever a slot comes free (and each `offered_again` while it is the first); with none idle it is asked
  // once, when the wait begins. Not `patient`: it has waited long enough, or nothing is in use that could come free; it declines
  // then only what would make it wait longer still.
  using Choose = std::function<std::optional<int>(std::span<const int> idle, bool patient)>;
  // In order of arrival.
  ResultTask<Lease> acquire(Choose choose, CancelSource& cancel);
  // A slot holds something new while it stays in use: whoever waits may choose otherwise now.
  void reconsider() { dispatch(); }
  // For upkeep: only when the slot is idle and nobody waits.
  std::optional<Lease> try_acquire(int slot);

  // The table has other slots now: whoever waits is served, or gets `unsupported` when there are none.
  void slots_changed();

  ResultTask<StartGate> enter_gate(CancelSource& cancel);
  bool gate_wanted() const { return !gate_queue_.empty(); }

  // Called after each release, with the slot.
  void on_release(std::function<void(int)> callback) { on_release_ = std::move(callback); }

  std::size_t leased() const { return leased_; }
  std::size_t waiting() const { return queue_.size(); }

 private:
  friend class Lease;
  friend class StartGate;
  struct Waiter {
    explicit Waiter(boost::asio::any_io_executor executor) : wakeup(std::move(executor)) {}
    Choose choose;
    Wakeup wakeup;
    bool patient = true;
    int slot = -1;
    bool cancelled = false;
  };
  Task<bool> wait_patiently(std::shared_ptr<Waiter> waiter, std::chrono::milliseconds patience);
  void release(int slot);
  void leave_gate();
  void dispatch();
  void take(int slot);
  Lease grant(int slot);

  boost::asio::any_io_executor executor_;
  SlotTable& table_;
  Limits limits_;
  std::list<std::shared_ptr<Waiter>> queue_;
  std::list<std::shared_ptr<Waiter>> gate_queue_;
  bool gate_held_ = false;
  std::size_t leased_ = 0;
  std::function<void(int)> on_release_;
};

}  // namespace cairn

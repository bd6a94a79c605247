#include "slots/scheduler.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>

#include <algorithm>
#include <cstdlib>
#include <exception>
#include <iostream>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>

namespace cairn {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

std::optional<int> first_idle(std::span<const int> idle, bool) { return idle.empty() ? std::nullopt : std::optional(idle.front()); }

// Somebody who asks for a slot and keeps it until told.
struct Client {
  std::string name;
  CancelSource cancel;
  Scheduler::Choose choose = &first_idle;
  std::optional<Result<Lease>> lease;
  std::optional<Result<StartGate>> gate;
  bool has_lease() const { return lease && *lease; }
  bool has_gate() const { return gate && *gate; }
  ErrorCode error() const { return lease && !*lease ? lease->error().code : ErrorCode::internal; }
};

class SchedulerTest : public ::testing::Test {
 protected:
  SchedulerTest() { make(2, 8); }
  void make(int slots, std::size_t max_waiting) {
    everybody_leaves();
    scheduler_.reset();
    table_ = std::make_unique<SlotTable>(slots);
    scheduler_ = std::make_unique<Scheduler>(io_.get_executor(), *table_, Scheduler::Limits{.max_waiting = max_waiting});
  }
  ~SchedulerTest() override {
    everybody_leaves();
  }

  // A coroutine of ours is never destroyed while it is suspended.
  void everybody_leaves() {
    for (const auto& one : clients_) one->cancel.cancel();
    poll();
    for (const auto& one : clients_) {
      one->lease.reset();
      one->gate.reset();
      poll();
    }
    clients_.clear();
  }

  Task<void> acquire(Client& client) {
    client.lease.emplace(co_await scheduler_->acquire(client.choose, client.cancel));
    served_.push_back(client.name);
  }
  Task<void> enter(Client& client) {
    client.gate.emplace(co_await scheduler_->enter_gate(client.cancel));
    served_.push_back(client.name);
  }
  template <class T>
  void begin(Task<T> task) {
    boost::asio::co_spawn(io_, std::move(task), [](std::exception_ptr thrown) {
      if (thrown) std::rethrow_exception(thrown);
    });
  }
  Client& client(std::string name) {
    clients_.push_back(std::make_unique<Client>());
    clients_.back()->name = std::move(name);
    return *clients_.back();
  }
  // Asks and lets everything settle.
  Client& asks(std::string name, Scheduler::Choose choose = &first_idle) {
    Client& one = client(std::move(name));
    one.choose = std::move(choose);
    begin(acquire(one));
    poll();
    return one;
  }
  Client& asks_gate(std::string name) {
    Client& one = client(std::move(name));
    begin(enter(one));
    poll();
    return one;
  }
  // Everything that can happen without anybody's doing has happened.
  void poll() {
    io_.restart();
    io_.poll();
  }
  void give_back(Client& one) {
    one.lease.reset();
    poll();
  }
  void nothing_left() {
    EXPECT_EQ(scheduler_->leased(), 0u);
    EXPECT_EQ(scheduler_->waiting(), 0u);
    for (const SlotState& slot : table_->slots()) EXPECT_FALSE(slot.leased);
  }

  boost::asio::io_context io_;
  std::unique_ptr<SlotTable> table_;
  std::unique_ptr<Scheduler> scheduler_;
  std::vector<std::unique_ptr<Client>> clients_;
  std::vector<std::string> served_;   // in the order they learned of it, cancelled ones too
  std::vector<std::string> granted_;
};

TEST_F(SchedulerTest, SlotsAreHandedOutWhileThereAreSome) {
  Client& a = asks("a");
  Client& b = asks("b");
  ASSERT_TRUE(a.has_lease() && b.has_lease());
  EXPECT_EQ((*a.lease)->slot(), 0);
  EXPECT_EQ((*b.lease)->slot(), 1);
  EXPECT_TRUE(table_->at(0).leased && table_->at(1).leased);
  EXPECT_EQ(scheduler_->leased(), 2u);
  Client& c = asks("c");
  EXPECT_FALSE(c.lease);
  EXPECT_EQ(scheduler_->waiting(), 1u);
  give_back(b);
  ASSERT_TRUE(c.has_lease());
  EXPECT_EQ((*c.lease)->slot(), 1);
  give_back(a);
  give_back(c);
  nothing_left();
}

TEST_F(SchedulerTest, InOrderOfArrival) {
  make(1, 8);
  std::vector<Client*> queue{&asks("a"), &asks("b"), &asks("c"), &asks("d")};
  for (Client* one : queue) {
    ASSERT_TRUE(one->has_lease()) << one->name;
    give_back(*one);
  }
  EXPECT_THAT(served_, ElementsAre("a", "b", "c", "d"));
  nothing_left();
}

TEST_F(SchedulerTest, WhoArrivesAfterAReleaseStaysBehindTheQueue) {
  make(1, 8);
  Client& a = asks("a");
  Client& b = asks("b");
  a.lease.reset();  // b has it now, though it has not run yet
  Client& c = asks("c");
  EXPECT_TRUE(b.has_lease());
  EXPECT_FALSE(c.lease);
  give_back(b);
  EXPECT_TRUE(c.has_lease());
}

TEST_F(SchedulerTest, WhoWaitsForABetterSlotLetsOthersHaveTheRestAndIsAskedFirstAgain) {
  Client& a = asks("a");
  Client& b = asks("b");
  std::vector<std::vector<int>> shown;
  Client& picky = asks("picky", [&](std::span<const int> idle, bool patient) -> std::optional<int> {
    shown.emplace_back(idle.begin(), idle.end());
    EXPECT_EQ(patient, scheduler_->leased() > 0);
    for (const int id : idle) {
      if (id == 1) return id;
    }
    return std::nullopt;
  });
  Client& d = asks("d");
  Client& e = asks("e");
  EXPECT_THAT(shown, ElementsAre(IsEmpty()));  // nothing to choose from: it hears so once
  give_back(a);
  EXPECT_FALSE(picky.lease);
  ASSERT_TRUE(d.has_lease());
  EXPECT_EQ((*d.lease)->slot(), 0);
  EXPECT_THAT(shown, ElementsAre(IsEmpty(), ElementsAre(0)));
  give_back(b);
  ASSERT_TRUE(picky.has_lease());
  EXPECT_EQ((*picky.lease)->slot(), 1);
  EXPECT_FALSE(e.lease);
  EXPECT_THAT(shown, ElementsAre(IsEmpty(), ElementsAre(0), ElementsAre(1)));
}

TEST_F(SchedulerTest, PatienceEnds) {
  scheduler_.reset();
  scheduler_ = std::make_unique<Scheduler>(io_.get_executor(), *table_, Scheduler::Limits{.patience = std::chrono::milliseconds{1}});
  Client& a = asks("a");
  bool was_patient = false;
  Client& picky = asks("picky", [&was_patient](std::span<const int> idle, bool patient) {
    was_patient = was_patient || patient;
    return patient || idle.empty() ? std::nullopt : std::optional(idle.front());
  });
  EXPECT_TRUE(was_patient);
  while (!picky.lease) io_.run_one();
  EXPECT_TRUE(picky.has_lease());
  EXPECT_TRUE(a.has_lease());
}

// A request waited ten seconds for a busy slot beside an idle one, although it would not have waited one.
TEST_F(SchedulerTest, AnIdleSlotThatWasDeclinedIsOfferedAgain) {
  scheduler_.reset();
  scheduler_ = std::make_unique<Scheduler>(io_.get_executor(), *table_, Scheduler::Limits{.offered_again = std::chrono::milliseconds{1}});
  Client& a = asks("a");
  int asked = 0;
  Client& picky = asks("picky", [&asked](std::span<const int> idle, bool patient) {
    return idle.empty() || (patient && ++asked < 4) ? std::nullopt : std::optional(idle.front());
  });
  EXPECT_EQ(asked, 1);
  while (!picky.lease) io_.run_one();
  EXPECT_EQ(asked, 4);
  EXPECT_TRUE(a.has_lease());
}

TEST_F(SchedulerTest, NobodyIsPatientWhereNothingCanComeFree) {
  Client& picky = asks("picky", [](std::span<const int> idle, bool patient) {
    return patient || idle.empty() ? std::nullopt : std::optional(idle.front());
  });
  EXPECT_TRUE(picky.has_lease());
}

TEST_F(SchedulerTest, AWaitThatIsTooLongEndsWithoutASlot) {
  scheduler_.reset();
  table_ = std::make_unique<SlotTable>(1);
  const Scheduler::Limits limits{.longest_wait = std::chrono::milliseconds{1}};
  scheduler_ = std::make_unique<Scheduler>(io_.get_executor(), *table_, limits);
  Client& a = asks("a");
  Client& late = asks("late");
  while (!late.lease) io_.run_one();
  EXPECT_EQ(late.error(), ErrorCode::no_space);
  EXPECT_EQ(scheduler_->waiting(), 0u);
  give_back(a);
  nothing_left();
}

TEST_F(SchedulerTest, AQueueThatIsFullOfThoseWhoDeclineTurnsNobodyAwayFromAnIdleSlot) {
  make(2, 1);
  Client& a = asks("a");
  Client& picky = asks("picky", [](std::span<const int>, bool) { return std::optional<int>{}; });
  EXPECT_FALSE(picky.lease);
  Client& b = asks("b");
  EXPECT_TRUE(b.has_lease());
  Client& c = asks("c");
  ASSERT_TRUE(c.lease);
  EXPECT_EQ(c.error(), ErrorCode::no_space);
  EXPECT_EQ(scheduler_->waiting(), 1u);
  picky.cancel.cancel();
  poll();
  give_back(a);
  give_back(b);
  nothing_left();
}

TEST_F(SchedulerTest, WhoWaitsIsAskedAgainWhenASlotInUseHasSomethingNew) {
  Client& a = asks("a");
  bool saved = false;
  Client& waits = asks("waits", [&](std::span<const int> idle, bool) { return saved && !idle.empty() ? std::optional(idle.front()) : std::nullopt; });
  EXPECT_FALSE(waits.lease);
  saved = true;
  scheduler_->reconsider();
  poll();
  EXPECT_TRUE(waits.has_lease());
  EXPECT_TRUE(a.has_lease());
}

TEST_F(SchedulerTest, LeavingWhileQueued) {
  make(1, 8);
  Client& a = asks("a");
  Client& b = asks("b");
  Client& c = asks("c");
  Client& d = asks("d");
  c.cancel.cancel();
  poll();
  EXPECT_EQ(c.error(), ErrorCode::cancelled);
  EXPECT_EQ(scheduler_->waiting(), 2u);
  b.cancel.cancel();  // at the head
  poll();
  EXPECT_EQ(b.error(), ErrorCode::cancelled);
  EXPECT_FALSE(d.lease);
  give_back(a);
  EXPECT_TRUE(d.has_lease());
  give_back(d);
  nothing_left();
}

TEST_F(SchedulerTest, WhoWaitsForABetterSlotHoldsUpNobodyAndMayLeave) {
  Client& a = asks("a");
  Client& picky = asks("picky", [](std::span<const int>, bool) { return std::optional<int>(); });
  Client& c = asks("c");
  EXPECT_TRUE(c.has_lease());
  picky.cancel.cancel();
  poll();
  EXPECT_EQ(picky.error(), ErrorCode::cancelled);
  EXPECT_EQ(scheduler_->waiting(), 0u);
  EXPECT_TRUE(a.has_lease());
}

TEST_F(SchedulerTest, LeavingBeforeAsking) {
  Client& a = client("a");
  a.cancel.cancel();
  begin(acquire(a));
  poll();
  EXPECT_EQ(a.error(), ErrorCode::cancelled);
  nothing_left();
}

TEST_F(SchedulerTest, LeavingAtTheMomentOfTheGrant) {
  make(1, 8);
  for (const bool cancel_first : {false, true}) {
    Client& a = asks("a");
    Client& b = asks("b");
    Client& c = asks("c");
    if (cancel_first) b.cancel.cancel();
    a.lease.reset();
    if (!cancel_first) b.cancel.cancel();
    poll();
    // Granted before it left: it has the slot, and giving that back is its own business. Else it has none.
    EXPECT_EQ(b.has_lease(), !cancel_first);
    if (!cancel_first) give_back(b);
    EXPECT_TRUE(c.has_lease());
    give_back(c);
    nothing_left();
  }
}

TEST_F(SchedulerTest, LeavingAfterwardsChangesNothing) {
  Client& a = asks("a");
  a.cancel.cancel();
  poll();
  EXPECT_TRUE(a.has_lease());
  give_back(a);
  nothing_left();
}

TEST_F(SchedulerTest, TheQueueIsBounded) {
  make(1, 2);
  Client& a = asks("a");
  Client& b = asks("b");
  Client& c = asks("c");
  Client& d = asks("d");
  EXPECT_EQ(d.error(), ErrorCode::no_space);
  EXPECT_EQ(scheduler_->waiting(), 2u);
  b.cancel.cancel();
  poll();
  Client& e = asks("e");
  EXPECT_FALSE(e.lease);
  give_back(a);
  EXPECT_TRUE(c.has_lease());
  give_back(c);
  EXPECT_TRUE(e.has_lease());
  give_back(e);
  nothing_left();
}

TEST_F(SchedulerTest, ALeaseIsGivenBackOnEveryPath) {
  make(1, 8);
  std::vector<int> released;
  scheduler_->on_release([&](int slot) { released.push_back(slot); });
  {
    Client& a = asks("a");
    Lease moved = std::move(**a.lease);
    EXPECT_TRUE(moved);
    EXPECT_FALSE(**a.lease);
    a.lease.reset();  // the empty one
    EXPECT_EQ(scheduler_->leased(), 1u);
    moved.release();
    EXPECT_FALSE(moved);
    EXPECT_EQ(scheduler_->leased(), 0u);
    moved.release();
  }
  EXPECT_THAT(released, ElementsAre(0));
  {
    std::optional<Lease> first = scheduler_->try_acquire(0);
    ASSERT_TRUE(first);
    Lease other;
    other = std::move(*first);
    Lease& same = other;
    other = std::move(same);
    EXPECT_EQ(scheduler_->leased(), 1u);
    other = Lease();
    EXPECT_EQ(scheduler_->leased(), 0u);
  }
  EXPECT_THAT(released, ElementsAre(0, 0));
  // A coroutine that ends with an exception.
  Client& b = client("b");
  const auto throws = [](Scheduler& scheduler, CancelSource& cancel) -> Task<void> {
    Result<Lease> lease = co_await scheduler.acquire(&first_idle, cancel);
    throw std::runtime_error("a bug");
  };
  bool thrown_out = false;
  boost::asio::co_spawn(io_, throws(*scheduler_, b.cancel), [&](std::exception_ptr thrown) { thrown_out = thrown != nullptr; });
  poll();
  EXPECT_TRUE(thrown_out);
  nothing_left();
}

TEST_F(SchedulerTest, AReleasedSlotRunsNoTask) {
  Client& a = asks("a");
  table_->at(0).running = true;
  give_back(a);
  EXPECT_FALSE(table_->at(0).running);
}

TEST_F(SchedulerTest, UpkeepTakesASlotOnlyWhenNobodyWaits) {
  Client& a = asks("a");
  EXPECT_FALSE(scheduler_->try_acquire(0));
  std::optional<Lease> upkeep = scheduler_->try_acquire(1);
  ASSERT_TRUE(upkeep);
  EXPECT_EQ(upkeep->slot(), 1);
  Client& b = asks("b", [](std::span<const int> idle, bool) -> std::optional<int> {
    return !idle.empty() && idle.front() == 0 ? std::optional(0) : std::nullopt;
  });
  EXPECT_FALSE(b.lease);
  upkeep.reset();
  poll();
  EXPECT_FALSE(b.lease);                         // waits for slot 0
  EXPECT_FALSE(scheduler_->try_acquire(1));      // idle, but somebody waits
  give_back(a);
  EXPECT_TRUE(b.has_lease());
  EXPECT_TRUE(scheduler_->try_acquire(1));
}

TEST_F(SchedulerTest, UpkeepOnReleaseComesAfterWhoWaits) {
  make(1, 8);
  std::optional<Lease> upkeep;
  int calls = 0;
  scheduler_->on_release([&](int slot) {
    ++calls;
    if (!upkeep) upkeep = scheduler_->try_acquire(slot);
  });
  Client& a = asks("a");
  Client& b = asks("b");
  give_back(a);
  EXPECT_EQ(calls, 1);
  EXPECT_FALSE(upkeep);
  EXPECT_TRUE(b.has_lease());
  give_back(b);
  EXPECT_EQ(calls, 2);
  ASSERT_TRUE(upkeep);
  Client& c = asks("c");
  EXPECT_FALSE(c.lease);
  upkeep->release();
  poll();
  EXPECT_TRUE(c.has_lease());
  give_back(c);
  scheduler_->on_release({});
  upkeep.reset();
  nothing_left();
}

TEST_F(SchedulerTest, TheGateIsHandedOverInOrder) {
  Client& a = asks_gate("a");
  ASSERT_TRUE(a.has_gate());
  EXPECT_FALSE(scheduler_->gate_wanted());
  Client& b = asks_gate("b");
  Client& c = asks_gate("c");
  EXPECT_FALSE(b.gate || c.gate);
  EXPECT_TRUE(scheduler_->gate_wanted());
  a.gate.reset();
  Client& d = asks_gate("d");  // nobody slips in between the hand-over and b's next step
  EXPECT_TRUE(b.has_gate());
  EXPECT_FALSE(c.gate || d.gate);
  (*b.gate)->release();
  poll();
  EXPECT_TRUE(c.has_gate());
  EXPECT_FALSE(d.gate);
  c.gate.reset();
  poll();
  EXPECT_TRUE(d.has_gate());
  EXPECT_FALSE(scheduler_->gate_wanted());
  d.gate.reset();
  EXPECT_TRUE(asks_gate("e").has_gate());
}

TEST_F(SchedulerTest, LeavingTheGatesQueue) {
  Client& a = asks_gate("a");
  Client& b = asks_gate("b");
  Client& c = asks_gate("c");
  b.cancel.cancel();
  poll();
  ASSERT_TRUE(b.gate && !*b.gate);
  EXPECT_EQ(b.gate->error().code, ErrorCode::cancelled);
  Client& gone = client("gone");
  gone.cancel.cancel();
  begin(enter(gone));
  poll();
  ASSERT_TRUE(gone.gate && !*gone.gate);
  a.gate.reset();
  poll();
  EXPECT_TRUE(c.has_gate());
  c.gate.reset();
  EXPECT_FALSE(scheduler_->gate_wanted());
  EXPECT_TRUE(asks_gate("d").has_gate());
}

TEST_F(SchedulerTest, LeavingAtTheMomentOfTheHandOver) {
  for (const bool cancel_first : {false, true}) {
    Client& a = asks_gate("a");
    ASSERT_TRUE(a.has_gate());
    Client& b = asks_gate("b");
    Client& c = asks_gate("c");
    if (cancel_first) b.cancel.cancel();
    a.gate.reset();
    if (!cancel_first) b.cancel.cancel();
    poll();
    EXPECT_EQ(b.has_gate(), !cancel_first);
    b.gate.reset();
    poll();
    EXPECT_TRUE(c.has_gate());
    c.gate.reset();
    poll();
  }
  EXPECT_TRUE(asks_gate("last").has_gate());
}

TEST_F(SchedulerTest, MovedGatesAreLeftOnce) {
  Client& a = asks_gate("a");
  StartGate gate = std::move(**a.gate);
  a.gate.reset();
  Client& b = asks_gate("b");
  EXPECT_FALSE(b.gate);
  StartGate other;
  other = std::move(gate);
  EXPECT_TRUE(other);
  EXPECT_FALSE(gate);
  other.release();
  other.release();
  poll();
  EXPECT_TRUE(b.has_gate());
  Client& c = asks_gate("c");
  EXPECT_FALSE(c.gate);  // released once, not twice
}

// Clients come, leave and give back in any order: no slot has two users, none is lost, and who waits is served in order.
TEST_F(SchedulerTest, AnyOrderOfEvents) {
  const char* given = std::getenv("CAIRN_TEST_SEED");
  const auto seed = static_cast<std::uint32_t>(given ? std::strtoul(given, nullptr, 10) : std::random_device()());
  std::cout << "CAIRN_TEST_SEED=" << seed << std::endl;
  std::mt19937 random(seed);
  for (int walk = 0; walk < 40; ++walk) {
    SCOPED_TRACE("walk " + std::to_string(walk) + ", CAIRN_TEST_SEED=" + std::to_string(seed));
    served_.clear();
    granted_.clear();
    const int slots = 1 + static_cast<int>(random() % 3);
    make(slots, 6);
    std::vector<Client*> alive;
    for (int step = 0; step < 200; ++step) {
      const unsigned what = random() % 5;
      if (what < 2) {
        Client& one = client(std::to_string(10000 + step));
        // In the order of the grants: who is woken resumes a turn of the loop later than who found a slot idle.
        one.choose = [this, name = one.name](std::span<const int> idle, bool patient) {
          const std::optional<int> slot = first_idle(idle, patient);
          if (slot) granted_.push_back(name);
          return slot;
        };
        begin(acquire(one));
        alive.push_back(&one);
      } else if (!alive.empty()) {
        Client& one = *alive[random() % alive.size()];
        if (what == 2) one.cancel.cancel();
        else one.lease.reset();
      }
      if (random() % 3 != 0) poll();
      std::size_t in_use = 0;
      for (const SlotState& slot : std::as_const(*table_).slots()) in_use += slot.leased;
      ASSERT_EQ(in_use, scheduler_->leased());
      std::vector<int> users(static_cast<std::size_t>(slots));
      for (Client* one : alive) {
        if (one->has_lease() && **one->lease) ++users[static_cast<std::size_t>((*one->lease)->slot())];
      }
      for (const int count : users) ASSERT_LE(count, 1);
    }
    poll();
    for (int round = 0; round < 300; ++round) {
      for (Client* one : alive) one->lease.reset();
      poll();
    }
    nothing_left();
    ASSERT_EQ(served_.size(), alive.size());  // everybody got an answer
    ASSERT_TRUE(std::is_sorted(granted_.begin(), granted_.end()));
  }
}

}  // namespace
}  // namespace cairn

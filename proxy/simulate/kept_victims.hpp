// The candidates of all rounds of evictions with scores that are kept from one round to the next, where Victims scores all anew:
// what makes replays of many states fast.
// Pure. Owner: one replay.
#pragma once

#include <cstdint>
#include <vector>

#include "checkpoint/eviction.hpp"
#include "simulate/due_queue.hpp"

namespace cairn {

// What states are worth, for whoever looks at one and then asks what becomes of it.
class WorthOverTime {
 public:
  virtual ~WorthOverTime() = default;
  // It will be looked at soon: what that needs can be fetched.
  virtual void expect(const CheckpointFacts& /*record*/) const {}
  virtual StateWorth look_at(const CheckpointFacts& record, std::int64_t now_unix_ms) = 0;
  // Of the one looked at last, as far as age alone decides.
  virtual StateWorth later(std::int64_t unix_ms) const = 0;
};

// The same victims as Victims would choose, where whoever owns the states says what lowers a score (changed()). What age lowers is
// looked at when that is due, but later where it will be worth much more than what goes; what has risen, before it goes. Small
// changes, of what is learned of return times or of other states in the tree, are noticed then.
class KeptVictims {
 public:
  // The caller's, of a state: small, and his to use again for another once it is removed.
  using Number = std::uint32_t;
  static constexpr Number none = ~Number{0};

  // Policy and worth must outlive it, and so must records that are added until they are removed. `much_more`: so many times what
  // goes. Above that the order is of no account; terms of return times move meanwhile, and so does what goes.
  KeptVictims(EvictionPolicy& policy, WorthOverTime& worth, double much_more = 4) : policy_(policy), worth_(worth), much_more_(much_more) {}

  void add(Number number, const CheckpointFacts& record);
  void remove(Number number);
  void changed(Number number);

  // Before any of those below are asked for.
  void begin_round(std::int64_t now_unix_ms);
  // Bytes of those that are worth less than this one, which is not among them; `enough` of them or more are not counted further.
  std::uint64_t bytes_below(const CheckpointFacts& incoming, std::uint64_t enough);
  // `none` when there is none left.
  Number worst();
  // The worst one goes: tells the policy. The caller removes it from the tree before he asks for the next.
  void take();

 private:
  static constexpr std::uint32_t nowhere = ~std::uint32_t{0};
  struct Item {
    const CheckpointFacts* record = nullptr;  // nullptr: not among them
    std::int64_t last_used_unix_ms = 0;        // when it was looked at
    std::int64_t due_ms = 0;                   // when it is to be looked at again
    std::int64_t queued_ms = 0;                // the earliest entry in due_ for it
    std::uint64_t round = 0;                   // when it was looked at
    std::uint32_t at = nowhere;                // in heap_
    bool waits = false;                        // among changed_
  };
  struct Scored {
    double score = 0;
    Number number = 0;
  };

  void look_at_changed();
  void look_at(Number number);
  std::int64_t next_look_ms(const CheckpointFacts& record, double score, double lasts_s);  // when its score is made anew
  const Scored* top();  // with a score of this round
  bool goes_before(const Scored& a, const Scored& b) const;
  void push(const Scored& scored);
  void pop();
  void put(std::size_t at, const Scored& scored);  // there, or up or down from there

  EvictionPolicy& policy_;
  WorthOverTime& worth_;
  double much_more_;
  std::int64_t now_unix_ms_ = 0;
  std::uint64_t round_ = 0;
  double bar_ = 0;  // about the most that went lately was worth
  std::vector<Item> items_;   // by number
  std::vector<Scored> heap_;  // of four children each, the worst on top
  std::vector<Number> changed_;  // those to be looked at in the next round
  std::vector<Scored> set_aside_;
  DueQueue due_;
};

}  // namespace cairn

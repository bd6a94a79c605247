// The candidates of all rounds of evictions with scores that are kept from one round to the next, where Victims scores all anew:
// what makes replays of many states fast.
// Pure. Owner: one replay.
#pragma once

#include <cstdint>
#include <functional>
#include <queue>
#include <set>
#include <unordered_map>
#include <vector>

#include "checkpoint/eviction.hpp"

namespace cairn {

// The same victims as Victims would choose, where whoever owns the states says what lowers a score (changed()). What age lowers is
// looked at when that is due, but later where it will be worth much more than what goes; what has risen, before it goes. Small
// changes, of what is learned of return times or of other states in the tree, are noticed then.
class KeptVictims {
 public:
  // What a state is worth at a time: now or, as far as age alone decides, later.
  using WorthAt = std::function<StateWorth(const CheckpointRecord&, std::int64_t unix_ms)>;
  // Policy and worth must outlive it, and so must records that are added until they are removed. `much_more`: so many times what
  // goes. Above that the order is of no account; terms of return times move meanwhile, and so does what goes.
  KeptVictims(EvictionPolicy& policy, const WorthAt& worth, double much_more = 4)
      : policy_(policy), worth_(worth), much_more_(much_more) {}

  void add(const CheckpointRecord& record);
  void remove(CheckpointId id);
  void changed(CheckpointId id);

  // Before any of those below are asked for.
  void begin_round(std::int64_t now_unix_ms);
  // Bytes of those that are worth less than this one, which is not among them; `enough` of them or more are not counted further.
  std::uint64_t bytes_below(const CheckpointRecord& incoming, std::uint64_t enough);
  // nullptr when none is left.
  const CheckpointRecord* worst();
  // The worst one goes: tells the policy. The caller removes it from the tree before he asks for the next.
  void take();

 private:
  struct Place {
    double score = 0;
    std::int64_t last_used_unix_ms = 0;
    CheckpointId id{};
    bool operator<(const Place& other) const;
  };
  struct Item {
    const CheckpointRecord* record = nullptr;
    std::set<Place>::iterator at;
    std::int64_t due_ms = 0;     // when it is to be looked at again
    std::int64_t queued_ms = 0;  // the earliest entry in due_ for it
    std::uint64_t round = 0;     // when it was looked at
    bool is_new = true;          // not in order_ yet
    bool waits = true;           // among changed_
  };
  struct Due {
    std::int64_t at_ms = 0;
    CheckpointId id{};
    bool operator>(const Due& other) const { return at_ms > other.at_ms; }
  };

  void look_at(Item& item);
  double score_at(const CheckpointRecord& record, std::int64_t unix_ms) { return policy_.score(record, worth_(record, unix_ms), unix_ms); }
  std::int64_t next_look_ms(const CheckpointRecord& record, double score, double lasts_s);  // when its score is made anew

  EvictionPolicy& policy_;
  const WorthAt& worth_;
  double much_more_;
  std::int64_t now_unix_ms_ = 0;
  std::uint64_t round_ = 0;
  double bar_ = 0;  // about the most that went lately was worth
  std::unordered_map<CheckpointId, Item> items_;
  std::set<Place> order_;
  std::vector<CheckpointId> changed_;
  std::priority_queue<Due, std::vector<Due>, std::greater<>> due_;
};

}  // namespace cairn

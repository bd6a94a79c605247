// The candidates of all rounds of evictions with scores that are kept from one round to the next, where Victims scores all anew:
// what makes replays of many states fast.
// Pure. Owner: one replay.
#pragma once

#include <cstdint>
#include <queue>
#include <set>
#include <unordered_map>
#include <vector>

#include "checkpoint/eviction.hpp"

namespace cairn {

// The same victims as Victims would choose, where whoever owns the states says what lowers a score (changed()). What age lowers is
// looked at when that is due; what has risen, before it goes. Small changes, of what is learned of return times or of other states
// in the tree, are noticed at one of these.
class KeptVictims {
 public:
  // Both must outlive it, and so must records that are added until they are removed.
  KeptVictims(EvictionPolicy& policy, const WorthOf& worth) : policy_(policy), worth_(worth) {}

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

  EvictionPolicy& policy_;
  const WorthOf& worth_;
  std::int64_t now_unix_ms_ = 0;
  std::uint64_t round_ = 0;
  std::unordered_map<CheckpointId, Item> items_;
  std::set<Place> order_;
  std::vector<CheckpointId> changed_;
  std::priority_queue<Due, std::vector<Due>, std::greater<>> due_;
};

}  // namespace cairn

// Decides which checkpoint goes when the budget or the disk is full: the one whose score is least.
// Thread: the I/O thread; pure.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "checkpoint/record.hpp"

namespace cairn {

// What the prefix tree knows of a saved state's future (checkpoint/state_values.hpp).
struct StateWorth {
  double tokens_per_s = 0;   // that it is expected to spare for each second it is kept, beyond what other states spare
  bool branched_from = false;  // several known prompts go on from inside what only this state holds
  double lasts_s = 1e6;        // seconds until age changes it
};
using WorthOf = std::function<StateWorth(const CheckpointRecord&)>;

// For how long a score is good while nobody uses the state and its neighbours in the tree stay.
enum class ScoresHold {
  one_round,    // it is relative to the other candidates
  until_used,   // its record alone decides
  a_while,      // for the time that its worth lasts
};

class EvictionPolicy {
 public:
  virtual ~EvictionPolicy() = default;
  // Before the scores of one round of evictions are asked for; `candidates` is not empty.
  virtual void begin_round(std::span<const CheckpointFacts* const> /*candidates*/, std::int64_t /*now_unix_ms*/) {}
  // The least goes first. Any scale; comparable within a round.
  virtual double score(const CheckpointFacts& record, const StateWorth& worth, std::int64_t now_unix_ms) = 0;
  virtual void evicted(const CheckpointFacts& /*record*/, double /*score*/) {}
  // Its scores say of a state just made, too, whether it is worth what it would drive out.
  virtual bool judges_new_states() const { return false; }
  virtual ScoresHold scores_hold() const { return ScoresHold::one_round; }
};

// Seconds of recomputation that a byte is expected to spare for each second it is kept. What no other state offers counts
// alone, so a state that a longer one of its branch makes useless goes at once.
class ValuePolicy final : public EvictionPolicy {
 public:
  bool judges_new_states() const override { return true; }
  ScoresHold scores_hold() const override { return ScoresHold::a_while; }
  double score(const CheckpointFacts& record, const StateWorth& worth, std::int64_t now_unix_ms) override;
};

// For comparison (`cairn simulate --policy`).
class LruPolicy final : public EvictionPolicy {
 public:
  ScoresHold scores_hold() const override { return ScoresHold::until_used; }
  double score(const CheckpointFacts& record, const StateWorth& worth, std::int64_t now_unix_ms) override;
};

// Greedy dual, size and frequency: uses * seconds / bytes above a floor that rises with each eviction.
class GdsfPolicy final : public EvictionPolicy {
 public:
  ScoresHold scores_hold() const override { return ScoresHold::until_used; }
  double score(const CheckpointFacts& record, const StateWorth& worth, std::int64_t now_unix_ms) override;
  void evicted(const CheckpointFacts& record, double score) override;

 private:
  struct Seen {
    std::uint64_t uses = 0;
    double floor = 0;  // when it was last used
  };
  double floor_ = 0;
  std::unordered_map<CheckpointId, Seen> seen_;
};

// Marconi (MLSys 2025): recency and seconds saved per byte, each scaled to at most 1, added; states that several prompts
// branch from stay.
class MarconiPolicy final : public EvictionPolicy {
 public:
  void begin_round(std::span<const CheckpointFacts* const> candidates, std::int64_t now_unix_ms) override;
  double score(const CheckpointFacts& record, const StateWorth& worth, std::int64_t now_unix_ms) override;

 private:
  double longest_idle_ms_ = 1;
  double best_efficiency_ = 1;
};

// "value", "lru", "gdsf" or "marconi"; null for anything else.
std::unique_ptr<EvictionPolicy> make_policy(std::string_view name);

// The candidates of one round of evictions, the worst first. Scores are looked at again as others go: what was worth nothing
// beside a better state is worth something once that is gone.
class Victims {
 public:
  // All references must outlive it. `worth` may be empty: judged by its record alone.
  Victims(EvictionPolicy& policy, const WorthOf& worth, std::span<const CheckpointRecord* const> candidates,
          std::int64_t now_unix_ms);
  // Bytes of those that are worth less than this one, which is no candidate: more than these are not given up for it. Of no record but
  // this one: it may be asked for when others have gone.
  std::uint64_t bytes_below(const CheckpointRecord& incoming) const;
  // nullptr when none is left.
  const CheckpointRecord* worst();
  // The worst one goes: tells the policy. The caller removes it from the tree before he asks for the next.
  void take();

 private:
  struct Scored {
    double score = 0;
    const CheckpointRecord* record = nullptr;
    CheckpointId id{};
    std::uint64_t bytes = 0;
    std::int64_t last_used_unix_ms = 0;
  };
  Scored scored(const CheckpointRecord& record) const;
  static bool goes_later(const Scored& a, const Scored& b);

  EvictionPolicy& policy_;
  const WorthOf& worth_;
  std::int64_t now_unix_ms_;
  std::vector<Scored> heap_;
};

}  // namespace cairn

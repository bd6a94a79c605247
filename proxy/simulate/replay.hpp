// One byte budget, request by request: the real prefix tree, planner and eviction with a virtual clock.
// Pure. Owner: simulate().
#pragma once

#include <cstdint>
#include <deque>
#include <span>
#include <vector>

#include "checkpoint/state_values.hpp"
#include "plan/cost_model.hpp"
#include "plan/end_offsets.hpp"
#include "plan/planner.hpp"
#include "prefix/prefix_tree.hpp"
#include "simulate/kept_victims.hpp"
#include "simulate/simulation.hpp"

namespace cairn {

// What is learned of a trace is the same whatever the budget.
struct Learned {
  StateValues values;
  EndOffsets ends;  // in blocks
};

class Replay final : private WorthOverTime {
 public:
  // All must outlive it.
  Replay(const Trace& trace, const SimulationOptions& options, std::uint64_t budget_bytes, EvictionPolicy& policy, const Learned& learned);
  Replay(const Replay&) = delete;
  Replay& operator=(const Replay&) = delete;

  // Whether it asks what was learned.
  bool asks() const { return budget_bytes_ > 0 && policy_.scores_hold() != ScoresHold::until_used; }
  const PrefixTree& tree() const { return tree_; }

  // A request comes in, and its prompt becomes known.
  const PrefixTree::InsertResult& receive(const TraceRequest& request);
  // It is answered, and leaves its state; the prompt has been learned from.
  void answer(const TraceRequest& request);
  SimulationResult result() const;

 private:
  using Number = KeptVictims::Number;  // of a state, and of its marks
  struct alignas(64) Held : CheckpointFacts {  // a cache line: they are looked at far more often than anything else
    Number number = KeptVictims::none;
    NodeId leaf = PrefixTree::kNone;
    std::uint32_t blocks = 0;
    std::uint32_t every = 0;  // blocks between resume points; 0: there is one at its end alone
  };
  // The state that spares most of the prompt, as the catalogue finds it; `usable` in blocks.
  struct Found {
    Number number = KeptVictims::none;
    std::uint32_t usable = 0;
  };

  void expect(const CheckpointFacts& record) const override;
  StateWorth look_at(const CheckpointFacts& record, std::int64_t now_unix_ms) override;
  StateWorth later(std::int64_t unix_ms) const override { return prospects_.at(static_cast<double>(unix_ms) / 1000); }

  Found best_state() const;
  void serve(const TraceRequest& request, const Found& found);
  void save(TokenSpan prompt);
  void describe(Held& incoming, std::uint32_t blocks) const;
  bool find_useless(const Held& incoming);
  void admit(const Held& incoming);
  bool make_room(Held& incoming, std::uint64_t others, std::uint32_t known);
  void cut(Held& held, std::uint32_t blocks);
  void count_written(std::uint64_t bytes);

  bool cuts() const;
  std::uint64_t bytes_of(std::uint32_t blocks, std::size_t resume_points = 1) const;
  std::uint32_t blocks_in(std::uint64_t bytes) const;
  NodeId end_of(const Held& held) const;
  std::span<const std::uint32_t> positions(const Held& held);
  std::int64_t now_ms() const;

  Held& take_number();
  void attach(const Held& held);
  void detach(const Held& held);
  void remove(Number number);
  void forget(Number number);  // what is removed from victims_ and tree_ already

  const Trace& trace_;
  const SimulationOptions& options_;
  const std::uint64_t budget_bytes_;
  EvictionPolicy& policy_;
  const Learned& learned_;
  const ModelProfile& profile_;
  CostModel costs_;
  PrefixTree tree_;
  PrefixTree::InsertResult inserted_;  // the prompt of now
  std::deque<Held> held_;              // by number
  std::vector<Number> unused_;         // of held_
  std::vector<Number> useless_;        // beside the one that is about to be saved
  std::uint64_t bytes_ = 0;
  std::int64_t last_id_ = 0;
  double now_s_ = 0;
  Prospects prospects_;                // of the one looked at last
  std::vector<std::uint32_t> positions_;  // likewise
  KeptVictims victims_;
  SimulationResult result_;
};

}  // namespace cairn

// Replays a trace against the real prefix tree, planner and eviction with a virtual clock: what a byte budget would spare.
// Pure; one call, no state kept.
#pragma once

#include <atomic>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "base/result.hpp"
#include "checkpoint/eviction.hpp"
#include "plan/cost_model.hpp"
#include "plan/memory_kind.hpp"
#include "simulate/trace.hpp"

namespace cairn {

// A model on a machine, as far as states and times go.
struct ModelProfile {
  MemoryKind kind = MemoryKind::truncatable;
  double bytes_a_token = 20e3;
  double bytes_a_state = 62e6;        // recurrent state, or whatever does not grow with the tokens
  std::uint32_t interval_tokens = 0;  // checkpointed: between resume points inside a state, each bytes_a_state; 0: its end alone
  double prefill_tokens_per_s = 500;
  double restore_bytes_per_s = 1.5e9;
  double save_bytes_per_s = 1e9;
  double save_fixed_s = 0.01;         // of each save, whatever its bytes
};

// "hybrid-3b-h100" and the like, or "key=value,..." with the names above over those of the default; see --help.
Result<ModelProfile> parse_profile(std::string_view text);

struct SimulationOptions {
  ModelProfile profile;
  std::uint64_t budget_bytes = 0;  // 0: unbounded
  double low_water = 1.0;          // of the budget: what an eviction trims to
  std::atomic<std::uint64_t>* replayed = nullptr;  // counts requests as they are done, for whoever watches
  bool cut = false;                // truncatable: where there is no room for a whole state, its beginning is kept ("value" alone)
};

struct SimulationResult {
  std::uint64_t requests = 0;
  std::uint64_t prompt_tokens = 0;
  std::uint64_t reused_tokens = 0;
  std::uint64_t written_bytes = 0;
  std::uint64_t saves = 0;
  std::uint64_t evictions = 0;
  std::uint64_t cuts = 0;        // states already saved that lost their end
  std::uint64_t superseded = 0;  // gone because a longer state of the branch offers all that they did
  std::uint64_t held_bytes = 0;  // at the end
  double computed_s = 0;         // prefill, with the cache
  double restored_s = 0;
  double written_s = 0;          // saving; llama-server does nothing else meanwhile
  double cold_s = 0;             // prefill, without any
  double hit_rate() const { return prompt_tokens == 0 ? 0 : static_cast<double>(reused_tokens) / static_cast<double>(prompt_tokens); }
  double saved_s() const { return cold_s - computed_s - restored_s - written_s; }  // below 0: it costs more than it spares
  bool operator==(const SimulationResult&) const = default;
};

// Each request is planned, restored from the best state, and leaves a whole state at its end. Blocks count as full.
SimulationResult simulate(const Trace& trace, const SimulationOptions& options, EvictionPolicy& policy);

// The same for each of several budgets (that of `options` is not looked at), in less time: what the policy learns of the trace is
// learned once. `policy`: a name that make_policy() knows.
std::vector<SimulationResult> simulate(const Trace& trace, const SimulationOptions& options, std::string_view policy,
                                       std::span<const std::uint64_t> budgets);

// Different tokens of the trace: what an unbounded cache that shares all prefixes would hold.
std::uint64_t distinct_tokens(const Trace& trace);

}  // namespace cairn

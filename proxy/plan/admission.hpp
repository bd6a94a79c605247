// Decides where a prompt is stopped on its way so that a state is left there: what evidence speaks for, and as much insurance
// as a small share of the prompt's own time pays for. What never comes back must not be cut up.
// Pure.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "plan/cost_model.hpp"
#include "plan/leaving_marks.hpp"
#include "plan/memory_kind.hpp"
#include "plan/stops.hpp"

namespace cairn {

// As configured.
struct CheckpointPolicy {
  bool adaptive = true;               // false: a grid of `interval_tokens`, whatever it costs
  std::uint32_t interval_tokens = 0;  // for a grid; 0: none
  double budget = 0.03;               // of the time that computing the prompt takes, for stops that nothing speaks for yet
  std::uint32_t bound_tokens = 512;   // the worst recomputation aimed at, where the budget allows it
  double bound_s = 0;                 // the same as a time; 0: bound_tokens holds
};

struct AdmissionInput {
  MemoryKind kind = MemoryKind::unknown;
  std::uint32_t base = 0;    // tokens reused
  std::uint32_t done = 0;    // tokens in the slot now: base, or the last stop
  std::uint32_t prompt = 0;  // tokens in all
  std::uint32_t ubatch = 512;
  bool can_save = false;
  const CheckpointPolicy* policy = nullptr;
  const CostModel* costs = nullptr;

  // Evidence.
  bool continues = false;        // it goes on from an earlier prompt
  double returning = 1;          // share of the latest prompts that came back to an earlier one in any way
  bool returns_often = false;    // it was seen to be a large one
  double branches = 0;           // chance that a later prompt leaves this one somewhere inside, when it shares a known path
  double followed = 0;           // chance that a later prompt goes on from this one
  std::uint32_t before_end = 0;  // tokens before the prompt's end where that one would leave it
  std::span<const Stop> shared;  // where other requests wait for a state
  std::span<const std::uint32_t> kept;    // admitted before: a later, dearer estimate does not take them back
  bool others = false;           // other requests are about: they may come to want one
  bool others_may_come = false;  // there are other slots, and who would start there need not wait for the end of a piece
  std::uint32_t system_end = 0;  // where the system prompt and the tools end: what other sessions are likeliest to share; 0: unknown
  double sessions = 0;           // chance that one does
  bool sessions_seen = false;    // some did before
  LeavingPlace mark;             // where a later prompt is likely to leave this one far before its end: before a mark,
  LeavingPlace message;          // and where its last message begins
  std::uint32_t branch = 0;      // where this one left a known path, and no state is there yet; 0: nowhere

  // Spent and to spend.
  std::uint32_t pieces = 0;            // computed for this prompt so far
  std::uint32_t pieces_since_save = 0;
  double saves_s = 0;                  // inline saves so far
  double overhead_s = 0;               // other time that Cairn has added to this request
  double credit_s = 0;                 // left over by earlier prompts; only for one that continues
};

// The stops still ahead, ascending, all in (done, prompt). Ask again after each piece: the costs may have been learned anew.
std::vector<Stop> admit(const AdmissionInput& input);
// Those of a fresh admission that evidence or the next turn speaks for: to be `kept`.
std::vector<std::uint32_t> marked_places(const AdmissionInput& input);

// Tokens: the longest stretch that an edit in the middle of up to `tokens` new ones makes us compute again, by present costs, with
// `overhead_s` a token spent on other things. `returning` as in AdmissionInput.
std::uint32_t interval_for(std::uint32_t tokens, MemoryKind kind, std::uint32_t ubatch, bool can_save, const CheckpointPolicy& policy,
                           const CostModel& costs, double overhead_s = 0, double returning = 1);
// The longest stretch of (base, prompt) without a state to go on from, with one at each of `points` (ascending) in it.
std::uint32_t widest_gap(std::uint32_t base, std::uint32_t prompt, std::span<const std::uint32_t> points);

}  // namespace cairn

#include "plan/planner.hpp"

#include <algorithm>

namespace cairn {

std::string_view to_string(Source source) {
  switch (source) {
    case Source::live: return "live";
    case Source::restore: return "restore";
    case Source::recompute: return "recompute";
    case Source::wait: return "wait";
    case Source::backend: return "backend";
  }
  return "?";
}

namespace {

// What it costs others when `slot` is overwritten from token `kept` on, and whether saving it first makes that cheaper.
struct Loss {
  double seconds = 0;
  bool save_first = false;
};

Loss overwrite_loss(const PlanInput& input, const SlotOption& slot, std::uint32_t kept) {
  Loss loss;
  if (slot.held <= kept) return loss;
  const CostModel& costs = *input.costs;
  const double bytes = costs.state_bytes(slot.held, slot.context_checkpoints);
  // What this prompt goes on from is not lost. The rest, as it is now: bring back what is saved, compute what is not.
  // Whoever comes back computes something of its own, in the same request: what one costs whatever its tokens is not lost. (Something
  // is: among equals the empty slot is taken.)
  constexpr double least_share = 0.05;
  const double rest_s = costs.prefill_seconds(std::max(slot.recoverable, kept), slot.held);
  double back = std::max(rest_s - costs.piece_seconds(), least_share * rest_s);
  if (slot.recoverable > kept) {
    back += std::min(costs.restore_seconds(costs.state_bytes(slot.recoverable, slot.context_checkpoints)), costs.prefill_seconds(0, slot.recoverable));
  }
  loss.seconds = back * slot.return_chance;
  if (!input.can_save || !slot.savable || slot.held <= slot.recoverable) return loss;
  const double saved = costs.save_seconds(bytes) * (1.0 + input.running + input.waiting) + costs.commit_seconds(bytes) +
                       costs.restore_seconds(bytes) * slot.return_chance;
  // What nothing speaks for yet is saved at somebody's expense only when it is clearly worth it; what comes back each time, also where
  // both weigh about the same: the file outlives a restart, too.
  constexpr double unproven_margin = 1.5, proven_margin = 0.67;
  if (saved * (slot.proven ? proven_margin : unproven_margin) < loss.seconds) {
    loss.seconds = saved;
    loss.save_first = true;
  }
  return loss;
}

// A copy within memory, or over the bus of a GPU (17 to 24 ms for some 90 MB, 0.7 to 2 s for 2 GB on an H100): far from what a file costs.
double backend_copy_seconds(const CostModel& costs, std::uint32_t tokens, std::uint32_t context_checkpoints) {
  constexpr double bytes_per_s = 4e9;
  const double bytes = costs.state_bytes(tokens, context_checkpoints);
  return std::min(bytes / bytes_per_s, costs.restore_seconds(bytes));
}

// Before it computes another prompt in a slot, llama-server copies what the slot holds into its RAM cache (--cache-ram), if the prompt
// shares less than half of it, and brings back from there what serves the prompt better; also where the request names the slot, if that is
// not empty (build 11669).
bool copied_in_vain(const PlanInput& input, const SlotOption& slot, std::uint32_t base) {
  constexpr std::uint32_t handful = 16;  // tokens: whoever has switched that cache off loses no more
  constexpr double pays_from_s = 0.01;   // a request more, and an estimate
  // While others compute, the request more would wait for their batch.
  if (!input.can_empty || input.running > 0 || base > handful || base * 2 >= slot.held) return false;
  // It may lie there, and comes into no empty slot.
  if (input.known > base + handful) return false;
  const CostModel& costs = *input.costs;
  const double copy_s = backend_copy_seconds(costs, slot.held, slot.context_checkpoints);
  double otherwise_s = costs.prefill_seconds(slot.recoverable, slot.held);
  if (slot.recoverable > 0) otherwise_s += costs.restore_seconds(costs.state_bytes(slot.recoverable, slot.context_checkpoints));
  const double worth_s = slot.return_chance * std::max(0.0, std::min(otherwise_s, costs.prefill_seconds(0, slot.held)) - copy_s);
  return copy_s > worth_s + pays_from_s;
}

// To wait and to leave the choice to the backend overwrite nothing. Both rest on guesses: they must promise something.
constexpr double clearly = 0.8;

// `best`, or to wait for a slot in use instead. `best_total`: what `best` costs, with what others lose by it.
Plan better_wait(const PlanInput& input, Plan best, double best_total) {
  for (const WaitOption& option : input.waits) {
    const double waited_s = option.ready_s + input.costs->prefill_seconds(option.usable, input.prompt);
    if (waited_s >= best_total * clearly) continue;
    best.source = Source::wait;
    best.slot = option.slot;
    best.checkpoint = 0;
    best.base = option.usable;
    best.save_first = false;
    best.expected_s = waited_s;
    best.reason = "a slot in use will offer more";
    best_total = waited_s / clearly;
  }
  return best;
}

// `best`, or the backend's own cache instead, from which it brings back more.
Plan left_to_backend(const PlanInput& input, Plan best) {
  if (input.in_backend_cache <= best.base || best.source == Source::wait) return best;
  const CostModel& costs = *input.costs;
  const double copy_s = backend_copy_seconds(costs, input.in_backend_cache, input.cache_context_checkpoints);
  const double cached_s = copy_s * (1.0 + input.running) + costs.prefill_seconds(input.in_backend_cache, input.prompt);
  // Where all would be computed otherwise, and most is promised, the choice costs no more than it does without Cairn, whatever
  // comes of it. For less it is not worth that nothing of the prompt can be saved.
  const bool most = std::uint64_t{input.in_backend_cache} * 2 >= input.prompt;
  const double promised = best.source == Source::recompute && most ? 1.0 : clearly;
  if (cached_s < best.expected_s * promised) {
    best.source = Source::backend;
    best.checkpoint = 0;
    best.base = input.in_backend_cache;
    best.save_first = false;
    best.expected_s = cached_s;
    best.reason = "the backend's own cache should hold it";
  }
  return best;
}

// `best`, in a slot that is emptied first where what it holds would only be copied.
Plan emptied_first(const PlanInput& input, Plan best) {
  if (best.source != Source::live && best.source != Source::recompute) return best;
  const auto taken = std::find_if(input.slots.begin(), input.slots.end(), [&](const SlotOption& slot) { return slot.slot == best.slot; });
  if (copied_in_vain(input, *taken, best.base)) {
    best.source = Source::recompute;
    best.base = 0;
    best.empty_first = true;
    best.expected_s = input.costs->prefill_seconds(0, input.prompt);
    best.reason = "what the slot holds would be copied in vain";
  }
  return best;
}

}  // namespace

std::optional<Plan> make_plan(const PlanInput& input) {
  const CostModel& costs = *input.costs;
  const double all = costs.prefill_seconds(0, input.prompt);
  std::optional<Plan> best;
  double best_total = 0;
  std::uint64_t best_last_used = 0;
  const auto consider = [&](Plan plan, const SlotOption& slot, const Loss& loss) {
    plan.slot = slot.slot;
    plan.save_first = loss.save_first;
    const double total = plan.expected_s + loss.seconds;
    // Equal plans: the slot that was used longest ago.
    const bool better = !best || total < best_total - 1e-9 ||
                        (total < best_total + 1e-9 && slot.last_used < best_last_used);
    if (!better) return;
    best = plan;
    best_total = total;
    best_last_used = slot.last_used;
  };

  for (const SlotOption& slot : input.slots) {
    Plan live;
    live.source = slot.usable > 0 ? Source::live : Source::recompute;
    live.base = slot.usable;
    live.expected_s = slot.wait_s + costs.prefill_seconds(slot.usable, input.prompt);
    live.reason = slot.usable > 0 ? "the slot holds it" : "nothing holds it";
    consider(live, slot, overwrite_loss(input, slot, slot.usable));
  }
  for (const RestoreOption& option : input.restores) {
    const double restore_s = costs.restore_seconds(option.bytes);
    const double rest_s = costs.prefill_seconds(option.usable, input.prompt);
    if (option.ready_s + restore_s + rest_s >= all) continue;  // cheaper to compute than to bring back
    for (const SlotOption& slot : input.slots) {
      if (option.usable <= slot.usable) continue;
      Plan plan;
      plan.source = Source::restore;
      plan.checkpoint = option.checkpoint;
      plan.base = option.usable;
      plan.expected_s = slot.wait_s + option.ready_s + restore_s + rest_s + (slot.clean ? 0.0 : costs.prefill_seconds(0, 1));
      // Whatever is lost with the slot is lost either way: this very slot would answer sooner from what it holds.
      if (plan.expected_s >= slot.wait_s + costs.prefill_seconds(slot.usable, input.prompt)) continue;
      plan.reason = "a saved state reaches further";
      Loss loss = overwrite_loss(input, slot, 0);
      loss.seconds += restore_s * input.running;
      consider(plan, slot, loss);
    }
  }
  if (!best) return best;

  Plan plan = emptied_first(input, left_to_backend(input, better_wait(input, *best, best_total)));
  plan.restore_dearer = plan.source != Source::restore && plan.source != Source::wait &&
                        std::any_of(input.restores.begin(), input.restores.end(), [&](const RestoreOption& one) { return one.usable > plan.base; });
  if (plan.source == Source::recompute && !plan.empty_first && !input.restores.empty()) plan.reason = "cheaper to recompute";
  return plan;
}

}  // namespace cairn

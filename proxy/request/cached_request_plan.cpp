// How a CachedRequest chooses its slot and state, and which stops it asks of others.
#include <spdlog/spdlog.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "request/cached_request.hpp"

namespace cairn {

namespace {
constexpr std::size_t candidates_considered = 4;

void log_options(std::uint64_t request, std::span<const SlotOption> options, const CostModel& costs) {
  for (const SlotOption& option : options) {
    const double bytes = costs.state_bytes(option.held, option.context_checkpoints);
    spdlog::debug("req={} may take slot {}: holds {} ({} usable, {} saved, {} context checkpoints), asked for again {:.2f}{}, save {:.3f} s, "
                  "restore {:.3f} s, the unsaved rest {:.3f} s",
                  request, option.slot, option.held, option.usable, option.recoverable, option.context_checkpoints, option.return_chance,
                  option.proven ? " (proven)" : "", costs.save_seconds(bytes), costs.restore_seconds(bytes),
                  costs.prefill_seconds(option.recoverable, option.held));
  }
}
}  // namespace

// What slots in use will offer this prompt. For one that computes its prompt on the way to ours it waits however long that takes:
// it would have to compute the same.
std::vector<WaitOption> CachedRequest::waits_worth(bool patient, std::uint32_t own_base) const {
  std::vector<WaitOption> waits;
  if (parsed_.id_slot || slot_ >= 0 || !own_weights()) return waits;
  const auto prompt = static_cast<std::uint32_t>(prompt_.size());
  const CostModel& costs = backend_.costs();
  for (const SlotState& state : std::as_const(backend_.slots()).slots()) {
    if (!state.leased || (!state.upkeep && !state.target)) continue;
    WaitOption option;
    option.slot = state.id;
    if (state.upkeep) {
      if (!patient) continue;
      // It is only being saved, and free in a moment.
      if (state.name_space != static_cast<std::int64_t>(backend_.name_space())) continue;
      const auto common = static_cast<std::uint32_t>(common_prefix(state.known, prompt_));
      option.usable = usable_tokens(backend_.kind(), state.view(), common, prompt);
      option.ready_s = costs.save_seconds(backend_.bytes_of(state));
    } else {
      const auto common = static_cast<std::uint32_t>(common_prefix(*state.target, prompt_));
      const auto is_made = [&] {  // the stop that was asked for, just now
        return common == state.piece_end && std::ranges::any_of(state.wanted_stops, [&](const Stop& stop) { return stop.at == common && stop.save; });
      };
      if (state.in_pieces && (common > state.piece_end || is_made()) && common < state.target->size() && backend_.can_save()) {
        // It will stop there for us and save. What it computes beyond our own base we should have to compute beside it.
        const double bytes = costs.state_bytes(common, 2);
        option.usable = std::min(common, prompt - 1);
        option.ready_s = costs.save_seconds(bytes) + costs.commit_seconds(bytes) + costs.restore_seconds(bytes) +
                         costs.prefill_seconds(state.piece_end, std::max(state.piece_end, own_base));
      } else if (patient) {
        const auto whole = static_cast<std::uint32_t>(state.target->size());
        std::vector<std::uint32_t> points = state.resume_points;
        add_piece_resume_points(points, 0, whole, backend_.options().ubatch_tokens);
        option.usable = usable_tokens(backend_.kind(), StateView{whole, false, points}, common, prompt);
        const double has_been_s = std::chrono::duration<double>(std::chrono::steady_clock::now() - state.leased_at).count();
        constexpr double least_share = 0.25;
        if (backend_.lease_seconds() <= has_been_s) continue;  // nobody knows
        // A guess: it may cost a tenth of what it would spare.
        constexpr double staked = 0.1;
        if (record_.seconds_in(Step::acquire) > staked * costs.prefill_seconds(own_base, std::max(own_base, option.usable))) continue;
        option.ready_s = std::max(backend_.lease_seconds() - has_been_s, backend_.lease_seconds() * least_share);
      }
    }
    if (option.usable > 0) waits.push_back(option);
  }
  return waits;
}

// A stop there, when the slot in use has not passed it.
void CachedRequest::ask_for_stop(SlotState& busy, std::uint32_t at, bool save) const {
  if (!busy.in_pieces || at <= busy.piece_end) return;
  add_stop(busy.wanted_stops, Stop{at, save});
}

// All slots are in use: whichever comes free shall have a state where this prompt leaves the one under way.
void CachedRequest::ask_for_stops() const {
  if (parsed_.id_slot || !own_weights()) return;
  const CostModel& costs = backend_.costs();
  const bool exact = backend_.kind() == MemoryKind::exact;
  const bool by_file = backend_.slots().slots().size() > 1 || exact;
  const auto running = static_cast<double>(std::ranges::count_if(backend_.slots().slots(), [](const SlotState& state) { return state.running; }));
  for (SlotState& busy : backend_.slots().slots()) {
    if (!busy.in_pieces || !busy.target) continue;
    const auto common = static_cast<std::uint32_t>(common_prefix(*busy.target, prompt_));
    if (common >= busy.target->size() || common <= busy.piece_end) continue;
    if (costs.prefill_seconds(busy.piece_end, common) <= 2 * costs.boundary_seconds()) continue;
    // A file serves whoever gets another slot, and stalls all that run.
    const double bytes = costs.state_bytes(common, 2);
    const double by_file_s = (costs.save_seconds(bytes) + costs.commit_seconds(bytes)) * (1.0 + running) + costs.restore_seconds(bytes);
    const bool save = by_file && backend_.can_save() && by_file_s < costs.prefill_seconds(0, common) &&
                      !backend_.catalogue()->has_state_at(backend_.name_space(), TokenSpan{prompt_.data(), common});
    if (exact && !save) continue;  // what is computed behind it leaves nothing there
    ask_for_stop(busy, common, save);
  }
}

// What an idle slot offers this prompt, whose state belongs into `space`, and what others would lose with it.
SlotOption CachedRequest::slot_option(int id, std::int64_t space) const {
  const SlotState& state = std::as_const(backend_.slots()).at(id);
  SlotOption option;
  option.slot = id;
  option.held = state.held();
  option.recoverable = state.recoverable;
  option.savable = state.unsaved;
  option.context_checkpoints = static_cast<std::uint32_t>(state.resume_points.size());
  option.return_chance = state.return_chance;
  option.proven = state.proven;
  option.clean = backend_.probe().state_version >= 4;
  option.last_used = state.last_used;
  if (state.attempted != nullptr && !state.leased) option.wait_s = backend_.seconds_until_noticed();
  if (state.name_space == space && !state.doubtful && state.other_weights != own_weights()) {
    const auto common = static_cast<std::uint32_t>(common_prefix(state.known, prompt_));
    option.usable = usable_tokens(backend_.kind(), state.view(), common, static_cast<std::uint32_t>(prompt_.size()));
    // The answer in the slot is not lost to a prompt that goes on after it.
    if (common == state.known.size()) option.held = common;
  }
  return option;
}

std::vector<RestoreOption> CachedRequest::restore_options() const {
  std::vector<RestoreOption> restores;
  for (const Catalogue::Candidate& candidate : candidates_) {
    // What runs keeps its room; what is idle gives it back.
    const CheckpointRecord* record = backend_.store()->find(candidate.checkpoint);
    if (record == nullptr || (backend_.probe().clears_idle && backend_.lacks_room(-1, record->token_count, true))) continue;
    RestoreOption option;
    option.checkpoint = static_cast<std::int64_t>(candidate.checkpoint);
    option.usable = candidate.usable_tokens;
    option.bytes = static_cast<double>(candidate.bytes);
    option.ready_s = backend_.store()->seconds_before_restore(candidate.checkpoint);
    restores.push_back(option);
  }
  return restores;
}

// Whoever is asked next sees already what this one is about to compute.
void CachedRequest::announce(const Plan& plan) {
  SlotState& ours = backend_.slots().at(plan.slot);
  if (own_weights()) ours.target = std::make_shared<const Tokens>(prompt_);
  ours.in_pieces = in_pieces() && plan.source != Source::backend;
  ours.piece_end = plan.base;
}

std::optional<int> CachedRequest::choose(std::span<const int> idle, bool patient) {
  if (idle.empty()) {
    ask_for_stops();
    return std::nullopt;
  }
  if (backend_.slots().slots().empty()) return std::nullopt;
  backend_.believe_removals();
  const std::int64_t space = name_space();
  std::vector<SlotOption> options;
  // Where a request that the backend placed runs, ours would wait for its end, whichever slot comes free before. With one slot there
  // is no choice.
  const bool all_taken = std::ranges::all_of(idle, [&](int id) { return std::as_const(backend_.slots()).at(id).taken; });
  if (all_taken && slot_ < 0 && !parsed_.id_slot && backend_.slots().slots().size() > 1) {
    const bool soon = false;
    backend_.find_taken(soon);
    return std::nullopt;
  }
  for (const int id : idle) {
    if (!parsed_.id_slot && !all_taken && backend_.slots().at(id).taken) continue;
    if (parsed_.id_slot && id != *parsed_.id_slot % static_cast<int>(backend_.slots().slots().size())) continue;
    options.push_back(slot_option(id, space));
  }
  if (options.empty()) return std::nullopt;
  find_candidates();  // now: more may have been saved while this request waited, and others dropped
  const std::vector<RestoreOption> restores = restore_options();
  PlanInput input;
  input.prompt = static_cast<std::uint32_t>(prompt_.size());
  input.slots = options;
  input.restores = restores;
  input.costs = &backend_.costs();
  input.can_save = backend_.can_save();
  input.can_empty = own_weights() && parsed_.takes_slot && backend_.can_empty();
  input.known = known_.matched_tokens;
  for (const SlotState& state : std::as_const(backend_.slots()).slots()) input.running += state.running ? 1 : 0;
  const std::size_t waiting = backend_.scheduler().waiting();
  input.waiting = static_cast<std::uint32_t>(slot_ < 0 && waiting > 0 ? waiting - 1 : waiting);  // others than this one
  std::uint32_t own_base = 0;
  for (const SlotOption& option : options) own_base = std::max(own_base, option.usable);
  for (const RestoreOption& option : restores) own_base = std::max(own_base, option.usable);
  const std::vector<WaitOption> waits = waits_worth(patient, own_base);
  input.waits = waits;
  if (!parsed_.id_slot && own_weights()) {
    const BackendRamCache::Offer cached = backend_.in_ram_cache(prompt_);
    input.in_backend_cache = cached.tokens;
    input.cache_context_checkpoints = cached.context_checkpoints;
  }
  const std::optional<Plan> plan = make_plan(input);
  if (!plan) return std::nullopt;
  if (spdlog::should_log(spdlog::level::debug)) log_options(record_.id, options, *input.costs);
  if (plan->source == Source::wait) {
    SlotState& busy = backend_.slots().at(plan->slot);
    ask_for_stop(busy, plan->base, true);
    return std::nullopt;
  }
  plan_ = *plan;
  if (slot_ < 0) announce(plan_);
  return plan_.slot;
}

void CachedRequest::find_candidates() {
  candidates_.clear();
  if (!own_weights() || prompt_.size() < backend_.options().shortest_prompt_tokens || !backend_.restores_work()) return;
  candidates_ = backend_.candidates(prompt_, candidates_considered);
}

// For the slot that is ours already.
void CachedRequest::plan_again() {
  const int only[] = {slot_};
  const bool patient = false;
  (void)choose(only, patient);
}

void CachedRequest::plan_in_our_slot() {
  plan_again();
  if (plan_.source == Source::backend) plan_recompute();
}

void CachedRequest::plan_recompute() {
  plan_.source = Source::recompute;
  plan_.base = 0;
}

}  // namespace cairn

#include "plan/admission.hpp"

#include <algorithm>
#include <cmath>

namespace cairn {

namespace {

constexpr double branch_chance = 0.5;          // that a third prompt parts where a second did
constexpr std::uint32_t left_by_backend = 4;   // tokens before a prompt's end where llama-server leaves a context checkpoint
constexpr std::uint32_t least_bound = 256;

// So near to each other that one state serves both.
bool beside(std::uint32_t one, std::uint32_t other) { return std::max(one, other) - std::min(one, other) < least_bound; }

// Tokens in a piece so that none of its inside is further than the bound from a point to go on from. On a checkpointed
// backend each piece leaves one an ubatch before its end, too.
std::uint32_t longest_piece(const AdmissionInput& input) {
  const CheckpointPolicy& policy = *input.policy;
  double bound = policy.bound_tokens;
  if (policy.bound_s > 0) bound = policy.bound_s / (input.costs->prefill_seconds(input.done, input.done + 1000.0) / 1000.0);
  // What is known to go on has shown that it comes back, perhaps changed.
  if (input.continues || input.branches > 0) bound /= 2;
  bound = std::clamp(bound, static_cast<double>(least_bound), 1e6);
  const auto tokens = static_cast<std::uint32_t>(bound);
  // Where each is a whole state in a file, half as many are worth their bytes.
  return input.kind == MemoryKind::exact ? 2 * tokens : tokens + input.ubatch;
}

// The prompt waits until it is committed.
double save_seconds_at(const AdmissionInput& input, std::uint32_t at) {
  const double inside = input.kind == MemoryKind::exact ? 0 : 2 * pieces_between_saves;
  const double bytes = input.costs->state_bytes(at, inside);
  return input.costs->save_seconds(bytes) + input.costs->commit_seconds(bytes);
}

double stop_seconds(const AdmissionInput& input, std::uint32_t at) {
  const double save_s = input.kind == MemoryKind::exact ? save_seconds_at(input, at) : 0;
  return input.costs->boundary_seconds() + save_s;
}

// The place of the `i`th of `cuts` equal cuts of (done, prompt), i from 1.
std::uint32_t cut_at(const AdmissionInput& input, std::uint32_t i, std::uint32_t cuts) {
  return static_cast<std::uint32_t>(input.done + std::uint64_t{input.prompt - input.done} * i / (cuts + 1));
}

// Seconds that `cuts` equal cuts of (done, prompt) add; on a checkpointed backend a save now and then keeps the early ones.
double cutting_seconds(const AdmissionInput& input, std::uint32_t cuts) {
  double seconds = 0;
  for (std::uint32_t i = 1; i <= cuts; ++i) {
    const std::uint32_t at = cut_at(input, i, cuts);
    seconds += stop_seconds(input, at);
    if (input.kind != MemoryKind::exact && (input.pieces_since_save + i) % pieces_between_saves == 0) seconds += save_seconds_at(input, at);
  }
  return seconds;
}

// What cuts spare on the average when a later prompt leaves this one inside (done, prompt): without them it goes on from `done`.
double cutting_gain(const AdmissionInput& input) {
  const std::uint32_t length = input.prompt - input.done;
  const std::uint32_t piece = longest_piece(input);
  if (length <= piece) return 0;
  return input.branches * (input.costs->prefill_seconds(input.done, input.prompt) - input.costs->prefill_seconds(input.prompt - piece, input.prompt)) / 2;
}

// As many cuts as the bound wants and `seconds` pays for.
std::uint32_t affordable_cuts(const AdmissionInput& input, double seconds) {
  const std::uint32_t piece = longest_piece(input);
  const std::uint32_t length = input.prompt - input.done;
  std::uint32_t cuts = (length - 1) / piece;
  if (cuts == 0 || seconds <= 0) return 0;
  const double one_s = stop_seconds(input, input.done + length / 2);
  cuts = static_cast<std::uint32_t>(std::min<double>(cuts, std::floor(seconds / one_s) + 1));
  while (cuts > 0 && cutting_seconds(input, cuts) > seconds) --cuts;
  return cuts;
}

// Where the next turn will leave this prompt; 0: the backend leaves a state near enough by itself.
std::uint32_t end_stop(const AdmissionInput& input) {
  std::uint32_t before = input.before_end;
  if (input.kind == MemoryKind::exact) before = std::max<std::uint32_t>(before, 1);
  else if (before <= left_by_backend) return 0;
  return before < input.prompt && input.prompt - before > input.done ? input.prompt - before : 0;
}

// Tokens where the next turn would have to go on from without a stop at `end`.
std::uint32_t fallback_of(const AdmissionInput& input) {
  if (input.kind == MemoryKind::exact) return input.done;
  const std::uint32_t back = left_by_backend + input.ubatch;
  return input.prompt > back ? std::max(input.done, input.prompt - back) : input.done;
}

// Estimates are off by some, and the budget is a promise to whom never comes back: less strict where prompts are seen to.
double caution(const AdmissionInput& input) { return input.returns_often ? 1.0 : 1.5; }
// A single stop is made now or never.
double least_caution(const AdmissionInput& input) { return input.returns_often ? 0.75 : 1.2; }

// Share of the budget that insurance may take: all of it where a prompt in three comes back, less where they hardly ever do.
double insured_share(const AdmissionInput& input) {
  constexpr double all_of_it = 3;
  return input.continues ? 1 : std::min(1.0, all_of_it * input.returning);
}

double budget_left(const AdmissionInput& input, double caution_by) {
  const double all = input.costs->prefill_seconds(input.base, input.prompt);
  const double spent = input.pieces * input.costs->boundary_seconds() + input.saves_s;
  return (input.policy->budget * insured_share(input) * all - input.overhead_s) / caution_by - spent + (input.continues ? input.credit_s : 0);
}

struct Marked {
  std::vector<std::uint32_t> places;
  double left_s = 0;  // of the budget
};

// The branch, the end, and the end of the system prompt: a grid is only what is left over for.
Marked marked(const AdmissionInput& input) {
  const CostModel& costs = *input.costs;
  Marked marked;
  marked.left_s = budget_left(input, caution(input));
  // A fixed grid is an order to leave states, whatever they cost.
  const bool ordered = !input.policy->adaptive;
  const auto admitted = [&](std::uint32_t at, double gain, double most) {
    const double cost = stop_seconds(input, at);
    const bool kept = std::find(input.kept.begin(), input.kept.end(), at) != input.kept.end();
    if (!kept && !ordered && gain <= cost && cost > most) return;
    marked.places.push_back(at);
    marked.left_s -= cost;
  };
  if (input.branch > input.done && input.branch < input.prompt) {
    admitted(input.branch, branch_chance * costs.prefill_seconds(input.done, input.branch), 0);
  }
  const std::uint32_t end = end_stop(input);
  // At or before `at`; where the prompt goes on from now, if there is none.
  const auto last_place = [&](std::uint32_t at) {
    std::uint32_t last = input.done;
    for (const std::uint32_t place : marked.places) {
      if (place <= at) last = std::max(last, place);
    }
    return last;
  };
  const auto admit_leaving = [&](const LeavingPlace& place, bool seen_often) {
    const std::uint32_t at = place.at;
    if (ordered || seen_often != place.seen_often || at <= input.done || at + least_bound >= input.prompt) return;
    // Who leaves there would go on from the last stop before it, or from a cut, half a piece before it in the mean.
    const std::uint32_t before = std::min(at - last_place(at), longest_piece(input) / 2);
    const double gain = place.chance * costs.prefill_seconds(at - before, at);
    // A single one may take the whole budget, as a single cut may.
    const bool first = marked.places.empty() && input.pieces == 0;
    const double most = first ? budget_left(input, least_caution(input)) : marked.left_s;
    if (gain > stop_seconds(input, at)) admitted(at, seen_often ? gain : 0, most);
  };
  // What a mark tells is exact.
  const auto admit_leavings = [&](bool seen_often) {
    admit_leaving(input.mark, seen_often);
    admit_leaving(input.message, seen_often);
  };
  admit_leavings(true);
  const double end_gain = end > 0 ? input.followed * costs.prefill_seconds(std::max(fallback_of(input), last_place(end)), end) : 0;
  // Beside another stop the end of the system prompt is not worth one.
  const std::uint32_t system = input.system_end;
  const auto near = [&](std::uint32_t at) { return beside(at, system); };
  const bool alone = system >= input.done + least_bound && system + least_bound < input.prompt &&
                     std::none_of(marked.places.begin(), marked.places.end(), near);
  const double system_gain = alone ? input.sessions * costs.prefill_seconds(input.done, system) : 0;
  // The likelier place to be come back to may take the whole budget, and the other what is left.
  const bool system_first = system_gain > end_gain;
  const auto admit_system = [&](double most) {
    // Until sessions were seen to share it, it is insurance.
    if (system_gain > 0) admitted(system, input.sessions_seen ? system_gain : 0, most);
  };
  if (system_first) admit_system(budget_left(input, least_caution(input)));
  if (end > 0) admitted(end, end_gain, system_first ? marked.left_s : budget_left(input, least_caution(input)));
  if (!system_first) admit_system(marked.left_s);
  admit_leavings(false);  // a guess is insurance, too, in a better place than a cut
  return marked;
}

std::vector<Stop> stops_for_later(const AdmissionInput& input) {
  Marked places = marked(input);
  std::vector<std::uint32_t>& wanted = places.places;
  StopInput stops;
  stops.kind = input.kind;
  stops.base = input.done;
  stops.prompt = input.prompt;
  stops.can_save = input.can_save;
  stops.since_save = input.pieces_since_save;
  // Whoever waits for a state of this prompt waits for every cut before it.
  const bool waited_for = std::any_of(input.shared.begin(), input.shared.end(), [&](const Stop& one) { return one.at > input.done; });
  if (!input.policy->adaptive) {
    stops.interval = input.policy->interval_tokens;
  } else if (!waited_for) {
    std::uint32_t cuts = affordable_cuts(input, std::max(places.left_s, cutting_gain(input)));
    // A single one may take the whole budget: without any, an edit costs the whole prompt.
    if (cuts == 0 && wanted.empty() && input.pieces == 0) cuts = std::min(affordable_cuts(input, budget_left(input, least_caution(input))), 1U);
    for (std::uint32_t i = 1; i <= cuts; ++i) {
      const std::uint32_t at = cut_at(input, i, cuts);
      const auto near = [&](std::uint32_t other) { return beside(at, other); };
      if (std::none_of(wanted.begin(), wanted.end(), near)) wanted.push_back(at);
    }
  }
  stops.wanted = wanted;
  return plan_stops(stops);
}

// Stops that somebody else waits for. Where one state serves every prefix, or its end alone, only a saved one is worth a stop.
void add_shared(std::vector<Stop>& stops, const AdmissionInput& input) {
  const bool needs_file = input.kind == MemoryKind::truncatable || input.kind == MemoryKind::exact;
  for (const Stop& wanted : input.shared) {
    if (wanted.at <= input.done || wanted.at >= input.prompt || (needs_file && !wanted.save)) continue;
    if (wanted.save && !input.can_save) continue;
    add_stop(stops, wanted);
  }
}

// A prompt that need not be cut is cut a little when others are about, so that they can ask for a stop. One that is long is cut once
// also when none is: of many that come together the first is alone for a moment.
std::vector<Stop> openings_for_others(const AdmissionInput& input) {
  constexpr std::uint32_t piece = 2048;
  constexpr double share_alone = 0.005;
  if (!input.can_save || input.prompt - input.done <= piece) return {};
  const double boundary_s = input.costs->boundary_seconds();
  if (!input.others) {
    const bool once = input.others_may_come && input.pieces == 0;
    if (!once || boundary_s > share_alone * input.costs->prefill_seconds(input.done, input.prompt)) return {};
  } else if (budget_left(input, caution(input)) < boundary_s) {
    return {};
  }
  return {Stop{input.done + piece, false}};
}

}  // namespace

std::vector<Stop> admit(const AdmissionInput& input) {
  if (input.done >= input.prompt) return {};
  std::vector<Stop> stops;
  if (input.kind == MemoryKind::truncatable) {
    stops = openings_for_others(input);
  } else if (input.kind != MemoryKind::exact || input.can_save) {
    stops = stops_for_later(input);
  }
  add_shared(stops, input);
  return stops;
}

std::vector<std::uint32_t> marked_places(const AdmissionInput& input) {
  if (input.kind == MemoryKind::truncatable || (input.kind == MemoryKind::exact && !input.can_save)) return {};
  return marked(input).places;
}

std::uint32_t interval_for(std::uint32_t tokens, MemoryKind kind, std::uint32_t ubatch, bool can_save, const CheckpointPolicy& policy,
                           const CostModel& costs, double overhead_s, double returning) {
  if (kind == MemoryKind::truncatable) return 1;
  if (!policy.adaptive) return policy.interval_tokens > 0 ? policy.interval_tokens : tokens;
  AdmissionInput input;
  input.kind = kind;
  input.prompt = tokens;
  input.ubatch = ubatch;
  input.can_save = can_save;
  input.policy = &policy;
  input.costs = &costs;
  input.returning = returning;
  // The shorter stretch may come out worse: cuts are whole ones.
  constexpr std::uint32_t steps = 64;
  std::uint32_t piece = 0;
  for (std::uint32_t i = 1; i <= steps; ++i) {
    input.prompt = std::max<std::uint32_t>(static_cast<std::uint32_t>(std::uint64_t{tokens} * i / steps), 1);
    input.overhead_s = overhead_s * input.prompt;
    std::uint32_t cuts = affordable_cuts(input, budget_left(input, caution(input)));
    if (cuts == 0) cuts = std::min(affordable_cuts(input, budget_left(input, least_caution(input))), 1U);
    piece = std::max(piece, input.prompt / (cuts + 1) + 1);
  }
  if (kind == MemoryKind::exact) return piece;
  return piece > ubatch ? std::max(piece - ubatch, ubatch) : ubatch;
}

std::uint32_t widest_gap(std::uint32_t base, std::uint32_t prompt, std::span<const std::uint32_t> points) {
  std::uint32_t widest = 0;
  std::uint32_t last = base;
  for (const std::uint32_t point : points) {
    if (point <= last || point >= prompt) continue;
    widest = std::max(widest, point - last);
    last = point;
  }
  return std::max(widest, prompt > last ? prompt - last : 0);
}

}  // namespace cairn

#include "simulate/simulation.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <deque>

#include "prefix/prefix_tree.hpp"
#include "simulate/replay.hpp"

namespace cairn {

namespace {

// Request by request, so that all find what was learned until then.
void replay_together(const Trace& trace, const SimulationOptions& options, std::deque<Replay>& replays, Learned& learned) {
  constexpr std::size_t nodes_a_prompt = 2;  // its own, and where it left another
  const bool learns = std::any_of(replays.begin(), replays.end(), [](const Replay& replay) { return replay.asks(); });
  if (learns) learned.values.reserve(1 + nodes_a_prompt * trace.requests.size());
  for (const TraceRequest& request : trace.requests) {
    PrefixTree::InsertResult inserted;
    for (Replay& replay : replays) inserted = replay.receive(request);
    if (learns) {
      const PrefixTree& tree = replays.back().tree();
      const auto left = learned.values.observe(tree, inserted, request.blocks, request.at_s, trace.block_tokens);
      learned.ends.observe(left.value_or(EndOffsets::longest + 1));
      learned.values.answered(inserted.leaf, request.answer_tokens);
    }
    for (Replay& replay : replays) replay.answer(request);
    if (options.replayed != nullptr) options.replayed->fetch_add(replays.size(), std::memory_order_relaxed);
  }
}

}  // namespace

SimulationResult simulate(const Trace& trace, const SimulationOptions& options, EvictionPolicy& policy) {
  Learned learned;
  std::deque<Replay> replays;
  replays.emplace_back(trace, options, options.budget_bytes, policy, learned);
  replay_together(trace, options, replays, learned);
  return replays.front().result();
}

std::vector<SimulationResult> simulate(const Trace& trace, const SimulationOptions& options, std::string_view policy,
                                       std::span<const std::uint64_t> budgets) {
  Learned learned;
  std::vector<std::unique_ptr<EvictionPolicy>> policies;
  std::deque<Replay> replays;
  for (const std::uint64_t budget : budgets) {
    policies.push_back(make_policy(policy));
    replays.emplace_back(trace, options, budget, *policies.back(), learned);
  }
  replay_together(trace, options, replays, learned);
  std::vector<SimulationResult> results;
  for (const Replay& replay : replays) results.push_back(replay.result());
  return results;
}

std::uint64_t distinct_tokens(const Trace& trace) {
  PrefixTree tree;
  for (const TraceRequest& request : trace.requests) tree.insert(trace.prompt(request), 0);
  return tree.edge_tokens_held() * trace.block_tokens;
}

Result<ModelProfile> parse_profile(std::string_view text) {
  ModelProfile profile;
  const auto wrong = [](std::string what) {
    Error error = internal_error("--model-profile: " + what);
    error.code = ErrorCode::invalid;
    return error;
  };
  if (text == "hybrid-3b-h100") {
    profile = ModelProfile{MemoryKind::checkpointed, 8e3, 76e6, 4096, 11000, 2e9, 2e9};
    return profile;
  }
  if (text == "dense-3b-h100") {
    profile = ModelProfile{MemoryKind::truncatable, 115e3, 0, 0, 16000, 2.6e9, 1.5e9};
    return profile;
  }
  while (!text.empty()) {
    const std::size_t end = std::min(text.find(','), text.size());
    const std::string_view part = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    const std::size_t equals = part.find('=');
    const std::string_view key = part.substr(0, equals);
    const std::string value{equals == std::string_view::npos ? std::string_view{} : part.substr(equals + 1)};
    if (key == "kind") {
      profile.kind = memory_kind_from_string(value);
      if (profile.kind == MemoryKind::unknown) return wrong(fmt::format("kind is truncatable, checkpointed or exact, not '{}'", value));
      continue;
    }
    char* rest = nullptr;
    const double number = std::strtod(value.c_str(), &rest);
    if (value.empty() || *rest != '\0' || !std::isfinite(number) || number < 0) return wrong(fmt::format("'{}' is no name and no key=number", part));
    const bool is_rate = key == "prefill_tokens_per_s" || key == "restore_bytes_per_s" || key == "save_bytes_per_s";
    constexpr double most = 1e15, least_rate = 1e-6;  // beyond them no sum is a number
    if (is_rate && number < least_rate) return wrong(fmt::format("{} must be {} or more", key, least_rate));
    if (number > most) return wrong(fmt::format("{} must be {} or less", key, most));
    if (key == "bytes_a_token") profile.bytes_a_token = number;
    else if (key == "bytes_a_state") profile.bytes_a_state = number;
    else if (key == "interval_tokens") profile.interval_tokens = static_cast<std::uint32_t>(std::min(number, 1e9));
    else if (key == "prefill_tokens_per_s") profile.prefill_tokens_per_s = number;
    else if (key == "restore_bytes_per_s") profile.restore_bytes_per_s = number;
    else if (key == "save_bytes_per_s") profile.save_bytes_per_s = number;
    else if (key == "save_fixed_s") profile.save_fixed_s = number;
    else return wrong(fmt::format("no key '{}'", key));
  }
  return profile;
}

}  // namespace cairn

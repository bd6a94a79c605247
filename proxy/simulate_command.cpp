#include "simulate_command.hpp"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <boost/json.hpp>
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <future>
#include <thread>
#include <utility>
#include <vector>

#include "base/printable_text.hpp"
#include "config.hpp"
#include "progress_line.hpp"
#include "simulate/report.hpp"

namespace cairn {

namespace {

Error invalid(std::string what) {
  Error error = internal_error(std::move(what));
  error.code = ErrorCode::invalid;
  return error;
}

// "80GiB", or "10%" of what all distinct tokens of the trace would take. Never 0: for simulate() that is no budget at all.
Result<std::uint64_t> budget_of(const std::string& text, double distinct_bytes) {
  if (text.empty() || text.back() != '%') {
    Result<std::uint64_t> bytes = parse_size(text);
    if (bytes && *bytes == 0) return invalid(fmt::format("'{}' leaves no room for any state", text));
    return bytes;
  }
  char* rest = nullptr;
  const double percent = std::strtod(text.c_str(), &rest);
  if (*rest != '%' || !std::isfinite(percent) || percent <= 0) return invalid(fmt::format("'{}' is no share", text));
  constexpr double most = 1e18;
  return static_cast<std::uint64_t>(std::clamp(distinct_bytes * percent / 100, 1.0, most));
}

// Of the flags, ascending.
Result<std::vector<std::uint64_t>> budgets_of(const SimulateFlags& flags, double distinct_bytes) {
  std::vector<std::uint64_t> budgets;
  for (const std::string& text : flags.budgets) {
    Result<std::uint64_t> budget = budget_of(text, distinct_bytes);
    if (!budget) {
      Error error = budget.error();
      error.context = "--budget: " + error.context;
      return error;
    }
    budgets.push_back(*budget);
  }
  std::sort(budgets.begin(), budgets.end());
  return budgets;
}

// The runs of one policy that are replayed together. What a policy learns is learned once a group, so there are only as many
// groups of a policy as can run side by side.
struct Group {
  std::string policy;
  std::vector<SimulationReport::Run*> runs;
};
std::vector<Group> groups_of(std::vector<SimulationReport::Run>& runs, std::size_t side_by_side) {
  std::vector<Group> groups;
  for (auto first = runs.begin(); first != runs.end();) {
    const auto end = std::find_if(first, runs.end(), [&](const SimulationReport::Run& run) { return run.policy != first->policy; });
    const std::size_t count = std::min(side_by_side, static_cast<std::size_t>(end - first));
    const std::size_t begin = groups.size();
    for (std::size_t i = 0; i < count; ++i) groups.push_back(Group{first->policy, {}});
    // Small budgets and large ones in each: they take different times.
    for (std::size_t i = 0; first != end; ++first, ++i) groups[begin + i % count].runs.push_back(&*first);
  }
  return groups;
}

// Fills in the results. Groups share nothing but the trace.
void simulate_side_by_side(const Trace& trace, const SimulationOptions& options, std::vector<SimulationReport::Run>& runs) {
  const std::size_t side_by_side = std::max(1U, std::thread::hardware_concurrency());
  const std::vector<Group> groups = groups_of(runs, side_by_side);
  std::atomic<std::size_t> next{0}, ended{0};
  const auto work = [&] {
    for (std::size_t i = next++; i < groups.size(); i = next++) {
      std::vector<std::uint64_t> budgets;
      for (const SimulationReport::Run* run : groups[i].runs) budgets.push_back(run->budget_bytes);
      const std::vector<SimulationResult> results = simulate(trace, options, groups[i].policy, budgets);
      for (std::size_t k = 0; k < results.size(); ++k) groups[i].runs[k]->result = results[k];
      ended += results.size();
    }
  };
  std::vector<std::jthread> workers(std::min(groups.size(), side_by_side));
  for (std::jthread& worker : workers) worker = std::jthread(work);
  const ProgressLine progress(trace.requests.size() * (1 + runs.size()));
  while (progress.shown() && ended < runs.size()) {
    progress.show(*options.replayed, fmt::format("{} of {} budgets", ended.load(), runs.size()));
    std::this_thread::sleep_for(std::chrono::milliseconds{100});
  }
}

Result<SimulationReport> simulate_all(const SimulateFlags& flags) {
  SimulationOptions options;
  Result<ModelProfile> profile = parse_profile(flags.profile);
  if (!profile) return profile.error();
  options.profile = *profile;
  options.low_water = flags.low_water;
  options.cut = flags.cut_states;
  std::atomic<std::uint64_t> replayed{0};
  options.replayed = &replayed;
  Result<std::vector<std::uint64_t>> budgets = budgets_of(flags, 0);
  if (!budgets) return budgets.error();  // before anything takes long
  Result<Trace> trace = read_traces(flags.traces);
  if (!trace) return trace.error();
  for (const std::string& skipped : trace->skipped) fmt::print(stderr, "cairn: {}\n", printable_text(skipped));

  if (trace->requests.empty()) {
    Error error = invalid("the trace holds no requests");
    error.code = ErrorCode::not_found;
    return error;
  }

  // Neither waits for the other. Unbounded, any policy would do.
  std::future<SimulationResult> unbounded = std::async(std::launch::async, [&] { return simulate(*trace, options, *make_policy("lru")); });
  SimulationReport report;
  report.distinct_tokens = distinct_tokens(*trace);
  report.span_s = trace->requests.back().at_s;
  budgets = budgets_of(flags, static_cast<double>(report.distinct_tokens) * options.profile.bytes_a_token);
  for (const std::string& name : flags.policies) {
    for (const std::uint64_t budget : *budgets) report.runs.push_back(SimulationReport::Run{name, budget, {}});
  }
  simulate_side_by_side(*trace, options, report.runs);
  report.unbounded = unbounded.get();
  return report;
}

}  // namespace

void add_simulate_flags(CLI::App& command, SimulateFlags& flags) {
  command.add_option("--trace", flags.traces, "files of requests: Mooncake's JSON lines, a coding agent's sessions, agents' prompts as text")
      ->required()
      ->expected(1, -1);
  command.add_option("--budget", flags.budgets, "80GiB,... or shares of what all distinct tokens take (5%,10%,25%,50%,100%)")->delimiter(',');
  command.add_option("--model-profile", flags.profile,
                     "hybrid-3b-h100, dense-3b-h100, or key=number,...: kind (truncatable, checkpointed, exact), bytes_a_token (20e3), "
                     "bytes_a_state (62e6), interval_tokens (0), prefill_tokens_per_s (500), restore_bytes_per_s (1.5e9), save_bytes_per_s (1e9), save_fixed_s (0.01, of each save). "
                     "Time saved is that of computing without a cache, less computing, restoring and saving with it");
  command.add_option("--policy", flags.policies, "value (what Cairn does), lru, gdsf, marconi; several to compare")
      ->delimiter(',')
      ->check(CLI::IsMember({"value", "lru", "gdsf", "marconi"}));
  command.add_option("--low-water", flags.low_water, "share of the budget that an eviction trims to (1)")->check(CLI::Range(0.0, 1.0));
  command.add_flag("--cut-states", flags.cut_states, "keep the beginning of a state where the whole finds no room; the store does not do that today");
  command.add_option("--svg", flags.svg_path, "write a chart of hit rate against budget there");
  command.add_flag("--json", flags.json, "for programs");
}

int run_simulate(const SimulateFlags& flags) {
  Result<SimulationReport> report = simulate_all(flags);
  if (!report) {
    boost::json::object told;
    told["error"] = report.error().context;
    if (flags.json) fmt::print("{}\n", json_text(told));
    else fmt::print(stderr, "cairn: {}\n", printable_text(report.error().context));
    return report.error().code == ErrorCode::not_found ? 1 : 2;
  }
  fmt::print("{}", flags.json ? to_json(*report) + "\n" : to_table(*report));
  if (flags.svg_path.empty()) return 0;
  std::ofstream file(flags.svg_path);
  file << to_svg(*report, fmt::format("{} requests, {} tokens", report->unbounded.requests, report->unbounded.prompt_tokens));
  file.close();
  if (file) return 0;
  fmt::print(stderr, "cairn: cannot write {}\n", printable_text(flags.svg_path));
  return 1;
}

}  // namespace cairn

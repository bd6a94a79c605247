#include "simulate_command.hpp"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <thread>

#include "config.hpp"
#include "progress_line.hpp"
#include "simulate/report.hpp"

namespace cairn {

namespace {

// "80GiB", or "10%" of what all distinct tokens of the trace would take.
Result<std::uint64_t> budget_of(const std::string& text, double distinct_bytes) {
  if (text.empty() || text.back() != '%') return parse_size(text);
  char* rest = nullptr;
  const double percent = std::strtod(text.c_str(), &rest);
  if (*rest != '%' || !std::isfinite(percent) || percent <= 0) {
    Error error = internal_error(fmt::format("'{}' is no share", text));
    error.code = ErrorCode::invalid;
    return error;
  }
  return static_cast<std::uint64_t>(distinct_bytes * percent / 100);
}

// Fills in the results. The runs share nothing but the trace.
void simulate_side_by_side(const Trace& trace, const SimulationOptions& options, std::vector<SimulationReport::Run>& runs) {
  std::atomic<std::size_t> next{0}, ended{0};
  std::atomic<std::uint64_t> replayed{0};
  const auto work = [&] {
    for (std::size_t i = next++; i < runs.size(); i = next++) {
      SimulationOptions own = options;
      own.budget_bytes = runs[i].budget_bytes;
      own.replayed = &replayed;
      runs[i].result = simulate(trace, own, *make_policy(runs[i].policy));
      ++ended;
    }
  };
  std::vector<std::jthread> workers(std::min<std::size_t>(runs.size(), std::max(1U, std::thread::hardware_concurrency())));
  for (std::jthread& worker : workers) worker = std::jthread(work);
  const ProgressLine progress(trace.requests.size() * runs.size());
  while (progress.shown() && ended < runs.size()) {
    progress.show(replayed, fmt::format("{} of {} runs", ended.load(), runs.size()));
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
  Result<Trace> trace = read_traces(flags.traces);
  if (!trace) return trace.error();

  SimulationReport report;
  report.distinct_tokens = distinct_tokens(*trace);
  if (!trace->requests.empty()) report.span_s = trace->requests.back().at_s;
  std::vector<std::uint64_t> budgets;
  for (const std::string& text : flags.budgets) {
    Result<std::uint64_t> budget = budget_of(text, static_cast<double>(report.distinct_tokens) * options.profile.bytes_a_token);
    if (!budget) {
      Error error = budget.error();
      error.context = "--budget: " + error.context;
      return error;
    }
    budgets.push_back(*budget);
  }
  std::sort(budgets.begin(), budgets.end());
  std::vector<SimulationReport::Run> runs{{"lru", 0, {}}};
  for (const std::string& name : flags.policies) {
    for (const std::uint64_t budget : budgets) runs.push_back(SimulationReport::Run{name, budget, {}});
  }
  simulate_side_by_side(*trace, options, runs);
  report.unbounded = runs.front().result;
  report.runs.assign(std::make_move_iterator(runs.begin() + 1), std::make_move_iterator(runs.end()));
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
                     "bytes_a_state (62e6), interval_tokens (0), prefill_tokens_per_s (500), restore_bytes_per_s (1.5e9), save_bytes_per_s (1e9)");
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
    fmt::print(stderr, "cairn: {}\n", report.error().context);
    return 2;
  }
  fmt::print("{}", flags.json ? to_json(*report) + "\n" : to_table(*report));
  if (flags.svg_path.empty()) return 0;
  std::ofstream file(flags.svg_path);
  file << to_svg(*report, fmt::format("{} requests, {} tokens", report->unbounded.requests, report->unbounded.prompt_tokens));
  file.close();
  if (file) return 0;
  fmt::print(stderr, "cairn: cannot write {}\n", flags.svg_path);
  return 1;
}

}  // namespace cairn

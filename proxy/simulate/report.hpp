// What a simulation found, for people, for programs, and as a chart of hit rate against budget.
// Pure.
#pragma once

#include <string>
#include <vector>

#include "simulate/simulation.hpp"

namespace cairn {

struct SimulationReport {
  struct Run {
    std::string policy;
    std::uint64_t budget_bytes = 0;
    SimulationResult result;
  };
  std::uint64_t distinct_tokens = 0;
  double span_s = 0;            // of the trace
  SimulationResult unbounded;
  std::vector<Run> runs;        // by policy, budgets ascending within one
};

std::string to_table(const SimulationReport& report);
std::string to_json(const SimulationReport& report);
std::string to_svg(const SimulationReport& report, std::string_view title);

}  // namespace cairn

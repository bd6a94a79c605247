// `cairn simulate`: what a trace of requests would gain from which budget.
#pragma once

#include <string>
#include <vector>

namespace CLI {
class App;
}

namespace cairn {

struct SimulateFlags {
  std::vector<std::string> traces;
  std::vector<std::string> budgets{"5%", "10%", "25%", "50%", "100%"};
  std::vector<std::string> policies{"value"};
  std::string profile;
  std::string svg_path;
  double low_water = 1.0;
  bool cut_states = false;
  bool json = false;
};

void add_simulate_flags(CLI::App& command, SimulateFlags& flags);

// The process's exit status: 2 for flags and files that make no sense.
int run_simulate(const SimulateFlags& flags);

}  // namespace cairn

// The commands about saved states: list, show, pin, unpin, evict, verify, warm.
// Errors: said on stderr.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "config.hpp"

namespace CLI {
class App;
}

namespace cairn {

struct StoreCommand {
  std::vector<std::int64_t> ids;
  std::vector<std::string> files;  // of prompts; "-": stdin
  std::string label;
  bool all = false;
  bool as_json = false;
};

// Adds them to `app`; the returned ones still want the flags of the configuration.
std::vector<CLI::App*> add_store_commands(CLI::App& app, StoreCommand& command);
// Returns the process's exit status: 0, or 1 when something could not be done or was found bad.
int run_store_command(const std::string& name, const Config& config, const StoreCommand& command);

}  // namespace cairn

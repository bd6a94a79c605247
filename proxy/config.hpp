// The configuration: a YAML file, flags over it, and every mistake named with file, line and key.
// Errors: invalid.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.hpp"

namespace cairn {

// One of several, or the only one.
struct BackendConfig {
  std::string url;
  std::string api_key;
  std::vector<std::string> models;  // the names it serves; empty: all that no other does
  std::uint32_t ubatch_tokens = 0;
};

struct Config {
  std::string listen = "127.0.0.1:8081";
  std::string backend = "http://127.0.0.1:8080";
  std::vector<BackendConfig> backends;  // by the names of models; empty: `backend` is the only one
  std::string slot_dir;   // what the backend got as --slot-save-path, as this process sees it
  std::string state_dir;  // Cairn's own data
  std::string disk_dir;   // set: two tiers; slot_dir is in RAM, and here lie the copies that outlive a reboot
  std::string backend_api_key;
  std::string own_api_key;        // for /cairn/…; empty: whoever can connect may ask
  std::string tls_certificate;    // PEM; with tls_key: clients come by https://
  std::string tls_key;
  std::string backend_ca;         // PEM; whom to trust as the backend; empty: the system's authorities
  bool backend_tls_verify = true;
  std::uint64_t budget_bytes = 20ull << 30;
  std::uint64_t ram_budget_bytes = 4ull << 30;  // with disk_dir: of slot_dir; `budget` is disk_dir's then
  std::uint64_t min_free_bytes = 2ull << 30;
  double low_water = 1.0;  // of the budget: what an eviction trims to
  std::optional<std::uint32_t> checkpoint_interval_tokens;  // 0: none inside a prompt; nullopt: chosen from what things cost
  double checkpoint_budget = 0.03;           // of a prompt's own time, for the stops that are chosen
  std::uint32_t worst_recomputation_tokens = 512;       // what they aim at
  std::chrono::milliseconds worst_recomputation{0};     // the same as a time; 0: the tokens hold
  std::uint32_t ubatch_tokens = 512;
  std::uint64_t max_body_bytes = 64ull << 20;
  std::uint64_t max_header_bytes = 64ull << 10;
  std::uint32_t max_connections = 1024;
  std::uint32_t max_waiting = 1024;
  std::chrono::seconds max_wait{0};  // in the queue; 0: as long as the client does
  std::chrono::seconds shutdown_limit{30};
  bool verify_checksums = true;
  bool log_prompts = false;  // text of prompts may stand in the log and in /cairn/status
  std::string log_level = "info";
};

struct ListenAddress {
  std::string host;
  std::uint16_t port = 0;
};

// Reads `path` over the defaults. Unknown keys, wrong types and values out of range are errors:
// "cairn.yaml:7: budget: 'lots' is not a size (20GiB, 500MiB, …)".
Result<Config> load_config(const std::string& path);
// Whether it makes sense as a whole; the error names the key (or the flag).
Result<void> validate(const Config& config);

// Those of `backends`, with what they leave out filled in; or `backend`.
std::vector<BackendConfig> all_backends(const Config& config);

Result<ListenAddress> parse_listen(std::string_view text);   // "127.0.0.1:8081", "[::1]:8081", ":8081"
Result<std::uint64_t> parse_size(std::string_view text);     // "20GiB", "500 MiB", "1G", plain bytes
Result<std::uint32_t> parse_count(std::string_view text);    // 1 or more
Result<std::string> parse_log_level(std::string_view text);  // debug, info, warn, error
// Tokens, "off" (0), or "auto" (nullopt).
Result<std::optional<std::uint32_t>> parse_interval(std::string_view text);
Result<bool> parse_bool(std::string_view text);  // true, yes, on, …
Result<double> parse_share(std::string_view text);  // "3%", "0.03"
// Tokens ("1024"), or a time ("500ms", "2s").
struct Recomputation {
  std::uint32_t tokens = 0;
  std::chrono::milliseconds time{0};
};
Result<Recomputation> parse_recomputation(std::string_view text);

}  // namespace cairn

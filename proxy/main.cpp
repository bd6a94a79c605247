// The command line: `cairn serve`, `cairn check`, the commands about saved states and `cairn simulate`.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <exception>
#include <optional>
#include <string>
#include <vector>

#include "base/error.hpp"
#include "base/printable_text.hpp"
#include "check.hpp"
#include "config.hpp"
#include "serve.hpp"
#include "simulate_command.hpp"
#include "store_commands.hpp"

namespace {

// Flags override the file; what is not given stays.
struct Flags {
  std::string config_path;
  std::optional<std::string> listen, backend, slot_dir, state_dir, disk_dir, budget, ram_budget, min_free, interval, log_level, api_key,
      ubatch;
  std::optional<std::string> own_key, tls_certificate, tls_key, backend_ca, backend_tls_verify;
};

void add_flags(CLI::App& command, Flags& flags) {
  command.add_option("--config", flags.config_path, "YAML file; see config/cairn.yaml");
  command.add_option("--listen", flags.listen, "HOST:PORT to serve on (127.0.0.1:8081)");
  command.add_option("--backend", flags.backend, "llama-server's address (http://127.0.0.1:8080)");
  command.add_option("--slot-dir", flags.slot_dir, "what llama-server got as --slot-save-path, as seen from here");
  command.add_option("--state-dir", flags.state_dir, "where Cairn keeps its index");
  command.add_option("--disk-dir", flags.disk_dir, "with --slot-dir in RAM: where copies of the states lie on a disk");
  command.add_option("--budget", flags.budget, "bytes that saved states may take (20GiB)");
  command.add_option("--ram-budget", flags.ram_budget, "with --disk-dir: of these in --slot-dir (4GiB)");
  command.add_option("--min-free", flags.min_free, "bytes of the disk to leave free (2GiB)");
  command.add_option("--checkpoint-interval", flags.interval,
                     "tokens between checkpoints inside a prompt, off, or auto: as the budget of 3 % allows (auto)");
  command.add_option("--ubatch", flags.ubatch, "llama-server's --ubatch-size, when it is not 512");
  command.add_option("--backend-api-key", flags.api_key, "for Cairn's own calls to a backend with --api-key");
  command.add_option("--own-api-key", flags.own_key, "what /cairn/... asks for; these commands send it");
  command.add_option("--tls-certificate", flags.tls_certificate, "PEM file to serve https:// with, its chain behind it");
  command.add_option("--tls-key", flags.tls_key, "PEM file of its key");
  command.add_option("--backend-ca", flags.backend_ca, "PEM file of whom to trust as a https:// backend (the system's authorities)");
  command.add_option("--backend-tls-verify", flags.backend_tls_verify, "false: any certificate of the backend will do (true)");
  command.add_option("--log-level", flags.log_level, "debug, info, warn or error");
}

template <class Value, class Parsed>
cairn::Result<void> take(Value& into, const std::optional<std::string>& flag, const char* name,
                         cairn::Result<Parsed> (*parse)(std::string_view)) {
  if (!flag) return {};
  cairn::Result<Parsed> value = parse(*flag);
  if (!value) {
    cairn::Error error = value.error();
    error.context = fmt::format("{}: {}", name, error.context);
    return error;
  }
  into = *value;
  return {};
}

cairn::Result<cairn::Config> configuration(const Flags& flags) {
  cairn::Config config;
  if (!flags.config_path.empty()) {
    cairn::Result<cairn::Config> loaded = cairn::load_config(flags.config_path);
    if (!loaded) return loaded.error();
    config = *loaded;
  }
  if (flags.listen) config.listen = *flags.listen;
  if (flags.backend) {
    config.backend = *flags.backend;
    config.backends.clear();
  }
  if (flags.slot_dir) config.slot_dir = *flags.slot_dir;
  if (flags.state_dir) config.state_dir = *flags.state_dir;
  if (flags.disk_dir) config.disk_dir = *flags.disk_dir;
  if (flags.api_key) config.backend_api_key = *flags.api_key;
  if (flags.own_key) config.own_api_key = *flags.own_key;
  if (flags.tls_certificate) config.tls_certificate = *flags.tls_certificate;
  if (flags.tls_key) config.tls_key = *flags.tls_key;
  if (flags.backend_ca) config.backend_ca = *flags.backend_ca;
  cairn::Result<void> ok = take(config.budget_bytes, flags.budget, "--budget", &cairn::parse_size);
  if (ok) ok = take(config.ram_budget_bytes, flags.ram_budget, "--ram-budget", &cairn::parse_size);
  if (ok) ok = take(config.min_free_bytes, flags.min_free, "--min-free", &cairn::parse_size);
  if (ok) ok = take(config.checkpoint_interval_tokens, flags.interval, "--checkpoint-interval", &cairn::parse_interval);
  if (ok) ok = take(config.ubatch_tokens, flags.ubatch, "--ubatch", &cairn::parse_count);
  if (ok) ok = take(config.backend_tls_verify, flags.backend_tls_verify, "--backend-tls-verify", &cairn::parse_bool);
  if (ok) ok = take(config.log_level, flags.log_level, "--log-level", &cairn::parse_log_level);
  if (ok) ok = cairn::validate(config);
  if (!ok) {
    cairn::Error error = ok.error();
    if (!flags.config_path.empty() && error.context.rfind("--", 0) != 0) error.context = flags.config_path + ": " + error.context;
    return error;
  }
  return config;
}

int run(int argc, char** argv, bool& serves) {
  CLI::App app{"Cairn: a caching reverse proxy in front of llama-server"};
  app.set_version_flag("--version", std::string{"cairn "} + CAIRN_VERSION);
  app.require_subcommand(1);
  Flags flags;
  CLI::App* serve = app.add_subcommand("serve", "serve clients in front of a llama-server");
  add_flags(*serve, flags);
  CLI::App* check = app.add_subcommand("check", "validate the configuration, talk to the backend and say what is found");
  add_flags(*check, flags);
  cairn::StoreCommand store_command;
  const std::vector<CLI::App*> store_commands = cairn::add_store_commands(app, store_command);
  for (CLI::App* command : store_commands) add_flags(*command, flags);
  cairn::SimulateFlags simulation;
  CLI::App* simulate = app.add_subcommand("simulate", "replay a trace of requests against several budgets: which disk to buy");
  cairn::add_simulate_flags(*simulate, simulation);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;  // --help and --version are no mistakes
  }

  if (simulate->parsed()) return cairn::run_simulate(simulation);

  cairn::Result<cairn::Config> config = configuration(flags);
  if (!config) {
    fmt::print(stderr, "cairn: {}\n", cairn::printable_text(config.error().context));
    return 2;
  }
  for (const CLI::App* command : store_commands) {
    if (command->parsed()) return cairn::run_store_command(command->get_name(), *config, store_command);
  }
  serves = serve->parsed();
  return serves ? cairn::serve(*config) : cairn::check(*config);
}

}  // namespace

int main(int argc, char** argv) {
  bool serves = false;
  int status = 1;
  try {
    status = run(argc, argv, serves);
  } catch (const std::exception&) {
    if (std::ferror(stdout) == 0) throw;  // fmt throws when it cannot write
  }
  // What a server writes there is its log, without which it has served all the same.
  if (serves || (std::fflush(stdout) == 0 && std::ferror(stdout) == 0)) return status;
  fmt::print(stderr, "cairn: the output could not be written\n");
  return status == 0 ? 1 : status;
}

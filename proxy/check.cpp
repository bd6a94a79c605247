#include "check.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>

#include <array>
#include <cerrno>
#include <chrono>
#include <exception>
#include <filesystem>
#include <memory>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "backend/llama_api.hpp"
#include "base/blocking_pool.hpp"
#include "base/printable_text.hpp"
#include "checkpoint/file_layer.hpp"
#include "checkpoint/store.hpp"
#include "request/probe.hpp"
#include "served_store.hpp"
#include "store_client.hpp"
#include "tls_files.hpp"

namespace cairn {

namespace {

void line(std::string_view what, const std::string& found) { fmt::print("  {:<14} {}\n", what, printable_text(found)); }
void advice(const std::string& text) { fmt::print("  ! {}\n", printable_text(text)); }

std::string joined(const std::vector<std::string>& names) { return fmt::format("{}", fmt::join(names, ", ")); }

// The models of a router, or of llama-swap; none is loaded to look at it.
Task<bool> list_models(LlamaApi& api, ServerKind kind, CancelSource& never) {
  Result<ServerListing> listing = ServerListing{};
  if (kind == ServerKind::router) {
    listing = co_await api.router_listing(never);
  } else {
    listing = co_await api.swap_listing(never);
  }
  if (!listing) {
    advice(to_string(listing.error()));
    co_return false;
  }
  line("server", kind == ServerKind::router ? "a router of several models" : "llama-swap");
  if (listing->most_running > 0) line("at a time", fmt::format("{} models", listing->most_running));
  for (const ListedModel& model : listing->models) {
    line("model", fmt::format("{}{}{}", model.name, model.aliases.empty() ? "" : fmt::format(" ({})", joined(model.aliases)),
                              model.running ? ", runs" : ""));
  }
  line("saving", "is tried with each model when a request first wants it");
  co_return true;
}

// False: requests would only be passed on.
Task<bool> check_backend(const BackendConfig& config, std::shared_ptr<const TlsContext> tls, CheckpointStore* store, BlockingPool& pool) {
  const auto executor = co_await boost::asio::this_coro::executor;
  bool works = true;
  fmt::print("backend {}{}\n", config.url, config.models.empty() ? "" : " for " + joined(config.models));
  UpstreamOptions upstream_options;
  upstream_options.tls = std::move(tls);
  std::unique_ptr<Upstream> upstream = make_upstream(executor, *parse_upstream_url(config.url), std::move(upstream_options));
  LlamaApi api(*upstream, config.api_key);
  CancelSource never;
  Result<bool> healthy = co_await api.healthy(never);
  if (!healthy || !*healthy) {
    advice(healthy ? "the model is still being loaded: try again in a moment"
                   : fmt::format("no llama-server at {}: {}", config.url, healthy.error().context));
    co_return false;
  }
  const bool may_wake = false;
  Result<ProbeResult> probed = co_await probe_backend(api, store, pool, may_wake, never);
  if (!probed) {
    if (probed.error().status == 401 || probed.error().status == 403) {
      advice("the backend wants a key: give --backend-api-key (or backend_api_key)");
    } else {
      advice(to_string(probed.error()));
    }
    co_return false;
  }
  if (probed->server != ServerKind::single) co_return co_await list_models(api, probed->server, never);
  line("model", probed->meta.id);
  line("size", fmt::format("{:.1f} M parameters, {}, {} MiB", static_cast<double>(probed->meta.n_params) / 1e6, probed->meta.ftype,
                           probed->meta.size_bytes >> 20));
  line("build", probed->props.build_info);
  line("slots", fmt::format("{} of {} tokens", probed->props.total_slots, probed->meta.n_ctx));
  if (probed->can_save) {
    line("memory", fmt::format("{} ({})", to_string(probed->kind), probed->kind_because));
    line("saving", fmt::format("works, files of version {}", probed->state_version));
    const char* const keeping = probed->clears_idle ? "are cleared when another slot starts" : "keep their state";
    line("idle slots", probed->clears_idle_known ? keeping : "in use: whether they keep their state could not be found out");
    line("computed", fmt::format("{} tokens to find this out", probed->computed_tokens));
  } else if (store != nullptr) {
    advice(probed->save_trouble);
    works = false;
  }

  if (probed->clears_idle && probed->clears_idle_known) {
    advice("idle slots are cleared by every request of another slot: start llama-server with -np N (or --no-cache-idle-slots)");
  }
  if (probed->can_save && probed->kind == MemoryKind::exact) {
    advice("states of this model can only be resumed at their very end: drop --ctx-checkpoints 0, or use a llama-server of "
           "September 2026 or later");
  }
  if (probed->can_save && probed->state_version < 4) {
    advice("this build keeps the context checkpoints of a slot's previous prompt through a restore; Cairn washes the slot "
           "first (one token each time); a newer llama-server does not need it");
  }
  if (!probed->props.endpoint_metrics) advice("without --metrics you cannot see what the backend computes in all");
  co_return works;
}

// `cairn serve` makes a directory that is missing; not here, where another user may look. Empty: it can be written.
std::string not_writable(const std::string& directory) {
  std::error_code unknown;
  std::filesystem::path path = std::filesystem::absolute(directory, unknown);
  while (!std::filesystem::exists(path, unknown) && path.has_relative_path()) path = path.parent_path();
  if (::faccessat(AT_FDCWD, path.c_str(), W_OK | X_OK, AT_EACCESS) == 0) return {};
  // A filter of system calls that does not know this one.
  if (errno == EPERM && ::access(path.c_str(), W_OK | X_OK) == 0) return {};
  return fmt::format("{}: {}", path.string(), std::generic_category().message(errno));
}

// Whoever holds the directories is the server of this configuration.
Task<bool> serves_here(const Config& config, BlockingPool& pool) {
  StoreClient client(co_await boost::asio::this_coro::executor, config, pool);
  if (!client.connect_to_server()) co_return false;
  const Result<void> has_it = co_await client.has_named_store(std::chrono::seconds{5});
  co_return has_it || has_it.error().code == ErrorCode::rejected;
}

struct CheckedStore {
  std::unique_ptr<CheckpointStore> store;  // null: saving cannot be tried
  bool works = true;
};

// Nothing there is changed: a server with another budget, or one that knows the index, is not to find its states gone.
Task<CheckedStore> check_store(const Config& config, FileLayer& files, BlockingPool& pool) {
  CheckedStore checked;
  StoreOptions options = store_options(config);
  options.look_only = true;
  options.may_have_no_index = true;
  Result<std::unique_ptr<CheckpointStore>> opened = co_await CheckpointStore::open(std::move(options), files, pool);
  if (!opened && opened.error().code == ErrorCode::invalid) {
    advice(fmt::format("another Cairn uses these directories, its states are not looked at: {}", opened.error().context));
    // A command ends; who serves elsewhere does not.
    const bool in_the_way = !opened.error().may_retry && !co_await serves_here(config, pool);
    if (in_the_way) advice(fmt::format("it does not answer at {}: while it runs cairn serve would end because of it", config.listen));
    co_return checked;
  }
  if (!opened) {
    const std::string& found = opened.error().context;
    const bool in_index = found.starts_with("index: ") && opened.error().code != ErrorCode::io;
    advice(fmt::format("slot_dir or state_dir: {}{}", found,
                       in_index ? "; cairn serve would set that index aside and delete all saved states" : ""));
    checked.works = false;
    co_return checked;
  }
  checked.store = std::move(*opened);
  const StoreCounters counters = checked.store->counters();
  line("saved states", fmt::format("{}, {} MiB of {} MiB", counters.files, counters.bytes >> 20, config.budget_bytes >> 20));
  if (counters.bytes > config.budget_bytes) advice("cairn serve would evict what is over this budget");
  if (counters.absent_entries > 0) {
    advice(fmt::format("{} more states that the index names are missing, or have another size", counters.absent_entries));
  }
  if (counters.damaged_entries > 0) {
    advice(fmt::format("{} entries of the index are damaged: cairn serve would drop them with their states", counters.damaged_entries));
  }
  const std::array directories{std::pair{"slot_dir", &config.slot_dir}, std::pair{"state_dir", &config.state_dir},
                               std::pair{"disk_dir", &config.disk_dir}};
  for (const auto& [name, directory] : directories) {
    const std::string why = directory->empty() ? std::string{} : not_writable(*directory);
    if (why.empty()) continue;
    advice(fmt::format("{} cannot be written: {}", name, why));
    checked.works = false;
  }
  if (!config.disk_dir.empty() && !files.status(config.slot_dir)) {
    advice("slot_dir is missing, so that saving is not tried: cairn serve makes it");
    checked.store = nullptr;
  }
  co_return checked;
}

Task<int> run(const Config& config) {
  const auto executor = co_await boost::asio::this_coro::executor;
  fmt::print("configuration\n");
  line("listen", config.listen);
  line("slot dir", config.slot_dir.empty() ? "-" : config.slot_dir);
  line("state dir", config.state_dir.empty() ? "-" : config.state_dir);

  const Result<TlsFiles> tls = load_tls(config);
  if (!tls) {
    advice(tls.error().context);
    co_return 1;
  }
  if (tls->listen) line("certificate", fmt::format("{} {}", config.tls_certificate, tls->listen->validity()));
  if (tls->listen && tls->listen->expired()) advice("clients will refuse an expired certificate (tls_certificate)");
  if (tls->backend && !config.backend_tls_verify) advice("backend_tls_verify is off: whoever answers there is taken for the backend");

  PosixFileLayer files;
  BlockingPool pool(2);
  std::unique_ptr<CheckpointStore> store;
  bool works = true;
  if (config.slot_dir.empty()) {
    advice("without slot_dir and state_dir nothing is saved: give --slot-dir and --state-dir");
    works = false;
  } else {
    CheckedStore checked = co_await check_store(config, files, pool);
    store = std::move(checked.store);
    works = checked.works;
  }

  for (const BackendConfig& backend : all_backends(config)) {
    if (!co_await check_backend(backend, tls->backend, store.get(), pool)) works = false;
  }
  fmt::print("{}\n", works ? "Cairn can work here." : "Cairn cannot cache here; it would only pass requests on.");
  co_return works ? 0 : 1;
}

}  // namespace

int check(const Config& config) {
  spdlog::set_level(spdlog::level::off);
  boost::asio::io_context io(1);
  int status = 1;
  const auto ended = [&](std::exception_ptr error, int result) {
    if (error) std::rethrow_exception(error);
    status = result;
  };
  boost::asio::co_spawn(io, run(config), ended);
  io.run();
  return status;
}

}  // namespace cairn

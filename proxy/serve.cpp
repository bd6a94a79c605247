#include "serve.hpp"

#include <fmt/format.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>

#include <sys/resource.h>

#include <cerrno>
#include <csignal>
#include <cstring>
#include <exception>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "backend/upstream.hpp"
#include "base/blocking_pool.hpp"
#include "http/listener.hpp"
#include "http/router.hpp"
#include "observe/metrics.hpp"
#include "request/served_models.hpp"
#include "served_store.hpp"
#include "tls_files.hpp"

namespace cairn {

namespace {

constexpr std::chrono::milliseconds start_patience{1500};
constexpr std::chrono::milliseconds lock_patience{300};

CacheOptions cache_options(const Config& config, const BackendConfig& backend) {
  CacheOptions cache;
  cache.policy.adaptive = !config.checkpoint_interval_tokens.has_value();
  cache.policy.interval_tokens = config.checkpoint_interval_tokens.value_or(0);
  cache.policy.budget = config.checkpoint_budget;
  cache.policy.bound_tokens = config.worst_recomputation_tokens;
  cache.policy.bound_s = std::chrono::duration<double>(config.worst_recomputation).count();
  cache.ubatch_tokens = backend.ubatch_tokens;
  cache.queue.max_waiting = config.max_waiting;
  cache.queue.longest_wait = config.max_wait;
  cache.log_prompts = config.log_prompts;
  cache.api_key = backend.api_key;
  return cache;
}

// A request takes two descriptors and more; the soft limit is often 1024, for the sake of select().
void raise_descriptor_limit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur >= limit.rlim_max) return;
  limit.rlim_cur = limit.rlim_max;
  if (setrlimit(RLIMIT_NOFILE, &limit) != 0) spdlog::warn("no more than the usual number of open files: {}", std::strerror(errno));
}

std::string urls_of(const Config& config) {
  std::vector<std::string> urls;
  for (const BackendConfig& backend : all_backends(config)) urls.push_back(backend.url);
  return fmt::format("{}", fmt::join(urls, ", "));
}

Task<int> run(const Config& config) {
  const auto executor = co_await boost::asio::this_coro::executor;
  const Result<TlsFiles> tls = load_tls(config);
  if (!tls) {
    spdlog::error("{}", tls.error().context);
    co_return 1;
  }
  if (tls->listen && tls->listen->expired()) spdlog::warn("tls_certificate {} {}", config.tls_certificate, tls->listen->validity());
  boost::asio::signal_set signals(executor, SIGINT, SIGTERM);
  BlockingPool pool(2);
  ServedStore served(executor, config, pool);
  bool try_again = false;
  if (config.slot_dir.empty()) {
    spdlog::warn("no slot_dir and state_dir: nothing is saved or restored, requests are only passed on");
  } else {
    Result<void> opened = co_await served.open();
    const auto another_serves = [&] { return !opened && opened.error().code == ErrorCode::invalid && !opened.error().may_retry; };
    if (another_serves()) {
      // What that lock says may be of one that served before, if a command took it this instant. Or it is just ending.
      boost::asio::steady_timer moment(executor, lock_patience);
      co_await moment.async_wait(boost::asio::use_awaitable);
      opened = co_await served.open();
    }
    if (another_serves()) {
      spdlog::error("slot_dir {}, state_dir {}: {}", config.slot_dir, config.state_dir, opened.error().context);
      co_return 1;
    }
    if (!opened) {
      spdlog::warn("slot_dir {}, state_dir {}: {}; requests are only passed on until that is over", config.slot_dir, config.state_dir,
                   opened.error().context);
      try_again = true;
    }
  }

  ServedModels models;
  for (const BackendConfig& backend : all_backends(config)) {
    UpstreamOptions upstream_options;
    upstream_options.tls = tls->backend;
    std::unique_ptr<Upstream> upstream = make_upstream(executor, *parse_upstream_url(backend.url), std::move(upstream_options));
    models.add(backend.models, std::make_unique<ModelServer>(executor, std::move(upstream), served.store(), served.catalogue(), pool,
                                                             cache_options(config, backend)));
  }
  if (try_again) served.keep_trying(models);
  Metrics metrics;
  Router router(models, metrics, config.max_body_bytes, config.own_api_key);

  // The probe comes before the first request, so that what it computes is not in any client's way.
  co_await models.start(start_patience);

  const ListenAddress address = *parse_listen(config.listen);
  ListenerOptions listen;
  listen.host = address.host;
  listen.port = address.port;
  listen.max_connections = config.max_connections;
  listen.session.max_head_bytes = config.max_header_bytes;
  listen.session.request.max_body_bytes = config.max_body_bytes;
  listen.session.tls = tls->listen;
  Result<std::unique_ptr<Listener>> listener = Listener::open(executor, std::move(listen), router);
  if (!listener) {
    spdlog::error("listen: {}", listener.error().context);
    co_await served.stop();
    co_await models.stop(std::chrono::milliseconds{0});
    co_return 1;
  }
  (*listener)->start();
  spdlog::info("serving {}://{}:{} in front of {}", tls->listen ? "https" : "http", address.host, (*listener)->port(), urls_of(config));

  const int signal = co_await signals.async_wait(boost::asio::use_awaitable);
  spdlog::info("signal {}: no new requests; those under way have {} s", signal, config.shutdown_limit.count());
  signals.clear();  // a second signal ends the process at once
  // Those that wait for calls of Cairn's own would not notice that they are cut.
  boost::asio::steady_timer last_call(executor);
  last_call.expires_after(config.shutdown_limit);
  last_call.async_wait([&models](boost::system::error_code error) {
    if (!error) models.cut();
  });
  const std::size_t cut = co_await (*listener)->drain(config.shutdown_limit);
  last_call.cancel();
  if (cut > 0) spdlog::warn("{} requests did not end in time and were cut", cut);
  co_await served.stop();
  co_await models.stop(config.shutdown_limit);
  spdlog::info("stopped");
  co_return 0;
}

}  // namespace

int serve(const Config& config) {
  spdlog::set_default_logger(spdlog::stderr_color_mt("cairn"));
  spdlog::set_pattern("%Y-%m-%d %H:%M:%S.%e %^%L%$ %v");
  spdlog::set_level(spdlog::level::from_str(config.log_level));
  std::signal(SIGPIPE, SIG_IGN);
  raise_descriptor_limit();

  boost::asio::io_context io(1);  // one thread owns all mutable state: no locks
  int status = 1;
  const auto ended = [&](std::exception_ptr error, int result) {
    io.stop();
    if (error) std::rethrow_exception(error);
    status = result;
  };
  boost::asio::co_spawn(io, run(config), ended);
  try {
    io.run();
  } catch (const std::exception& error) {
    spdlog::critical("stopped by a bug: {}", error.what());
    return 1;
  }
  return status;
}

}  // namespace cairn

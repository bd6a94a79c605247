#include "request/model_server.hpp"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <array>
#include <functional>
#include <utility>

namespace cairn {

namespace {

// llama-swap takes the slashes of a name as they are.
std::string swap_prefix(std::string_view name) {
  std::string prefix = "/upstream";
  for (std::size_t from = 0; from <= name.size();) {
    const std::size_t slash = std::min(name.find('/', from), name.size());
    prefix += "/" + percent_encoded(name.substr(from, slash - from));
    from = slash + 1;
  }
  return prefix;
}

// Whether the server sends a request to `path` to the model that the body names. To others it answers itself, and starts none.
bool dispatches(ServerKind kind, std::string_view path) {
  if (kind == ServerKind::router) return path != "/api/chat";
  constexpr std::array<std::string_view, 12> paths{"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/embeddings",
                                                   "/v1/rerank", "/v1/reranking", "/rerank", "/reranking", "/infill", "/completion",
                                                   "/v1/audio/transcriptions"};
  return std::find(paths.begin(), paths.end(), path) != paths.end();
}

}  // namespace

ModelServer::ModelServer(boost::asio::any_io_executor executor, std::unique_ptr<Upstream> upstream, CheckpointStore* store,
                         Catalogue* catalogue, BlockingPool& pool, CacheOptions options)
    : executor_(executor),
      upstream_(std::move(upstream)),
      store_(store),
      catalogue_(catalogue),
      pool_(pool),
      options_(std::move(options)),
      api_(*upstream_, options_.api_key),
      front_(executor, *upstream_, store, catalogue, pool, options_),
      changed_(executor) {}

Task<void> ModelServer::start(std::chrono::milliseconds patience) { return front_.start(patience); }

void ModelServer::attach(CheckpointStore& store, Catalogue& catalogue) {
  store_ = &store;
  catalogue_ = &catalogue;
  front_.attach(store, catalogue);
  for (const auto& [name, model] : models_) model->attach(store, catalogue);
}

void ModelServer::cut() {
  front_.cut();
  for (const auto& [name, model] : models_) model->cut();
}

Task<void> ModelServer::stop(std::chrono::milliseconds limit) {
  const auto deadline = std::chrono::steady_clock::now() + limit;
  const auto left = [deadline] {
    return std::max(std::chrono::milliseconds{0}, std::chrono::duration_cast<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now()));
  };
  stopping_ = true;
  changed_.notify_all();
  for (const auto& [name, model] : models_) co_await model->stop(left());
  co_await front_.stop(left());
  calls_.cancel();
  upstream_->close_idle();
}

ResultTask<ServerListing> ModelServer::listing() {
  Result<ServerListing> found = ServerListing{};
  if (is_swap()) {
    found = co_await api_.swap_listing(calls_);
  } else {
    found = co_await api_.router_listing(calls_);
  }
  if (!found) co_return found;
  most_running_ = found->most_running;
  names_.clear();
  for (const ListedModel& model : found->models) {
    for (const std::string& alias : model.aliases) names_.emplace(alias, model.name);
  }
  for (const ListedModel& model : found->models) names_[model.name] = model.name;
  co_return found;
}

std::string ModelServer::canonical(const std::string& name) const {
  const auto at = names_.find(name);
  return at == names_.end() ? name : at->second;
}

Task<CachedBackend*> ModelServer::find(std::string_view path, const std::optional<std::string>& model, CancelSource& cancel) {
  // What it is must be known before what the request needs of it.
  if (by_name() && front_.phase() != BackendPhase::plain) (void)co_await front_.wait_ready(cancel);
  if (!by_name() || !front_.looked_at()) co_return &front_;
  if (!model || front_.phase() != BackendPhase::plain || !dispatches(front_.probe().server, path)) co_return nullptr;
  if (!names_.contains(*model)) (void)co_await listing();
  const auto listed = names_.find(*model);
  if (listed == names_.end()) co_return nullptr;
  const std::string name = listed->second;
  // Each call of our own may be one load more; so may this request, between two calls for another.
  const std::function<void()> wake = [this] { changed_.notify_all(); };
  const CancelSource::Registration registration = cancel.on_cancel(wake);
  for (bool asked = false; contested(name);) {
    if (!others_are_prepared(name) || cancel.cancelled() || stopping_) co_return nullptr;
    if (asked) {
      co_await changed_.wait();
    } else {
      if (co_await runs(name, cancel)) co_return nullptr;  // it takes no other's place
      asked = true;
    }
  }
  std::unique_ptr<CachedBackend>& backend = models_[name];
  if (backend == nullptr) {
    CacheOptions options = options_;
    options.name = name;
    if (is_swap()) options.route.prefix = swap_prefix(name);
    else options.route.model = name;
    backend = std::make_unique<CachedBackend>(executor_, *upstream_, store_, catalogue_, pool_, std::move(options), this);
    CachedBackend* const made = backend.get();
    co_await made->start(std::chrono::milliseconds{0});
  }
  CachedBackend* const found = models_[name].get();
  last_wanted_ = found;
  co_return found;
}

bool ModelServer::contested(const std::string& model) const {
  if (!is_swap()) return std::chrono::steady_clock::now() < crowded_until_;
  const std::string name = canonical(model);
  return std::any_of(visits_.begin(), visits_.end(), [&name](const auto& visit) { return visit.first != name; });
}

// Who has just swapped models back and forth does so again: a lull is no reason to begin with calls of our own.
void ModelServer::note_crowd() {
  constexpr std::chrono::seconds lull{30};
  const auto wanted = std::count_if(visits_.begin(), visits_.end(), [this](const auto& visit) { return names_.contains(visit.first); });
  if (most_running_ > 0 && wanted > most_running_) crowded_until_ = std::chrono::steady_clock::now() + lull;
}

CachedBackend* ModelServer::known(const std::optional<std::string>& model) {
  if (!by_name()) return &front_;
  const auto at = model ? models_.find(canonical(*model)) : models_.end();
  return at == models_.end() ? nullptr : at->second.get();
}

ModelServer::Visit::Visit(ModelServer& server, const std::optional<std::string>& model) : server_(&server) {
  if (model) name_ = server.canonical(*model);
  if (name_.empty()) return;
  ++server_->visits_[name_];
  server_->note_crowd();
}

ModelServer::Visit::~Visit() {
  const auto at = server_->visits_.find(name_);
  if (at != server_->visits_.end() && --at->second == 0) server_->visits_.erase(at);
}

// Whether one more makes another go.
bool ModelServer::is_full(const ServerListing& now) const {
  const auto running = std::count_if(now.models.begin(), now.models.end(), [](const ListedModel& one) { return one.running; });
  // What llama-swap stops is a matter of its groups.
  if (is_swap()) return running > 0;
  return now.most_running > 0 && running >= now.most_running;
}

Task<bool> ModelServer::loading_evicts(const CachedBackend& model) {
  const Result<ServerListing> now = co_await listing();
  if (!now) co_return false;
  const auto own = [&model](const ListedModel& one) { return one.name == model.name() && one.running; };
  co_return is_full(*now) && std::none_of(now->models.begin(), now->models.end(), own);
}

bool ModelServer::others_have_turns(const CachedBackend& model) const {
  return std::any_of(turns_.begin(), turns_.end(), [&](const auto& turn) { return turn.first != &model; });
}

// Their calls have begun, and they are not forwarded yet.
bool ModelServer::others_are_prepared(const std::string& name) const {
  return std::any_of(models_.begin(), models_.end(), [&](const auto& one) {
    return one.first != name && (one.second->is_waited_for() || turns_.contains(one.second.get()));
  });
}

Task<bool> ModelServer::runs(const std::string& name, CancelSource& cancel) {
  if (is_swap()) {
    const Result<std::vector<std::string>> running = co_await api_.swap_running(cancel);
    co_return running && std::find(running->begin(), running->end(), name) != running->end();
  }
  const Result<ServerListing> now = co_await listing();
  if (!now) co_return false;
  co_return std::any_of(now->models.begin(), now->models.end(), [&name](const ListedModel& one) { return one.name == name && one.running; });
}

Task<void> ModelServer::before_load(CachedBackend& model) {
  while (loading_ != nullptr && loading_ != &model && !stopping_) co_await changed_.wait();
  const bool evicts = co_await loading_evicts(model);
  if (!evicts || stopping_) co_return;
  while (loading_ != nullptr && loading_ != &model && !stopping_) co_await changed_.wait();
  loading_ = &model;
  while (others_have_turns(model) && !stopping_) co_await changed_.wait();
  std::vector<CachedBackend*> others;
  for (const auto& [name, other] : models_) {
    if (other.get() != &model) others.push_back(other.get());
  }
  for (CachedBackend* other : others) co_await other->save_before_stop(calls_);
}

void ModelServer::after_load(CachedBackend& model) {
  if (loading_ == &model) loading_ = nullptr;
  changed_.notify_all();
}

Task<ModelServer::Turn> ModelServer::begin_turn(CachedBackend& model, CancelSource& cancel) {
  const std::function<void()> wake = [this] { changed_.notify_all(); };
  const CancelSource::Registration registration = cancel.on_cancel(wake);
  while (loading_ != nullptr && loading_ != &model && !cancel.cancelled() && !stopping_) co_await changed_.wait();
  ++turns_[&model];
  co_return Turn(*this, model);
}

void ModelServer::turn_ended(CachedBackend& model) {
  const auto at = turns_.find(&model);
  if (--at->second == 0) turns_.erase(at);
  changed_.notify_all();
}

Task<bool> ModelServer::is_there(CachedBackend& model, CancelSource& cancel) {
  if (!is_swap()) co_return true;  // a router is told with each call to load nothing
  co_return co_await runs(model.name(), cancel);
}

Task<bool> ModelServer::may_touch(CachedBackend& model) {
  if (loading_ != nullptr && loading_ != &model) co_return false;
  if (!is_swap()) {
    if (last_wanted_ == &model) co_return true;
    // Who goes to make room is the one that was not asked anything for longest.
    const Result<ServerListing> now = co_await listing();
    co_return now && !is_full(*now);
  }
  const Result<std::vector<std::string>> running = co_await api_.swap_running(calls_);
  if (!running) co_return false;
  const auto runs = [&running](const std::string& name) { return std::find(running->begin(), running->end(), name) != running->end(); };
  // A request on its way to one that does not run will have this one stopped: a call of ours would have it started again.
  co_return runs(model.name()) && std::all_of(visits_.begin(), visits_.end(), [&](const auto& visit) { return runs(visit.first); });
}

void ModelServer::wait_ended() { changed_.notify_all(); }

void ModelServer::suspect_changed() { front_.suspect_down(); }

}  // namespace cairn

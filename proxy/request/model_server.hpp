// One backend's address and what serves there: a llama-server with one model, a router of several, or llama-swap in front of
// servers; with a CachedBackend for each model, made when a request first names it.
// Thread: the I/O thread. Owner: ServedModels. Outlives every request. Errors: none come out; where the server cannot be asked it is
// left to answer for itself.
#pragma once

#include <boost/asio/any_io_executor.hpp>

#include <chrono>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "backend/async.hpp"
#include "request/cached_backend.hpp"
#include "request/shared_server.hpp"

namespace cairn {

class ModelServer final : public SharedServer {
 public:
  // As for CachedBackend; `options` are those of each of its models.
  ModelServer(boost::asio::any_io_executor executor, std::unique_ptr<Upstream> upstream, CheckpointStore* store, Catalogue* catalogue,
              BlockingPool& pool, CacheOptions options);

  // As those of CachedBackend, for all that there are. The backends of single models are made and started when they are named.
  Task<void> start(std::chrono::milliseconds patience);
  void attach(CheckpointStore& store, Catalogue& catalogue);
  void cut();
  Task<void> stop(std::chrono::milliseconds limit);  // of all together

  // For a client's request to `path` that names `model`: what serves it. nullptr: the server knows no such model, or is not
  // there, or contested() (once no request for another model is between two of our calls); it answers for itself.
  Task<CachedBackend*> find(std::string_view path, const std::optional<std::string>& model, CancelSource& cancel);
  // More models are wanted at a time than can run (behind llama-swap: than one), or were a moment ago: find() gives none.
  bool contested(const std::string& model) const;
  // The one it made for `model`, which may be an alias; nullptr: none so far.
  CachedBackend* known(const std::optional<std::string>& model);
  // False: it has one model, so that names do not matter.
  bool by_name() const { return !front_.looked_at() || front_.probe().server != ServerKind::single; }

  // While one lives a request is on its way to the server, for the model it names.
  class Visit {
   public:
    Visit(ModelServer& server, const std::optional<std::string>& model);
    Visit(const Visit&) = delete;
    Visit& operator=(const Visit&) = delete;
    ~Visit();

   private:
    ModelServer* server_;
    std::string name_;
  };

  // The server itself: its one model where it has one, and `plain` where it has several.
  CachedBackend& front() { return front_; }
  Upstream& upstream() { return *upstream_; }
  LlamaApi& api() { return api_; }  // of the server itself
  const std::map<std::string, std::unique_ptr<CachedBackend>>& models() const { return models_; }

  Task<void> before_load(CachedBackend& model) override;
  void after_load(CachedBackend& model) override;
  Task<bool> is_there(CachedBackend& model, CancelSource& cancel) override;
  Task<bool> may_touch(CachedBackend& model) override;
  void wait_ended() override;
  void suspect_changed() override;
  Task<Turn> begin_turn(CachedBackend& model, CancelSource& cancel) override;

 private:
  void turn_ended(CachedBackend& model) override;
  bool is_swap() const { return front_.probe().server == ServerKind::swap; }
  ResultTask<ServerListing> listing();
  bool is_full(const ServerListing& now) const;
  Task<bool> loading_evicts(const CachedBackend& model);
  bool others_have_turns(const CachedBackend& model) const;
  bool others_are_prepared(const std::string& name) const;
  Task<bool> runs(const std::string& name, CancelSource& cancel);
  void note_crowd();
  std::string canonical(const std::string& name) const;  // itself, when it is not listed

  boost::asio::any_io_executor executor_;
  std::unique_ptr<Upstream> upstream_;
  CheckpointStore* store_;
  Catalogue* catalogue_;
  BlockingPool& pool_;
  CacheOptions options_;
  LlamaApi api_;  // of the server itself
  CachedBackend front_;
  std::map<std::string, std::string> names_;  // listed ones and their aliases, to the listed ones
  std::map<std::string, std::unique_ptr<CachedBackend>> models_;
  std::map<const CachedBackend*, int> turns_;
  std::map<std::string, int> visits_;          // requests on their way, by listed name
  int most_running_ = 0;                       // as last listed; 0: no limit
  std::chrono::steady_clock::time_point crowded_until_;  // of a router: more models were wanted at a time than can run
  const CachedBackend* loading_ = nullptr;     // whose turn it is to be loaded
  const CachedBackend* last_wanted_ = nullptr;  // by a client
  Condition changed_;                          // a turn has ended, a load, or a wait for one
  bool stopping_ = false;
  CancelSource calls_;
};

}  // namespace cairn

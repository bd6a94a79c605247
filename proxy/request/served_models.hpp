// All backends that Cairn serves, and which of them a request goes to by the model it names.
// Thread: the I/O thread. Owner: main. Outlives every request. Errors: none.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "request/model_server.hpp"

namespace cairn {

class ServedModels {
 public:
  struct Entry {
    std::vector<std::string> models;  // the names it serves; empty: all that nobody else does
    std::unique_ptr<ModelServer> server;
  };
  void add(std::vector<std::string> models, std::unique_ptr<ModelServer> server) {
    entries_.push_back(Entry{std::move(models), std::move(server)});
  }

  // Who serves `model`; the first of all when none is named. nullptr: nobody does.
  ModelServer* server_of(const std::optional<std::string>& model) const;
  bool several() const { return entries_.size() > 1; }
  // False: there is one model, so that names do not matter.
  bool by_name() const { return several() || entries_.front().server->by_name(); }
  const std::vector<Entry>& entries() const { return entries_; }

  // As those of CachedBackend, one server after the other; `patience` and `limit` are for all together.
  Task<void> start(std::chrono::milliseconds patience);
  void attach(CheckpointStore& store, Catalogue& catalogue);
  void cut();
  Task<void> stop(std::chrono::milliseconds limit);

 private:
  std::vector<Entry> entries_;
};

}  // namespace cairn

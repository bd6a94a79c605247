#include "request/served_models.hpp"

#include <algorithm>
#include <chrono>

namespace cairn {

namespace {

using Clock = std::chrono::steady_clock;

std::chrono::milliseconds left_until(Clock::time_point deadline) {
  return std::max(std::chrono::milliseconds{0}, std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now()));
}

}  // namespace

ModelServer* ServedModels::server_of(const std::optional<std::string>& model) const {
  if (!model) return entries_.front().server.get();
  ModelServer* rest = nullptr;
  for (const Entry& entry : entries_) {
    if (std::find(entry.models.begin(), entry.models.end(), *model) != entry.models.end()) return entry.server.get();
    if (entry.models.empty()) rest = entry.server.get();
  }
  return rest;
}

Task<void> ServedModels::start(std::chrono::milliseconds patience) {
  const auto deadline = Clock::now() + patience;
  for (const Entry& entry : entries_) co_await entry.server->start(left_until(deadline));
}

void ServedModels::attach(CheckpointStore& store, Catalogue& catalogue) {
  for (const Entry& entry : entries_) entry.server->attach(store, catalogue);
}

void ServedModels::cut() {
  for (const Entry& entry : entries_) entry.server->cut();
}

Task<void> ServedModels::stop(std::chrono::milliseconds limit) {
  const auto deadline = Clock::now() + limit;
  for (const Entry& entry : entries_) co_await entry.server->stop(left_until(deadline));
}

}  // namespace cairn

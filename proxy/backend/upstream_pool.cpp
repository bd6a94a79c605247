#include "backend/upstream_pool.hpp"

#include <utility>

namespace cairn {

UpstreamPool::UpstreamPool(const boost::asio::any_io_executor& executor, UpstreamOptions options)
    : executor_(executor), options_(options), reaper_(executor) {}

std::shared_ptr<UpstreamConnection> UpstreamPool::take() {
  drop_expired();
  while (!idle_.empty()) {
    auto connection = std::move(idle_.back());
    idle_.pop_back();
    if (connection->quiet()) return connection;
    connection->close();
  }
  return nullptr;
}

std::shared_ptr<UpstreamConnection> UpstreamPool::make() {
  return std::make_shared<UpstreamConnection>(executor_, open_count_, options_.tls);
}

void UpstreamPool::give_back(std::shared_ptr<UpstreamConnection> connection) {
  connection->idle_since = std::chrono::steady_clock::now();
  idle_.push_back(std::move(connection));
  while (idle_.size() > options_.max_idle_connections) {
    idle_.front()->close();
    idle_.pop_front();
  }
  arm_reaper();
}

void UpstreamPool::close_idle() {
  for (const auto& connection : idle_) connection->close();
  idle_.clear();
  reaper_.cancel();
}

void UpstreamPool::drop_expired() {
  const auto oldest = std::chrono::steady_clock::now() - options_.max_idle;
  while (!idle_.empty() && idle_.front()->idle_since <= oldest) {
    idle_.front()->close();
    idle_.pop_front();
  }
}

// Without it, connections that the backend has closed would hold their descriptors until the next request.
void UpstreamPool::arm_reaper() {
  if (reaper_armed_ || idle_.empty()) return;
  reaper_armed_ = true;
  reaper_.expires_at(idle_.front()->idle_since + options_.max_idle);
  reaper_.async_wait([weak = weak_from_this()](const boost::system::error_code&) {
    const auto self = weak.lock();
    if (!self) return;
    self->reaper_armed_ = false;
    self->drop_expired();
    self->arm_reaper();
  });
}

}  // namespace cairn

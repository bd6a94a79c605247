// The idle keep-alive connections to one backend.
// Thread: the I/O thread. Owner: the Upstream; exchanges give their connection back if it still exists.
#pragma once

#include <boost/asio/steady_timer.hpp>

#include <deque>
#include <memory>

#include "backend/upstream.hpp"
#include "backend/upstream_connection.hpp"

namespace cairn {

class UpstreamPool : public std::enable_shared_from_this<UpstreamPool> {
 public:
  UpstreamPool(const boost::asio::any_io_executor& executor, UpstreamOptions options);

  std::shared_ptr<UpstreamConnection> take();  // null when none can be used
  std::shared_ptr<UpstreamConnection> make();
  void give_back(std::shared_ptr<UpstreamConnection> connection);
  void close_idle();
  std::size_t open_connections() const { return *open_count_; }

 private:
  void drop_expired();
  void arm_reaper();

  boost::asio::any_io_executor executor_;
  UpstreamOptions options_;
  std::deque<std::shared_ptr<UpstreamConnection>> idle_;  // longest idle first
  std::shared_ptr<std::size_t> open_count_ = std::make_shared<std::size_t>(0);
  boost::asio::steady_timer reaper_;
  bool reaper_armed_ = false;
};

}  // namespace cairn

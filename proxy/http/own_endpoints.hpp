// What Cairn says of itself: /cairn/status (JSON) and /cairn/metrics (Prometheus text).
// Thread: the I/O thread. Pure reads.
#pragma once

#include <string>

#include "observe/metrics.hpp"
#include "request/cached_backend.hpp"
#include "request/recent_requests.hpp"

namespace cairn {

struct OwnAnswer {
  std::string content_type;
  std::string body;
  int status = 200;
};

OwnAnswer status_answer(CachedBackend& backend, const RecentRequests& recent);
OwnAnswer metrics_answer(CachedBackend& backend, const Metrics& metrics);

}  // namespace cairn

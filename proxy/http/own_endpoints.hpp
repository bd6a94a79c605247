// What Cairn says of itself: /cairn/status (JSON) and /cairn/metrics (Prometheus text).
// Thread: the I/O thread. Pure reads.
#pragma once

#include <string>

#include "observe/metrics.hpp"
#include "request/recent_requests.hpp"
#include "request/served_models.hpp"

namespace cairn {

struct OwnAnswer {
  std::string content_type;
  std::string body;
  int status = 200;
};

// The first backend is told of at the top; those of several models or backends are listed under `models`.
OwnAnswer status_answer(const ServedModels& served, const RecentRequests& recent);
OwnAnswer metrics_answer(const ServedModels& served, const Metrics& metrics);

}  // namespace cairn

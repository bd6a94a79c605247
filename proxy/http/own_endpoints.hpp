// What Cairn says of itself: /cairn/status (JSON) and /cairn/metrics (Prometheus text).
// Thread: the I/O thread. Pure reads, but for the list of models, which is asked for.
#pragma once

#include <string>

#include "base/cancel.hpp"
#include "base/task.hpp"
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
// The list of models of several backends in one: what each tells of those that it serves, under the names of the configuration.
Task<OwnAnswer> models_answer(const ServedModels& served, CancelSource& cancel);
OwnAnswer metrics_answer(const ServedModels& served, const Metrics& metrics);

}  // namespace cairn

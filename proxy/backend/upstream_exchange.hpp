// One request and its answer on one connection to the backend.
// Thread: the I/O thread. Errors: as in backend/upstream.hpp.
#pragma once

#include <memory>

#include "backend/http_parser.hpp"
#include "backend/upstream_pool.hpp"

namespace cairn {

// The request's head has been written. `reused`: the connection came from the pool.
struct StartedRequest {
  std::weak_ptr<UpstreamPool> pool;
  std::shared_ptr<UpstreamConnection> connection;
  CancelSource::Registration registration;
  BodyFraming framing;
  bool is_head = false;
  bool reused = false;
  std::size_t max_head_bytes = 0;
};

std::unique_ptr<Exchange> make_exchange(StartedRequest started);

}  // namespace cairn

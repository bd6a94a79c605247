// What the listener calls for each request: the way from http/ down to the steps of a request.
// Thread: the I/O thread.
#pragma once

#include "base/task.hpp"
#include "request/downstream.hpp"

namespace cairn {

class RequestHandler {
 public:
  virtual ~RequestHandler() = default;
  // Returns when the answer is finished or aborted. Must not keep the Downstream.
  virtual Task<void> handle(Downstream& downstream) = 0;
};

}  // namespace cairn

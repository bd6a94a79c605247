// Carries bytes between a client and the backend, as they come and unchanged.
// Thread: the I/O thread.
// Errors: an Error means that nothing was written to the client, who still wants an answer (or has left); once the head is
// out, RelayOutcome::broken says why the answer is not whole.
#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "backend/upstream.hpp"
#include "base/task.hpp"
#include "request/downstream.hpp"

namespace cairn {

// Sees the answer's body on its way, each piece before it is written to the client.
class AnswerTap {
 public:
  virtual ~AnswerTap() = default;
  virtual void on_bytes(std::span<const char> bytes) = 0;
};

struct RelayOutcome {
  int status = 0;
  std::uint64_t body_bytes = 0;  // written to the client
  bool complete = false;
  std::optional<Error> broken;  // set when not complete
};

// The rest of an answer whose head has been read. When the backend dies in the middle, the client's connection is cut; when
// the client leaves, the exchange is closed at once. `tap` may be null.
ResultTask<RelayOutcome> relay_answer(Exchange& exchange, Downstream& downstream, const ResponseHead& head, AnswerTap* tap);

// The whole request as it is, its body going up while the answer may already come down.
ResultTask<RelayOutcome> pass_through(Upstream& upstream, Downstream& downstream);

}  // namespace cairn

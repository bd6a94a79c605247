// Carries bytes between a client and the backend, as they come; unchanged but for what EventStreamOptions says.
// Thread: the I/O thread.
// Errors: an Error means that nothing was written to the client, who still wants an answer (or has left); once the head is
// out, RelayOutcome::broken says why the answer is not whole.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "backend/upstream.hpp"
#include "base/blocking_pool.hpp"
#include "base/task.hpp"
#include "request/downstream.hpp"
#include "request/progress.hpp"

namespace cairn {

// Sees the answer's body on its way, each piece before it is written to the client.
class AnswerTap {
 public:
  virtual ~AnswerTap() = default;
  virtual void on_bytes(std::span<const char> bytes) = 0;
  // Once: the backend has no more to say. A slow client may still have much to read. Not `whole`: somebody has left.
  virtual void on_end(bool whole) = 0;
};

struct RelayOutcome {
  int status = 0;
  std::uint64_t body_bytes = 0;  // written to the client, comments of our own not counted
  std::optional<Error> broken;  // why the answer is not whole; nullopt: it is
};

// For answers that are event streams (200, chunked, text/event-stream); others are not touched.
struct EventStreamOptions {
  // After so long without a byte from the backend the client gets an SSE comment line, and again after each such time, so that
  // neither it nor what lies between takes the stream for dead. Never inside an event. 0: no comments.
  std::chrono::milliseconds silence{0};
  ContinuedProgress* progress = nullptr;  // null: the reports are the backend's
};

// The rest of an answer whose head has been read. When the backend dies in the middle, the client's connection is cut; when
// the client leaves, the exchange is closed at once. `tap` may be null; it sees what the backend sent. With a `spool` the backend
// is read to its end however slow the client is (AnswerSpool); without, it goes no faster than the client.
ResultTask<RelayOutcome> relay_answer(Exchange& exchange, Downstream& downstream, const ResponseHead& head, AnswerTap* tap,
                                      EventStreamOptions events = {}, BlockingPool* spool = nullptr);

// The whole request as it is. Its body goes up while the answer may already come down, unless it was read before (`body`).
ResultTask<RelayOutcome> pass_through(Upstream& upstream, Downstream& downstream, const std::optional<std::string>& body = {},
                                      EventStreamOptions events = {});

}  // namespace cairn

// The client's side of one request, as the steps of a request see it; implemented by http/session.
// Thread: the I/O thread. Errors: source downstream (closed, malformed, body_too_large, timeout, cancelled).
#pragma once

#include <cstddef>
#include <span>
#include <string>

#include "backend/http_message.hpp"
#include "base/cancel.hpp"
#include "base/task.hpp"

namespace cairn {

class Downstream {
 public:
  virtual ~Downstream() = default;

  virtual const RequestHead& head() const = 0;
  virtual BodyFraming request_framing() const = 0;

  // The whole body. Answers a pending Expect: 100-continue first. Errors: body_too_large past max_bytes.
  virtual ResultTask<std::string> read_body(std::size_t max_bytes) = 0;
  // The body piece by piece, for requests that are only passed on; 0 at its end.
  virtual ResultTask<std::size_t> read_some(std::span<char> into) = 0;

  // Once the request's body has been read, the connection is watched: when the client leaves, this is cancelled.
  virtual CancelSource& cancel() = 0;

  // The head goes out at once. Hop-by-hop and framing fields of `head` are replaced by this connection's own; a client of
  // HTTP/1.0 gets an until_close body instead of a chunked one. HEAD answers carry no body.
  virtual ResultTask<void> write_head(const ResponseHead& head, BodyFraming framing) = 0;
  virtual ResultTask<void> write_body(std::span<const char> bytes) = 0;  // flushed at once; empty: does nothing
  virtual ResultTask<void> finish() = 0;                                 // last chunk
  virtual bool head_written() const = 0;
  // After an answer that could not be completed: the connection is cut, so that the client sees it is not whole.
  virtual void abort() = 0;
};

}  // namespace cairn

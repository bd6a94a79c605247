// What went wrong, where, and whether trying again can help: the error half of every Result.
#pragma once

#include <string>
#include <string_view>

namespace cairn {

enum class ErrorCode {
  cancelled,         // the client left, or we are shutting down
  closed,            // the peer ended the connection
  refused,           // nobody listens there
  unreachable,       // no word from there, not even that nobody listens
  timeout,           // no answer, or no next byte, within the time set for it
  malformed,         // bytes that are not what the protocol says
  body_too_large,    // a body over the configured limit
  header_too_large,  // a message head over the configured limit
  rejected,          // the backend answered with an error status
  not_found,         // a file, a state or a model that is not there, or not any more
  unsupported,       // the backend cannot do this (no --slot-save-path, say)
  corrupt,           // a file is not what its record says
  no_space,          // budget or disk
  io,                // any other trouble with a file
  invalid,           // a configuration or an argument that makes no sense
  internal,          // a bug of ours
};

enum class ErrorSource { downstream, upstream, disk, internal };

struct Error {
  ErrorCode code = ErrorCode::internal;
  ErrorSource source = ErrorSource::internal;
  bool may_retry = false;
  int status = 0;       // HTTP status of the backend's answer when code is rejected, else 0
  std::string context;  // for the log: what was tried and what the system said
};

std::string_view to_string(ErrorCode code);
std::string_view to_string(ErrorSource source);
// "upstream/refused: connect 127.0.0.1:8080: Connection refused"
std::string to_string(const Error& error);

Error upstream_error(ErrorCode code, std::string context, bool may_retry = false);
Error downstream_error(ErrorCode code, std::string context);
Error disk_error(ErrorCode code, std::string context, bool may_retry = false);
Error internal_error(std::string context);

}  // namespace cairn

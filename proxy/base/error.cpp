#include "base/error.hpp"

#include <stdexcept>
#include <utility>

#include "base/result.hpp"

namespace cairn {

std::string_view to_string(ErrorCode code) {
  switch (code) {
    case ErrorCode::cancelled: return "cancelled";
    case ErrorCode::closed: return "closed";
    case ErrorCode::refused: return "refused";
    case ErrorCode::unreachable: return "unreachable";
    case ErrorCode::timeout: return "timeout";
    case ErrorCode::malformed: return "malformed";
    case ErrorCode::body_too_large: return "body_too_large";
    case ErrorCode::header_too_large: return "header_too_large";
    case ErrorCode::rejected: return "rejected";
    case ErrorCode::not_found: return "not_found";
    case ErrorCode::unsupported: return "unsupported";
    case ErrorCode::corrupt: return "corrupt";
    case ErrorCode::no_space: return "no_space";
    case ErrorCode::io: return "io";
    case ErrorCode::invalid: return "invalid";
    case ErrorCode::internal: return "internal";
  }
  return "?";
}

std::string_view to_string(ErrorSource source) {
  switch (source) {
    case ErrorSource::downstream: return "downstream";
    case ErrorSource::upstream: return "upstream";
    case ErrorSource::disk: return "disk";
    case ErrorSource::internal: return "internal";
  }
  return "?";
}

std::string to_string(const Error& error) {
  std::string text{to_string(error.source)};
  text += '/';
  text += to_string(error.code);
  if (error.status != 0) text += " " + std::to_string(error.status);
  if (!error.context.empty()) text += ": " + error.context;
  return text;
}

Error upstream_error(ErrorCode code, std::string context, bool may_retry) {
  return Error{code, ErrorSource::upstream, may_retry, 0, std::move(context)};
}
Error downstream_error(ErrorCode code, std::string context) {
  return Error{code, ErrorSource::downstream, false, 0, std::move(context)};
}
Error disk_error(ErrorCode code, std::string context, bool may_retry) {
  return Error{code, ErrorSource::disk, may_retry, 0, std::move(context)};
}
Error internal_error(std::string context) {
  return Error{ErrorCode::internal, ErrorSource::internal, false, 0, std::move(context)};
}

void throw_exception_from_error(const Error& error, const boost::source_location& where) {
  throw std::logic_error(to_string(error) + " (unchecked at " + where.file_name() + ":" +
                         std::to_string(where.line()) + ")");
}

}  // namespace cairn

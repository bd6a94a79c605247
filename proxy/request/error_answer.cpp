#include "request/error_answer.hpp"

#include <cstdio>

namespace cairn {

namespace {

std::string_view error_type(int status) {
  switch (status) {
    case 401: return "authentication_error";
    case 403: return "permission_error";
    case 404: return "not_found_error";
    case 501: return "not_supported_error";
    case 503: return "unavailable_error";
    default: return status < 500 ? "invalid_request_error" : "server_error";
  }
}

void append_json_text(std::string& out, std::string_view text) {
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (byte < 0x20 || byte == 0x7f) {
      char escaped[8];
      std::snprintf(escaped, sizeof escaped, "\\u%04x", byte);
      out += escaped;
    } else {
      out += byte < 0x80 ? c : '?';  // the context may quote bytes that are not UTF-8
    }
  }
}

int downstream_status(ErrorCode code) {
  switch (code) {
    case ErrorCode::closed: return status_client_left;
    case ErrorCode::timeout: return 408;
    case ErrorCode::body_too_large: return 413;
    case ErrorCode::header_too_large: return 431;
    case ErrorCode::not_found: return 404;
    case ErrorCode::unsupported: return 501;
    case ErrorCode::malformed:
    case ErrorCode::invalid: return 400;
    default: return 500;
  }
}

}  // namespace

int error_status(const Error& error) {
  if (error.code == ErrorCode::cancelled) return status_client_left;
  if (error.source == ErrorSource::downstream) return downstream_status(error.code);
  if (error.source == ErrorSource::upstream) {
    if (error.code == ErrorCode::timeout || error.code == ErrorCode::unreachable) return 504;
    if (error.code == ErrorCode::unsupported) return 501;
    return error.code == ErrorCode::rejected && error.status >= 400 && error.status <= 599 ? error.status : 502;
  }
  // Ours: waiting for a slot, or room, may succeed a moment later.
  if (error.code == ErrorCode::timeout || error.code == ErrorCode::no_space) return 503;
  return error.code == ErrorCode::not_found ? 404 : 500;
}

std::string_view status_reason(int status) {
  switch (status) {
    case 400: return "Bad Request";
    case 401: return "Unauthorized";
    case 403: return "Forbidden";
    case 404: return "Not Found";
    case 405: return "Method Not Allowed";
    case 408: return "Request Timeout";
    case 413: return "Payload Too Large";
    case 429: return "Too Many Requests";
    case 431: return "Request Header Fields Too Large";
    case 500: return "Internal Server Error";
    case 501: return "Not Implemented";
    case 502: return "Bad Gateway";
    case 503: return "Service Unavailable";
    case 504: return "Gateway Timeout";
    case 505: return "HTTP Version Not Supported";
    default: return status < 400 ? "OK" : "Error";
  }
}

std::string error_body(int status, std::string_view message) {
  std::string body = R"({"error":{"message":")";
  append_json_text(body, message);
  body.append(R"(","type":")").append(error_type(status)).append(R"(","code":)").append(std::to_string(status));
  body += "}}";
  return body;
}

ResultTask<void> write_error(Downstream& downstream, const Error& error) {
  const int status = error_status(error);
  if (status == status_client_left) {
    downstream.abort();
    co_return error;
  }
  const std::string message = to_string(error);
  co_return co_await write_error(downstream, status, message);
}

ResultTask<void> write_error(Downstream& downstream, int status, std::string_view message) {
  if (downstream.head_written()) {
    downstream.abort();
    co_return downstream_error(ErrorCode::closed, "an answer had already begun");
  }
  const std::string body = error_body(status, message);
  ResponseHead head;
  head.status = status;
  head.reason = status_reason(status);
  // A browser shows a page the error only if the answer allows its origin, as llama-server's own answers do.
  if (const auto origin = downstream.head().fields.get("Origin")) {
    head.fields.add("Access-Control-Allow-Origin", *origin);
  }
  head.fields.add("Content-Type", "application/json; charset=utf-8");
  if (status == 401) head.fields.add("WWW-Authenticate", "Bearer");
  if (status == 503) head.fields.add("Retry-After", "1");
  const bool head_only = downstream.head().method == "HEAD";
  if (head_only) head.fields.add("Content-Length", std::to_string(body.size()));
  BodyFraming framing;
  framing.kind = BodyFraming::Kind::length;
  framing.length = body.size();
  auto written = co_await downstream.write_head(head, framing);
  if (written && !head_only) written = co_await downstream.write_body(body);
  if (written) written = co_await downstream.finish();
  co_return written;
}

}  // namespace cairn

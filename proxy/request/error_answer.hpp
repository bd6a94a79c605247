// The one place that turns errors into HTTP answers, in the form that OpenAI clients and llama-server's own use.
// Thread: the I/O thread.
#pragma once

#include <string>
#include <string_view>

#include "base/error.hpp"
#include "base/task.hpp"
#include "request/downstream.hpp"

namespace cairn {

constexpr int status_client_left = 499;  // only for the log: nobody is there to read it

int error_status(const Error& error);
std::string_view status_reason(int status);
// {"error":{"message":"…","type":"invalid_request_error","code":400}}
std::string error_body(int status, std::string_view message);

// Answers with the error, or cuts the connection when an answer has already begun or the client has left.
ResultTask<void> write_error(Downstream& downstream, const Error& error);
ResultTask<void> write_error(Downstream& downstream, int status, std::string_view message);

}  // namespace cairn

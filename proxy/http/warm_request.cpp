#include "http/warm_request.hpp"

#include <fmt/format.h>

#include <boost/json.hpp>

#include <algorithm>
#include <initializer_list>
#include <iterator>

namespace cairn {

namespace json = boost::json;

namespace {

// By the members of its body: the endpoint that takes it, and what limits the answer there. The first that fits.
struct Form {
  std::initializer_list<const char*> members;  // all of them
  const char* path;
  const char* limit;
};
const Form forms[] = {
    {{"messages", "system"}, "/v1/messages", "max_tokens"},
    {{"messages"}, "/v1/chat/completions", "max_tokens"},
    {{"input_prefix"}, "/infill", "n_predict"},
    {{"input_suffix"}, "/infill", "n_predict"},
    {{"prompt"}, "/v1/completions", "max_tokens"},
    {{"input"}, "/v1/responses", "max_output_tokens"},
};

// A slip in such a text makes no prompt of it.
bool begins_as_object(std::string_view text) {
  constexpr std::string_view space = " \t\r\n";
  const std::size_t brace = text.find_first_not_of(space);
  if (brace == std::string_view::npos || text[brace] != '{') return false;
  const std::size_t name = text.find_first_not_of(space, brace + 1);
  return name != std::string_view::npos && text[name] == '"';
}

}  // namespace

Result<WarmRequest> warm_request(const std::string& text) {
  if (text.empty()) return disk_error(ErrorCode::invalid, "is empty");
  boost::system::error_code bad;
  json::parse_options deep;
  deep.max_depth = 256;  // schemas nest deeper than the library's 32
  json::value value = json::parse(text, bad, {}, deep);
  json::object* object = bad ? nullptr : value.if_object();
  // A list of objects, say, is a text.
  if (bad && bad != json::error::extra_data && begins_as_object(text)) {
    return disk_error(ErrorCode::invalid, fmt::format("looks like a request's body, but is no JSON: {}", bad.message()));
  }
  WarmRequest request;
  if (object == nullptr) {
    json::object completion;
    completion["prompt"] = text;
    completion["n_predict"] = 0;
    request.path = "/completion";
    request.body = json::serialize(completion);
    return request;
  }
  const auto fits = [object](const Form& one) {
    return std::ranges::all_of(one.members, [object](const char* member) { return object->contains(member); });
  };
  const auto form = std::ranges::find_if(forms, fits);
  if (form == std::end(forms)) {
    return disk_error(ErrorCode::invalid, "is JSON, but no request with a prompt: it has neither messages, prompt, input nor input_prefix");
  }
  for (const char* limit : {"max_tokens", "max_completion_tokens", "max_output_tokens", "n_predict"}) object->erase(limit);
  (*object)[form->limit] = 0;
  (*object)["stream"] = false;
  request.path = form->path;
  request.body = json::serialize(*object);
  return request;
}

WarmingDownstream::WarmingDownstream(Downstream& client, WarmRequest request)
    : client_(client), head_(client.head()), body_(std::move(request.body)) {
  head_.target = std::move(request.path);
  head_.fields.set("Content-Type", "application/json");
  for (const char* name : {"Content-Encoding", "Expect"}) head_.fields.erase(name);
}

BodyFraming WarmingDownstream::request_framing() const { return BodyFraming{BodyFraming::Kind::length, body_.size()}; }

ResultTask<std::string> WarmingDownstream::read_body(std::size_t max_bytes) {
  if (body_.size() > max_bytes) co_return downstream_error(ErrorCode::body_too_large, "the request of this prompt");
  co_return body_;
}

ResultTask<std::size_t> WarmingDownstream::read_some(std::span<char> into) {
  const std::size_t count = std::min(into.size(), body_.size() - read_bytes_);
  std::copy_n(body_.data() + read_bytes_, count, into.data());
  read_bytes_ += count;
  co_return count;
}

}  // namespace cairn

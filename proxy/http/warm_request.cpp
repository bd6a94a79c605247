#include "http/warm_request.hpp"

#include <fmt/format.h>

#include <boost/json.hpp>

#include <algorithm>
#include <initializer_list>
#include <iterator>
#include <string_view>
#include <utility>

#include "http/warmed_prompts.hpp"
#include "request/api_key.hpp"
#include "request/json_fields.hpp"

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

std::string_view behind_space(std::string_view text) {
  const std::size_t at = text.find_first_not_of(" \t\r\n");
  return at == std::string_view::npos ? std::string_view{} : text.substr(at);
}

// A slip in such a text makes no prompt of it.
bool begins_as_object(std::string_view text) {
  const std::string_view object = behind_space(text);
  return object.starts_with('{') && behind_space(object.substr(1)).starts_with('"');
}

}  // namespace

Result<WarmRequest> warm_request(const std::string& text) {
  if (text.empty()) return disk_error(ErrorCode::invalid, "is empty");
  boost::system::error_code bad;
  json::parse_options deep;
  deep.max_depth = deepest_json;
  json::stream_parser parser({}, deep);
  const std::string_view rest = behind_space(std::string_view{text}.substr(parser.write_some(text, bad)));
  if (!bad && !parser.done()) parser.finish(bad);
  if (!bad && !rest.empty()) bad = json::error::extra_data;
  // Objects one after the other are a text.
  const bool several = bad == json::error::extra_data && rest.starts_with('{');
  if (bad && !several && begins_as_object(text)) {
    return disk_error(ErrorCode::invalid, fmt::format("looks like a request's body, but is no JSON: {}", bad.message()));
  }
  json::value value = bad ? json::value{} : parser.release();
  json::object* object = value.if_object();
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

WarmingDownstream::WarmingDownstream(Downstream& client, WarmRequest request, const RequestRecord& record)
    : client_(client), record_(record), head_(client.head()), body_(std::move(request.body)) {
  head_.target = std::move(request.path);
  head_.fields.set("Content-Type", "application/json");
  for (const char* name : {"Content-Encoding", "Expect"}) head_.fields.erase(name);
}

void WarmingDownstream::change_key(const std::string& from, const std::string& to) {
  for (const char* name : {"Authorization", "X-Api-Key"}) {
    HeaderFields one;
    if (const auto value = head_.fields.get(name)) one.add(name, *value);
    if (carries_key(one, from)) head_.fields.erase(name);
  }
  const bool names_another = head_.fields.get("Authorization") || head_.fields.get("X-Api-Key");
  if (!to.empty() && !names_another) head_.fields.set("Authorization", "Bearer " + to);
}

ResultTask<void> WarmingDownstream::write_head(const ResponseHead& head, BodyFraming framing) {
  ResponseHead told = head;
  // Only its pieces have been counted by now.
  told.fields.set(computed_before_field, std::to_string(std::max<std::int64_t>(0, record_.computed_tokens)));
  told.fields.set(warmed_field, std::to_string(record_.warmed->id));
  co_return co_await client_.write_head(told, framing);
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

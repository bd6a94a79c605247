#include "warm.hpp"

#include <fmt/format.h>

#include <boost/json.hpp>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <iostream>
#include <iterator>
#include <optional>
#include <utility>

#include "base/wakeup.hpp"
#include "progress_line.hpp"

namespace cairn {

namespace json = boost::json;

namespace {

constexpr std::chrono::hours longest_prompt{2};
constexpr std::chrono::minutes longest_save{10};

std::optional<std::string> contents(const std::string& file) {
  if (file == "-") return std::string{std::istreambuf_iterator<char>(std::cin), {}};
  std::ifstream in(file, std::ios::binary);
  std::string text{std::istreambuf_iterator<char>(in), {}};
  if (!in) return std::nullopt;
  return text;
}

struct Request {
  std::string path;
  std::string body;
};

// A request's body keeps its meaning but generates nothing; anything else is a prompt's text.
Request request_of(const std::string& text) {
  boost::system::error_code bad;
  json::value value = json::parse(text, bad);
  json::object* object = bad ? nullptr : value.if_object();
  const bool chat = object != nullptr && object->contains("messages");
  Request request;
  if (chat || (object != nullptr && object->contains("prompt"))) {
    for (const char* limit : {"max_completion_tokens", "n_predict"}) object->erase(limit);
    (*object)["max_tokens"] = 0;
    (*object)["stream"] = false;
    request.path = chat ? "/v1/chat/completions" : "/v1/completions";
    request.body = json::serialize(*object);
    return request;
  }
  json::object completion;
  completion["prompt"] = text;
  completion["n_predict"] = 0;
  request.path = "/completion";
  request.body = json::serialize(completion);
  return request;
}

std::int64_t timing(const json::value& answer, const char* name) {
  boost::system::error_code missing;
  const json::value* value = answer.find_pointer(fmt::format("/timings/{}", name), missing);
  return value != nullptr && value->is_number() ? value->to_number<std::int64_t>() : 0;
}

bool all_saved(const json::object& model) {
  const json::array& slots = model.at("slots").as_array();
  return std::none_of(slots.begin(), slots.end(), [](const json::value& slot) {
    return slot.as_object().at("unsaved").as_bool() || slot.as_object().at("leased").as_bool();
  });
}

// States that were not saved because others are worth more, since that Cairn started; 0 when it has no store.
Task<std::int64_t> declined(StoreClient& server) {
  const Result<json::value> status = co_await server.call("GET", "/cairn/status");
  boost::system::error_code missing;
  const json::value* count = status ? status->find_pointer("/store/declined", missing) : nullptr;
  co_return count != nullptr ? count->to_number<std::int64_t>() : 0;
}

// Waits until nothing is left to save: the next prompt may take the slot.
Task<bool> saved(StoreClient& server) {
  const auto executor = co_await boost::asio::this_coro::executor;
  const auto deadline = std::chrono::steady_clock::now() + longest_save;
  while (std::chrono::steady_clock::now() < deadline) {
    const Result<json::value> status = co_await server.call("GET", "/cairn/status");
    if (!status) co_return false;
    const json::object& told = status->as_object();
    const json::value* several = told.if_contains("models");
    const json::array models = several != nullptr ? several->as_array() : json::array{};
    const bool others = std::all_of(models.begin(), models.end(), [](const json::value& one) { return all_saved(one.as_object()); });
    if (others && all_saved(told)) co_return true;
    Wakeup pause(executor);
    (void)co_await pause.wait_for(std::chrono::milliseconds{50});
  }
  co_return false;
}

}  // namespace

Task<int> warm(StoreClient& server, const std::vector<std::string>& files, bool as_json) {
  std::vector<std::string> names = files;
  if (names.empty()) names.push_back("-");
  json::array results;
  int status = 0;
  {
    const ProgressLine progress(names.size());
    for (std::size_t i = 0; i < names.size(); ++i) {
      progress.show(i, fmt::format("{} of {}: {}", i, names.size(), names[i]));
      json::object result;
      result["file"] = names[i];
      const std::optional<std::string> text = contents(names[i]);
      if (!text || text->empty()) {
        result["error"] = "cannot be read, or is empty";
        status = 1;
      } else {
        const Request request = request_of(*text);
        const std::int64_t declined_before = co_await declined(server);
        const Result<json::value> answer = co_await server.call("POST", request.path, request.body, longest_prompt);
        if (answer) {
          result["computed_tokens"] = timing(*answer, "prompt_n");
          result["reused_tokens"] = timing(*answer, "cache_n");
          const bool nothing_left = co_await saved(server);
          result["saved"] = nothing_left && co_await declined(server) == declined_before;
        } else {
          result["error"] = answer.error().context;
          status = 1;
        }
      }
      results.push_back(std::move(result));
    }
  }
  if (as_json) {
    fmt::print("{}\n", json::serialize(results));
    co_return status;
  }
  for (const json::value& value : results) {
    const json::object& result = value.as_object();
    const std::string name{result.at("file").as_string()};
    if (const json::value* error = result.if_contains("error")) {
      fmt::print(stderr, "{}: {}\n", name, std::string_view{error->as_string()});
    } else {
      fmt::print("{}: {} tokens computed, {} were there{}\n", name, result.at("computed_tokens").as_int64(),
                 result.at("reused_tokens").as_int64(), result.at("saved").as_bool() ? "" : "; not saved");
    }
  }
  co_return status;
}

}  // namespace cairn

#include "warm.hpp"

#include <fmt/format.h>

#include <boost/json.hpp>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <optional>
#include <utility>

#include "backend/timings.hpp"
#include "base/wakeup.hpp"
#include "http/checkpoint_endpoints.hpp"
#include "http/warm_request.hpp"
#include "progress_line.hpp"
#include "request/cached_backend.hpp"

namespace cairn {

namespace json = boost::json;

namespace {

constexpr std::chrono::hours longest_prompt{2};
constexpr std::chrono::minutes longest_save{10};

// Errors: in words for who named the file.
Result<std::string> contents(const std::string& file) {
  std::error_code unknown;
  if (std::filesystem::is_directory(file, unknown)) return disk_error(ErrorCode::io, "is a directory");
  std::ifstream opened;
  if (file != "-") opened.open(file, std::ios::binary);
  std::istream& in = file == "-" ? std::cin : opened;
  if (!in || (in.peek(), in.bad())) return disk_error(ErrorCode::io, "cannot be read");
  std::string text{std::istreambuf_iterator<char>(in), {}};
  return text;
}

// What an answer says of its prompt.
Timings told_by(const json::value& answer) {
  const std::string text = json::serialize(answer);
  const std::optional<Timings> timings = find_timings(text);
  return timings ? *timings : find_usage(text, std::nullopt).value_or(Timings{});
}

bool all_saved(const json::object& model) {
  const json::array& slots = model.at("slots").as_array();
  return std::none_of(slots.begin(), slots.end(), [](const json::value& slot) {
    return slot.as_object().at("unsaved").as_bool() || slot.as_object().at("leased").as_bool();
  });
}

// What became of saves since that Cairn started.
struct Saves {
  std::int64_t done = 0;
  std::int64_t not_done = 0;
};
// nullopt: it has no store.
Task<std::optional<Saves>> saves(StoreClient& server) {
  const Result<json::value> status = co_await server.call("GET", "/cairn/status");
  const json::value* store = status ? status->as_object().if_contains("store") : nullptr;
  if (store == nullptr) co_return std::nullopt;
  const json::object& counts = store->as_object();
  Saves saves;
  saves.done = counts.at("commits").to_number<std::int64_t>();
  for (const char* name : {"failed_commits", "refused_for_space", "declined"}) {
    saves.not_done += counts.at(name).to_number<std::int64_t>();
  }
  co_return saves;
}

// Some saved state is that long.
Task<bool> has_state_of(StoreClient& server, std::int64_t tokens) {
  const Result<json::value> answer = co_await server.call("GET", "/cairn/checkpoints");
  if (!answer) co_return false;
  const json::array& states = answer->as_object().at("checkpoints").as_array();
  co_return std::any_of(states.begin(), states.end(), [&](const json::value& state) {
    return state.as_object().at("tokens").to_number<std::int64_t>() >= tokens;
  });
}

// What the answer's fields say that Cairn had computed before.
std::int64_t computed_before(const HeaderFields& fields) {
  const std::string_view text = fields.get(computed_before_field).value_or("");
  std::int64_t tokens = 0;
  std::from_chars(text.data(), text.data() + text.size(), tokens);
  return tokens;
}

// Something was saved since `before`, or next to nothing was new; and nothing went wrong.
Task<bool> is_saved(StoreClient& server, const std::optional<Saves>& before, std::int64_t computed, std::int64_t prompt) {
  static const CacheOptions limits;
  const std::optional<Saves> after = co_await saves(server);
  if (!before || !after || after->not_done > before->not_done) co_return false;
  if (prompt < limits.shortest_prompt_tokens) co_return false;
  if (after->done > before->done) co_return true;
  // It may be in a slot alone.
  co_return computed < limits.worth_saving_tokens && co_await has_state_of(server, prompt - limits.worth_saving_tokens);
}

// Waits until nothing is left to save: the next prompt may take the slot.
Task<bool> nothing_is_left(StoreClient& server) {
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
    const json::value* store = told.if_contains("store");
    if (store != nullptr && store->as_object().at("saving_paused").as_bool()) co_return false;  // it may be saved some day
    Wakeup pause(executor);
    (void)co_await pause.wait_for(std::chrono::milliseconds{50});
  }
  co_return false;
}

ResultTask<json::object> warm_one(StoreClient& server, const std::string& file) {
  const Result<std::string> text = contents(file);
  if (!text) co_return text.error();
  const Result<WarmRequest> request = warm_request(*text);
  if (!request) co_return request.error();
  const std::optional<Saves> before = co_await saves(server);
  // Without a store Cairn computes nothing ahead of the request, and takes none there.
  const bool has_store = before.has_value();
  HeaderFields fields;
  const Result<json::value> answer = co_await server.call("POST", has_store ? std::string(checkpoints_path) : request->path,
                                                          has_store ? *text : request->body, longest_prompt, &fields);
  if (!answer) co_return answer.error();
  const Timings told = told_by(*answer);
  // The backend takes what Cairn has computed a moment before for reused.
  const std::int64_t ahead = computed_before(fields);
  const std::int64_t computed = told.prompt_n + ahead;
  const std::int64_t reused = std::max<std::int64_t>(0, told.cache_n - ahead);
  json::object result;
  result["computed_tokens"] = computed;
  result["reused_tokens"] = reused;
  const bool settled = co_await nothing_is_left(server);
  result["saved"] = settled && co_await is_saved(server, before, computed, told.prompt_n + told.cache_n);
  co_return result;
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
      const Result<json::object> warmed = co_await warm_one(server, names[i]);
      if (warmed) {
        result.insert(warmed->begin(), warmed->end());
        if (!warmed->at("saved").as_bool()) status = 1;
      } else {
        result["error"] = warmed.error().context;
        status = 1;
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

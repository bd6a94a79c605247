#include "warm.hpp"

#include <fmt/format.h>

#include <boost/json.hpp>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iostream>
#include <iterator>
#include <optional>
#include <utility>

#include "backend/timings.hpp"
#include "base/printable_text.hpp"
#include "base/wakeup.hpp"
#include "http/checkpoint_endpoints.hpp"
#include "http/warm_request.hpp"
#include "http/warmed_prompts.hpp"
#include "progress_line.hpp"
#include "progress_ticker.hpp"

namespace cairn {

namespace json = boost::json;

namespace {

constexpr std::chrono::hours longest_prompt{2};
constexpr std::chrono::minutes longest_save{10};
constexpr std::chrono::milliseconds shortest_pause{30}, longest_pause{1000};  // before the server is asked again

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

// What the answer's fields say that Cairn had computed before.
std::int64_t computed_before(const HeaderFields& fields) {
  const std::string_view text = fields.get(computed_before_field).value_or("");
  std::int64_t tokens = 0;
  std::from_chars(text.data(), text.data() + text.size(), tokens);
  return tokens;
}

// Of a prompt that is posted to be warmed; without one it just takes the request.
ResultTask<bool> has_store(StoreClient& server) {
  const Result<json::value> status = co_await server.call("GET", "/cairn/status");
  if (!status) co_return status.error();
  co_return status->as_object().contains("store");
}

struct Outcome {
  std::string name;  // as the server says it
  std::string why;
  bool saved() const { return name == "saved" || name == "there"; }
};

// Waits until that is known, and the next prompt may take the slot. `number`: of the prompt, as its answer says.
ResultTask<Outcome> outcome(StoreClient& server, std::string number) {
  const auto executor = co_await boost::asio::this_coro::executor;
  const auto deadline = std::chrono::steady_clock::now() + longest_save;
  for (std::chrono::milliseconds pause = shortest_pause;; pause = std::min(pause * 2, longest_pause)) {
    const Result<json::value> answer = co_await server.call("GET", std::string(warmed_path) + number);
    if (!answer) co_return answer.error();
    const json::object& told = answer->as_object();
    Outcome now;
    now.name = std::string{told.at("outcome").as_string()};
    if (const json::value* why = told.if_contains("why")) now.why = std::string{why->as_string()};
    if (now.name != "waiting") co_return now;
    if (std::chrono::steady_clock::now() >= deadline) co_return Outcome{"failed", "the backend has had no quiet moment for it so far"};
    Wakeup wait(executor);
    (void)co_await wait.wait_for(pause);
  }
}

ResultTask<json::object> warm_one(StoreClient& server, const std::string& file) {
  const Result<std::string> text = contents(file);
  if (!text) co_return text.error();
  const Result<WarmRequest> request = warm_request(*text);
  if (!request) co_return request.error();
  const Result<bool> saves = co_await has_store(server);
  if (!saves) co_return saves.error();
  HeaderFields fields;
  const Result<json::value> answer = co_await server.call("POST", *saves ? std::string(checkpoints_path) : request->path,
                                                          *saves ? *text : request->body, longest_prompt, &fields);
  if (!answer) co_return answer.error();
  const Timings told = told_by(*answer);
  // The backend takes what Cairn has computed a moment before for reused.
  const std::int64_t ahead = computed_before(fields);
  const std::int64_t computed = told.prompt_n + ahead;
  const std::int64_t reused = std::max<std::int64_t>(0, told.cache_n - ahead);
  json::object result;
  result["computed_tokens"] = computed;
  result["reused_tokens"] = reused;
  Outcome became{"failed", "the Cairn that serves has no store"};
  if (*saves) {
    const std::string number{fields.get(warmed_field).value_or("")};
    Result<Outcome> told_of = co_await outcome(server, number);
    if (told_of) {
      became = std::move(*told_of);
    } else {
      became.why = "what became of it is not known: " + told_of.error().context;
    }
  }
  result["outcome"] = became.name;
  result["saved"] = became.saved();
  if (!became.why.empty()) result["why"] = became.why;
  co_return result;
}

std::string in_words(const json::object& result) {
  const std::string_view outcome{result.at("outcome").as_string()};
  if (outcome == "saved") return "saved";
  if (outcome == "there") return "it was saved already";
  const json::value* why = result.if_contains("why");
  const std::string because = why == nullptr ? std::string{} : ": " + printable_text(why->as_string());
  return (outcome == "not_worth_saving" ? "not worth saving" : "not saved") + because;
}

}  // namespace

Task<int> warm(StoreClient& server, const std::vector<std::string>& files, bool as_json) {
  std::vector<std::string> names = files;
  if (names.empty()) names.push_back("-");
  const auto executor = co_await boost::asio::this_coro::executor;
  json::array results;
  int status = 0;
  {
    const ProgressLine progress(names.size());
    for (std::size_t i = 0; i < names.size(); ++i) {
      const std::string told = fmt::format("{} of {}: {}", i, names.size(), printable_text(names[i]));
      progress.show(i, told);
      const auto began = std::chrono::steady_clock::now();
      std::function<Task<void>()> tick;
      if (progress.shown()) {
        tick = [&]() -> Task<void> {
          const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(std::chrono::steady_clock::now() - began);
          progress.show(i, fmt::format("{}, {} s", told, seconds.count()));
          co_return;
        };
      }
      ProgressTicker ticker(executor, std::move(tick));
      json::object result;
      result["file"] = names[i];
      const Result<json::object> warmed = co_await warm_one(server, names[i]);
      co_await ticker.stop();
      if (warmed) {
        result.insert(warmed->begin(), warmed->end());
        if (warmed->at("outcome").as_string() == "failed") status = 1;
      } else {
        result["error"] = warmed.error().context;
        status = 1;
      }
      results.push_back(std::move(result));
    }
  }
  if (as_json) {
    fmt::print("{}\n", json_text(results));
    co_return status;
  }
  for (const json::value& value : results) {
    const json::object& result = value.as_object();
    const std::string name = printable_text(result.at("file").as_string());
    if (const json::value* error = result.if_contains("error")) {
      fmt::print(stderr, "{}: {}\n", name, printable_text(error->as_string()));
    } else {
      fmt::print("{}: {} tokens computed, {} were there; {}\n", name, result.at("computed_tokens").as_int64(),
                 result.at("reused_tokens").as_int64(), in_words(result));
    }
  }
  co_return status;
}

}  // namespace cairn

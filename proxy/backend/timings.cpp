#include "backend/timings.hpp"

#include <simdjson.h>

#include <boost/json.hpp>

#include <algorithm>

namespace cairn {

std::optional<Timings> find_timings(std::string_view text) {
  constexpr std::string_view key = "\"timings\":";
  const std::size_t at = text.rfind(key);
  if (at == std::string_view::npos) return std::nullopt;
  const std::size_t open = text.find('{', at + key.size());
  if (open == std::string_view::npos) return std::nullopt;
  const std::size_t close = text.find('}', open);  // the object holds numbers only
  if (close == std::string_view::npos) return std::nullopt;

  const simdjson::padded_string object{text.substr(open, close - open + 1)};
  simdjson::ondemand::parser parser;
  simdjson::ondemand::document document;
  if (parser.iterate(object).get(document) != simdjson::SUCCESS) return std::nullopt;
  Timings timings;
  simdjson::ondemand::object fields;
  if (document.get_object().get(fields) != simdjson::SUCCESS) return std::nullopt;
  bool has_prompt_n = false;
  for (auto field : fields) {
    std::string_view name;
    double value = 0;
    if (field.unescaped_key().get(name) != simdjson::SUCCESS) return std::nullopt;
    if (field.value().get_double().get(value) != simdjson::SUCCESS) continue;
    if (name == "cache_n") timings.cache_n = static_cast<std::int64_t>(value);
    if (name == "prompt_n") {
      timings.prompt_n = static_cast<std::int64_t>(value);
      has_prompt_n = true;
    }
    if (name == "prompt_ms") timings.prompt_ms = value;
    if (name == "predicted_n") timings.predicted_n = static_cast<std::int64_t>(value);
  }
  if (!has_prompt_n) return std::nullopt;
  return timings;
}

std::optional<Timings> find_usage(std::string_view text, std::optional<Timings> so_far) {
  constexpr std::string_view key = "\"usage\":";
  const std::size_t at = text.rfind(key);
  if (at == std::string_view::npos) return so_far;
  const std::size_t open = text.find_first_not_of(' ', at + key.size());
  if (open == std::string_view::npos || text[open] != '{') return so_far;
  std::size_t close = open;
  for (int depth = 0; close < text.size(); ++close) {  // its strings hold no braces
    if (text[close] == '{') ++depth;
    if (text[close] == '}' && --depth == 0) break;
  }
  if (close == text.size()) return so_far;
  boost::system::error_code error;
  const boost::json::value usage = boost::json::parse(text.substr(open, close - open + 1), error);
  if (error) return so_far;
  const auto count = [&usage](std::string_view pointer) -> std::optional<std::int64_t> {
    boost::system::error_code missing;
    const boost::json::value* found = usage.find_pointer(pointer, missing);
    if (found == nullptr || !found->is_int64()) return std::nullopt;
    return found->get_int64();
  };
  Timings timings = so_far.value_or(Timings{});
  const std::optional<std::int64_t> input = count("/input_tokens");
  const std::optional<std::int64_t> output = count("/output_tokens");
  if (!input && !so_far) return so_far;  // another endpoint's
  if (output) timings.predicted_n = *output;
  if (!input) return timings;
  // Anthropic's input is what was not read from the cache, OpenAI's is all.
  if (const auto read = count("/cache_read_input_tokens")) {
    timings.cache_n = *read;
    timings.prompt_n = *input;
  } else {
    timings.cache_n = count("/input_tokens_details/cached_tokens").value_or(0);
    timings.prompt_n = *input - timings.cache_n;
  }
  return timings;
}

void TimingsTail::on_bytes(std::span<const char> bytes) {
  std::string_view rest{bytes.data(), bytes.size()};
  while (!rest.empty()) {
    take(rest.substr(0, kept_bytes));
    rest.remove_prefix(std::min(rest.size(), kept_bytes));
  }
}

void TimingsTail::take(std::string_view bytes) {
  // An object may have begun in what came before.
  const std::size_t from = tail_.size() > object_bytes ? tail_.size() - object_bytes : 0;
  tail_.append(bytes);
  const std::string_view fresh = std::string_view{tail_}.substr(from);
  if (const std::optional<Timings> found = find_timings(fresh)) latest_ = found;
  usage_ = find_usage(fresh, usage_);
  if (tail_.size() > 2 * kept_bytes) tail_.erase(0, tail_.size() - kept_bytes);
}

}  // namespace cairn

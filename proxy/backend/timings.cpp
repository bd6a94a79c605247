#include "backend/timings.hpp"

#include <simdjson.h>

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
    if (name == "predicted_ms") timings.predicted_ms = value;
  }
  if (!has_prompt_n) return std::nullopt;
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
  if (const std::optional<Timings> found = find_timings(std::string_view{tail_}.substr(from))) latest_ = found;
  if (tail_.size() > 2 * kept_bytes) tail_.erase(0, tail_.size() - kept_bytes);
}

}  // namespace cairn

#include "request/progress.hpp"

#include <simdjson.h>

#include <algorithm>
#include <string>
#include <utility>

namespace cairn {

namespace {

// The object, braces included. Inside a JSON string the quotes of the key would be escaped, and a string of that name has no
// colon behind it. It holds numbers only.
std::string_view find_progress(std::string_view event) {
  constexpr std::string_view key = "\"prompt_progress\"";
  constexpr std::string_view space = " \t";
  const std::size_t at = event.find(key);
  if (at == std::string_view::npos) return {};
  const std::size_t colon = event.find_first_not_of(space, at + key.size());
  if (colon == std::string_view::npos || event[colon] != ':') return {};
  const std::size_t open = event.find_first_not_of(space, colon + 1);
  if (open == std::string_view::npos || event[open] != '{') return {};
  const std::size_t close = event.find('}', open);
  if (close == std::string_view::npos) return {};
  return event.substr(open, close - open + 1);
}

}  // namespace

std::string_view ContinuedProgress::on_bytes(std::span<const char> bytes) {
  if (given_up_) return {bytes.data(), bytes.size()};
  constexpr std::string_view end = "\n\n";
  out_.clear();
  std::size_t look_from = held_.empty() ? 0 : held_.size() - 1;  // the end may have come half
  held_.append(bytes.data(), bytes.size());
  std::size_t begun = 0;
  for (;;) {
    const std::size_t at = held_.find(end, look_from);
    if (at == std::string::npos) break;
    look_from = at + end.size();
    append_event(std::string_view{held_}.substr(begun, look_from - begun));
    begun = look_from;
  }
  held_.erase(0, begun);
  if (held_.size() > largest_event_bytes) {
    given_up_ = true;
    out_ += held_;
    held_ = {};
  }
  return out_;
}

std::string_view ContinuedProgress::rest() {
  out_ = std::exchange(held_, {});
  return out_;
}

void ContinuedProgress::append_event(std::string_view event) {
  const std::string_view found = find_progress(event);
  std::size_t copied = 0;
  if (!found.empty()) {
    const auto begins = static_cast<std::size_t>(found.data() - event.data());
    const simdjson::padded_string object{found};
    simdjson::ondemand::parser parser;
    simdjson::ondemand::document document;
    simdjson::ondemand::object fields;
    if (parser.iterate(object).get(document) == simdjson::SUCCESS && document.get_object().get(fields) == simdjson::SUCCESS) {
      for (auto field : fields) {
        std::string_view name;
        simdjson::ondemand::value value;
        std::int64_t number = 0;
        if (field.unescaped_key().get(name) != simdjson::SUCCESS || field.value().get(value) != simdjson::SUCCESS) break;
        const std::string_view token = value.raw_json_token();
        if (value.get_int64().get(number) != simdjson::SUCCESS) continue;
        // Where the backend lost what the pieces had computed, it says so.
        if (name == "cache") {
          number = std::min(number, reused_);
        } else if (name == "time_ms") {
          number += earlier_ms_;
        } else {
          continue;
        }
        const std::size_t at = begins + static_cast<std::size_t>(token.data() - object.data());
        const std::size_t digits = std::min(token.find_first_not_of("-0123456789"), token.size());
        out_ += event.substr(copied, at - copied);
        out_ += std::to_string(number);
        copied = at + digits;
      }
    }
  }
  out_ += event.substr(copied);
}

}  // namespace cairn

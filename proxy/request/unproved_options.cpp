#include "request/unproved_options.hpp"

#include <simdjson.h>
#include <xxhash.h>

#include <algorithm>
#include <array>

namespace cairn {

namespace {

namespace ondemand = simdjson::ondemand;

constexpr std::array<std::string_view, 20> judged_before{
    "messages", "prompt",   "tools",       "tool_choice", "response_format", "chat_template_kwargs", "model",        "input",        "system",   "instructions",
    "stop",     "user",     "metadata",    "lora",        "stream_options",  "input_prefix",         "input_suffix", "input_extra",  "reasoning", "thinking"};

}  // namespace

std::uint64_t unproved_options(std::string_view body) {
  const simdjson::padded_string padded{body};
  ondemand::parser parser;
  ondemand::document document;
  ondemand::object object;
  if (parser.iterate(padded).get(document) != simdjson::SUCCESS || document.get_object().get(object) != simdjson::SUCCESS) return 0;
  std::uint64_t hash = 0;
  for (auto field : object) {
    std::string_view key, raw;
    ondemand::value value;
    ondemand::json_type type{};
    if (field.unescaped_key().get(key) != simdjson::SUCCESS || field.value().get(value) != simdjson::SUCCESS) return hash;
    if (value.type().get(type) != simdjson::SUCCESS) return hash;
    const bool has_text = type == ondemand::json_type::string || type == ondemand::json_type::array || type == ondemand::json_type::object;
    if (!has_text || std::ranges::find(judged_before, key) != judged_before.end()) continue;
    hash = XXH3_64bits_withSeed(key.data(), key.size(), hash);  // before the raw value moves on
    if (simdjson::to_json_string(value).get(raw) != simdjson::SUCCESS) return hash;
    hash = XXH3_64bits_withSeed(raw.data(), raw.size(), hash);
  }
  return hash;
}

bool OptionTrials::trusted(std::uint64_t options) const {
  constexpr int enough = 3;
  return options == 0 || accepted_in_a_row_ >= enough || std::ranges::find(accepted_, options) != accepted_.end();
}

void OptionTrials::answered(std::uint64_t options, int status) {
  constexpr std::size_t remembered = 64;
  if (options == 0) return;
  if (status / 100 == 4) accepted_in_a_row_ = 0;
  if (status / 100 != 2 || std::ranges::find(accepted_, options) != accepted_.end()) return;
  ++accepted_in_a_row_;
  accepted_.push_front(options);
  if (accepted_.size() > remembered) accepted_.pop_back();
}

void OptionTrials::clear() {
  accepted_.clear();
  accepted_in_a_row_ = 0;
}

}  // namespace cairn

#include "request/unproved_options.hpp"

#include <simdjson.h>
#include <xxhash.h>

#include <algorithm>
#include <array>

namespace cairn {

namespace {

namespace ondemand = simdjson::ondemand;

// What is read when the task begins (build 11669). Chats' `response_format` and tools the template's call has read before.
constexpr std::array<std::string_view, 9> read_late{"grammar", "json_schema",      "grammar_triggers", "preserved_tokens", "logit_bias",
                                                    "samplers", "dry_sequence_breakers", "n_probs",    "logprobs"};

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
    if (!has_text || std::ranges::find(read_late, key) == read_late.end()) continue;
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

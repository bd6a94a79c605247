#include "request/generation_suffix.hpp"

#include <algorithm>

#include "backend/llama_api.hpp"

namespace cairn {

namespace {
constexpr std::size_t longest_suffix_bytes = 512;
constexpr std::size_t most_known = 16;
constexpr int most_failures = 3;
}  // namespace

Task<std::size_t> GenerationSuffixes::suffix_bytes(LlamaApi& api, std::string_view body, std::string_view prompt,
                                                   CancelSource& cancel) {
  for (const std::string& suffix : known_) {
    if (prompt.ends_with(suffix)) co_return suffix.size();
  }
  if (failures_ >= most_failures) co_return 0;
  const std::size_t open = body.find('{');
  const std::size_t next = body.find_first_not_of(" \t\r\n", open + 1);
  if (open == std::string_view::npos || next == std::string_view::npos) co_return 0;
  std::string without{body.substr(0, open + 1)};
  // As the first member: where the client says something about it itself, its own word comes later and wins.
  without += body[next] == '}' ? R"("add_generation_prompt":false)" : R"("add_generation_prompt":false,)";
  without += body.substr(open + 1);
  Result<std::string> bare = co_await api.apply_template(without, cancel);
  if (!bare) co_return 0;  // says nothing about the template
  if (bare->size() >= prompt.size() || prompt.size() - bare->size() > longest_suffix_bytes ||
      !prompt.starts_with(*bare)) {
    ++failures_;
    co_return 0;
  }
  failures_ = 0;
  std::string suffix{prompt.substr(bare->size())};
  const std::size_t bytes = suffix.size();
  known_.push_back(std::move(suffix));
  std::sort(known_.begin(), known_.end(), [](const std::string& a, const std::string& b) { return a.size() > b.size(); });
  if (known_.size() > most_known) known_.pop_back();
  co_return bytes;
}

void GenerationSuffixes::clear() {
  known_.clear();
  failures_ = 0;
}

}  // namespace cairn

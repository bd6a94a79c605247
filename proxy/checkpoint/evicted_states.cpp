#include "checkpoint/evicted_states.hpp"

#include <xxhash.h>

#include <memory>
#include <vector>

namespace cairn {

namespace {

constexpr std::size_t remembered = 8192;  // places

// Hashes of prefixes, asked for by ascending length; one pass.
class PrefixHashes {
 public:
  explicit PrefixHashes(TokenSpan tokens) : tokens_(tokens), state_(XXH3_createState(), &XXH3_freeState) { XXH3_64bits_reset(state_.get()); }
  std::uint64_t at(std::uint32_t length) {
    XXH3_64bits_update(state_.get(), tokens_.data() + done_, (length - done_) * sizeof(Token));
    done_ = length;
    return XXH3_64bits_digest(state_.get());
  }

 private:
  TokenSpan tokens_;
  std::unique_ptr<XXH3_state_t, decltype(&XXH3_freeState)> state_;
  std::uint32_t done_ = 0;
};

}  // namespace

void EvictedStates::add(NamespaceId name_space, TokenSpan tokens, std::span<const std::uint32_t> resume_positions) {
  std::vector<std::uint32_t> lengths(resume_positions.begin(), resume_positions.end());
  lengths.push_back(static_cast<std::uint32_t>(tokens.size()));
  PrefixHashes hashes(tokens);
  for (const std::uint32_t length : lengths) {
    if (length == 0 || length > tokens.size()) continue;
    const std::uint64_t hash = hashes.at(length);
    order_.push_back(Place{name_space, length, hash});
    by_length_[length].emplace(hash, name_space);
  }
  while (order_.size() > remembered) {
    const Place oldest = order_.front();
    order_.pop_front();
    const auto same_length = by_length_.find(oldest.tokens);
    const auto [first, last] = same_length->second.equal_range(oldest.hash);
    for (auto at = first; at != last; ++at) {
      if (at->second != oldest.name_space) continue;
      same_length->second.erase(at);
      break;
    }
    if (same_length->second.empty()) by_length_.erase(same_length);
  }
}

bool EvictedStates::would_have_served(NamespaceId name_space, TokenSpan prompt, std::uint32_t beyond) const {
  PrefixHashes hashes(prompt);
  for (auto at = by_length_.upper_bound(beyond); at != by_length_.end() && at->first < prompt.size(); ++at) {
    const auto [first, last] = at->second.equal_range(hashes.at(at->first));
    for (auto found = first; found != last; ++found) {
      if (found->second == name_space) return true;
    }
  }
  return false;
}

}  // namespace cairn

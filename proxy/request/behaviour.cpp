#include "request/behaviour.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace cairn {

namespace {

// Two runs of the same weights differ by less (another batch size, another thread count); other weights by far more.
constexpr double same_logprob = 0.03;

std::vector<TopLogprob> unpack_logprobs(const std::string& packed) {
  std::vector<TopLogprob> top;
  constexpr std::size_t one_bytes = sizeof(Token) + sizeof(float);
  for (std::size_t at = 0; at + one_bytes <= packed.size(); at += one_bytes) {
    TopLogprob one;
    float value = 0;
    std::memcpy(&one.token, packed.data() + at, sizeof one.token);
    std::memcpy(&value, packed.data() + at + sizeof one.token, sizeof value);
    one.logprob = value;
    top.push_back(one);
  }
  return top;
}

}  // namespace

std::string pack_logprobs(const std::vector<TopLogprob>& top) {
  std::string packed;
  for (const TopLogprob& one : top) {
    const float value = static_cast<float>(one.logprob);
    packed.append(reinterpret_cast<const char*>(&one.token), sizeof one.token);
    packed.append(reinterpret_cast<const char*>(&value), sizeof value);
  }
  return packed;
}

bool same_behaviour(const std::string& packed, const std::vector<TopLogprob>& top) {
  const std::vector<TopLogprob> kept = unpack_logprobs(packed);
  const std::size_t compared = std::min(kept.size(), top.size()) / 2;
  if (compared == 0) return false;
  for (std::size_t i = 0; i < compared; ++i) {
    const auto twin = std::find_if(top.begin(), top.end(), [&](const TopLogprob& other) { return other.token == kept[i].token; });
    if (twin == top.end() || std::abs(twin->logprob - kept[i].logprob) > same_logprob) return false;
  }
  return true;
}

}  // namespace cairn

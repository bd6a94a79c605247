// Numbers and the times at which they are due, for a clock that never goes back: a radix heap.
// Pure.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace cairn {

class DueQueue {
 public:
  // `at_ms` lies behind the time of the last take_due(), and that at or behind 0.
  void push(std::int64_t at_ms, std::uint32_t number) { by_highest_bit_[bucket_of(at_ms)].push_back({at_ms, number}); }

  struct Due {
    std::int64_t at_ms;
    std::uint32_t number;
  };
  // Those that are due, in any order: good until the next call.
  std::span<const Due> take_due(std::int64_t now_ms) {
    const std::size_t highest = bucket_of(now_ms);
    now_ms_ = now_ms;
    taken_.clear();
    for (std::size_t bit = 0; bit <= highest; ++bit) {
      std::vector<Due>& entries = by_highest_bit_[bit];
      taken_.insert(taken_.end(), entries.begin(), entries.end());
      entries.clear();
    }
    const auto later = std::partition(taken_.begin(), taken_.end(), [&](const Due& entry) { return entry.at_ms <= now_ms_; });
    for (auto entry = later; entry != taken_.end(); ++entry) push(entry->at_ms, entry->number);
    taken_.erase(later, taken_.end());
    return taken_;
  }

 private:
  std::size_t bucket_of(std::int64_t at_ms) const { return static_cast<std::size_t>(std::bit_width(static_cast<std::uint64_t>(at_ms ^ now_ms_))); }

  std::int64_t now_ms_ = 0;
  // By the highest bit in which the time differs from now: what differs in a higher bit than the next time does is not due then,
  // and is not looked at.
  std::array<std::vector<Due>, 65> by_highest_bit_;
  std::vector<Due> taken_;
};

}  // namespace cairn

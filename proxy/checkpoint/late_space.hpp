// Bytes that were deleted and that the file system does not count as free yet: some (XFS, btrfs, ZFS) take seconds for it.
// Thread: the I/O thread.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <numeric>

namespace cairn {

class LateSpace {
 public:
  // Believed no longer than this: what others still have open, or a snapshot holds, does not come.
  static constexpr std::int64_t longest_ms = 60'000;

  // So many bytes were deleted; what was free before and after that.
  void deleted(std::uint64_t bytes, std::uint64_t free_before, std::uint64_t free_after, std::int64_t now_ms) {
    const std::uint64_t shown = free_after - std::min(free_before, free_after);
    if (bytes > shown) coming_.push_back({bytes - shown, now_ms});
    // What it shows beyond that are bytes deleted earlier.
    if (shown > bytes) take(shown - bytes);
    free_ = free_after;
  }
  // So much is free now: how much more is to be expected.
  std::uint64_t coming(std::uint64_t free, std::int64_t now_ms) {
    std::erase_if(coming_, [now_ms](const Deleted& one) { return now_ms < one.at_ms || now_ms - one.at_ms >= longest_ms; });
    if (free > free_) take(free - free_);
    free_ = free;
    return std::accumulate(coming_.begin(), coming_.end(), std::uint64_t{0}, [](std::uint64_t sum, const Deleted& one) { return sum + one.bytes; });
  }

 private:
  struct Deleted {
    std::uint64_t bytes = 0;
    std::int64_t at_ms = 0;
  };
  void take(std::uint64_t bytes) {
    while (bytes > 0 && !coming_.empty()) {
      const std::uint64_t taken = std::min(bytes, coming_.front().bytes);
      bytes -= taken;
      coming_.front().bytes -= taken;
      if (coming_.front().bytes == 0) coming_.pop_front();
    }
  }
  std::deque<Deleted> coming_;
  std::uint64_t free_ = 0;  // when last seen
};

}  // namespace cairn

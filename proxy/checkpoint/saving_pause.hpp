// Whether saving waits because the disk refuses it, and until when: said once, tried again at growing intervals.
// Thread: the I/O thread; pure, time is passed in.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>

#include "base/error.hpp"

namespace cairn {

class SavingPause {
 public:
  // True when this is what begins the pause: worth saying.
  bool failed(const Error& why, std::int64_t now_ms) {
    const bool begins = !trouble_;
    trouble_ = why;
    wait_ms_ = begins ? first_wait_ms : std::min(wait_ms_ * 2, longest_wait_ms);
    until_ms_ = now_ms + wait_ms_;
    return begins;
  }
  // True when it ended one.
  bool succeeded() {
    const bool ends = trouble_.has_value();
    trouble_.reset();
    return ends;
  }
  // False also when a try is due. A wall clock that was set back must not prolong it.
  bool waiting(std::int64_t now_ms) const { return trouble_ && now_ms < until_ms_ && until_ms_ - now_ms <= wait_ms_; }
  const std::optional<Error>& trouble() const { return trouble_; }

 private:
  static constexpr std::int64_t first_wait_ms = 5'000;
  static constexpr std::int64_t longest_wait_ms = 60'000;
  std::optional<Error> trouble_;
  std::int64_t wait_ms_ = 0;
  std::int64_t until_ms_ = 0;
};

}  // namespace cairn

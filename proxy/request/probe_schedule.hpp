// When a backend that cannot be cached is probed again: each probe may overwrite what a slot holds, so ever more rarely.
// Thread: any one.
#pragma once

#include <algorithm>
#include <chrono>
#include <string>

#include "request/probe.hpp"

namespace cairn {

class ProbeSchedule {
 public:
  using Clock = std::chrono::steady_clock;
  static constexpr std::chrono::milliseconds first{5'000};
  static constexpr std::chrono::milliseconds longest{300'000};
  static constexpr int most_computing = 6;  // of one process, one after the other

  // What a probe found. Gives back whether it is the same trouble as before.
  bool note(const ProbeResult& found, bool same_process, Clock::time_point now) {
    const bool told = same_process && !found.usable() && trouble_ == found.save_trouble;
    trouble_ = found.save_trouble;
    if (!same_process || found.usable()) vain_ = 0;
    again_ = found.usable() ? LookAgain::never : found.look_again;
    if (again_ == LookAgain::never) return told;
    next_ = now + (again_ == LookAgain::often ? std::chrono::milliseconds{0} : std::min(first * (1 << vain_), longest));
    if (vain_ < most_computing) ++vain_;
    if (again_ == LookAgain::rarer && found.computed_tokens > 0 && vain_ == most_computing) again_ = LookAgain::never;
    return told;
  }

  bool due(Clock::time_point now) const { return again_ != LookAgain::never && now >= next_; }

 private:
  std::string trouble_;
  LookAgain again_ = LookAgain::never;
  int vain_ = 0;
  Clock::time_point next_{};
};

}  // namespace cairn

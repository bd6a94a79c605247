// When a backend that cannot be cached is probed again: a probe may overwrite what a slot holds, so ever more rarely.
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
    if (!same_process || found.usable()) vain_ = computing_ = 0;
    again_ = found.usable() ? LookAgain::never : found.look_again;
    next_ = now;
    if (again_ == LookAgain::never || (again_ == LookAgain::often && found.computed_tokens == 0)) return told;
    next_ += std::min(first * (1 << std::min(vain_++, 10)), longest);
    // The disk may have room again one day: looked for ever more rarely, but for ever.
    if (again_ == LookAgain::rarer && found.computed_tokens > 0 && ++computing_ == most_computing) again_ = LookAgain::never;
    return told;
  }

  bool due(Clock::time_point now) const { return again_ != LookAgain::never && now >= next_; }

 private:
  std::string trouble_;
  LookAgain again_ = LookAgain::never;
  int vain_ = 0;       // looks of one process that are made more and more rarely,
  int computing_ = 0;  // and those of them that overwrote something
  Clock::time_point next_{};
};

}  // namespace cairn

// How long a backend stays idle between its requests, and from that, how long to wait before a save that would keep the next one waiting.
// Pure.
#pragma once

#include <cstddef>
#include <deque>

namespace cairn {

class Pauses {
 public:
  static constexpr std::size_t remembered = 32;
  static constexpr double longest_s = 60;  // longer ones say nothing, and no save waits longer

  // From the end of the last request to the start of the next.
  void note(double seconds);
  // Seconds of quiet, `base_s` at least, after which a save of `save_s` may begin: those that came so far would then have waited for it
  // no longer than `bearable_s` on the average.
  double quiet_before(double base_s, double save_s, double bearable_s) const;

 private:
  std::deque<double> latest_;  // newest first
};

}  // namespace cairn

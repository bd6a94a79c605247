#include "plan/pauses.hpp"

#include <algorithm>
#include <vector>

namespace cairn {

void Pauses::note(double seconds) {
  latest_.push_front(seconds);
  if (latest_.size() > remembered) latest_.pop_back();
}

double Pauses::quiet_before(double base_s, double save_s, double bearable_s) const {
  if (latest_.empty() || base_s >= longest_s) return base_s;
  const auto waited = [&](double quiet_s) {
    double sum = 0;
    for (const double pause : latest_) {
      if (pause > quiet_s) sum += std::max(0.0, quiet_s + save_s - pause);
    }
    return sum / static_cast<double>(latest_.size());
  };
  // Right after one of the pauses is where less is waited.
  std::vector<double> quiets{base_s};
  for (const double pause : latest_) {
    if (pause > base_s && pause < longest_s) quiets.push_back(pause);
  }
  std::sort(quiets.begin(), quiets.end());
  const auto found = std::find_if(quiets.begin(), quiets.end(), [&](double quiet_s) { return waited(quiet_s) <= bearable_s; });
  return found != quiets.end() ? *found : longest_s;
}

}  // namespace cairn

#include "plan/end_offsets.hpp"

namespace cairn {

namespace {
constexpr float forget = 0.97F;    // a client that changes its ways is followed within some tens of turns
constexpr float most_of = 0.9F;    // of the turns seen are to be served
}  // namespace

void EndOffsets::observe(std::uint32_t offset) {
  if (offset > longest) return;
  for (float& weight : weight_) weight *= forget;
  total_ = total_ * forget + 1;
  weight_[offset] += 1;
}

std::uint32_t EndOffsets::advised(std::uint32_t unlearned) const {
  if (total_ < 1) return unlearned;
  float covered = 0;
  for (std::uint32_t offset = 0; offset <= longest; ++offset) {
    covered += weight_[offset];
    if (covered >= most_of * total_) return offset;
  }
  return unlearned;
}

}  // namespace cairn

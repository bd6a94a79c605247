// Where later prompts are likely to leave an earlier one far before its end, and the count that tells how likely.
// Pure.
#pragma once

#include <algorithm>
#include <cstdint>

namespace cairn {

struct LeavingPlace {
  std::uint32_t at = 0;     // tokens before it; 0: there is none
  double chance = 0;        // that a later prompt leaves this one there
  bool seen_often = false;  // more than one has left an earlier one there; else it is a guess
};

// Of places of one kind.
struct LeavingCount {
  float left = 0;     // prompts that were left there
  float offered = 0;  // prompts that had one, forgotten alike

  void note_offered() {
    constexpr float remembered = 48;  // prompts: then half of it is forgotten
    offered += 1;
    if (offered <= remembered) return;
    offered /= 2;
    left /= 2;
  }
  void note_left() {
    left += 1;
    offered = std::max(offered, left);
  }
  bool seen_often() const { return left > 1.5F; }  // once may be chance
};

}  // namespace cairn

#include "slots/slot_table.hpp"

#include <algorithm>
#include <utility>

namespace cairn {

SlotTable::SlotTable(int count) {
  slots_.reserve(most_slots);
  reset(count);
}

void SlotTable::reset(int count) {
  count_ = static_cast<std::size_t>(std::clamp(count, 0, most_slots));
  while (slots_.size() < count_) {
    SlotState slot;
    slot.id = static_cast<int>(slots_.size());
    slots_.push_back(std::move(slot));
  }
  forget_all();
}

void SlotTable::forget(int id) {
  SlotState& slot = at(id);
  slot.known.clear();
  slot.unknown_tail = 0;
  slot.resume_points.clear();
  slot.unsaved = false;
  slot.doubtful = false;
  slot.recoverable = 0;
  slot.compute_s = 0;
}

void SlotTable::forget_all() {
  for (SlotState& slot : slots_) forget(slot.id);
}

bool SlotTable::believe_length(int id, std::optional<std::int64_t> n) {
  SlotState& slot = at(id);
  if (slot.leased) return false;
  const std::int64_t now = n.value_or(0);  // never used by this process
  if (now == slot.held()) {
    slot.doubtful = false;
    return false;
  }
  // More than we know of, with our tokens possibly in front, cannot be told from another prompt altogether: the backend
  // compares tokens itself, so believing in the known part risks only time. Fewer means it was cleared or replaced.
  if (now > slot.held() && !slot.known.empty()) {
    slot.unknown_tail = static_cast<std::uint32_t>(now) - static_cast<std::uint32_t>(slot.known.size());
    return false;
  }
  const bool wrong = slot.held() != 0;
  forget(id);
  return wrong;
}

void add_piece_resume_points(std::vector<std::uint32_t>& points, std::uint32_t from, std::uint32_t to,
                             std::uint32_t ubatch) {
  constexpr std::uint32_t fewest = 64;
  constexpr std::uint32_t before_end = 4;
  for (const std::uint32_t back : {before_end + ubatch, before_end}) {
    if (to <= back) continue;
    const std::uint32_t at = to - back;
    if (at < fewest || at < from) continue;
    const auto place = std::lower_bound(points.begin(), points.end(), at);
    if (place == points.end() || *place != at) points.insert(place, at);
  }
}

void cut_resume_points(std::vector<std::uint32_t>& points, std::uint32_t length) {
  points.erase(std::upper_bound(points.begin(), points.end(), length), points.end());
}

}  // namespace cairn

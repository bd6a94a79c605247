#include "checkpoint/eviction.hpp"

#include <algorithm>

namespace cairn {

double ValuePolicy::value(const CheckpointRecord& record, std::int64_t now_unix_ms) const {
  const double idle_s = static_cast<double>(std::max<std::int64_t>(0, now_unix_ms - record.last_used_unix_ms)) / 1000;
  const double bytes = static_cast<double>(std::max<std::uint64_t>(1, record.bytes));
  const double chance = static_cast<double>(1 + record.uses) / (1 + idle_s / half_life_s_);
  return record.cost_to_recompute_s * chance / bytes;
}

std::optional<CheckpointId> ValuePolicy::choose(std::span<const CheckpointRecord* const> candidates, std::uint64_t,
                                                std::int64_t now_unix_ms) {
  if (candidates.empty()) return std::nullopt;
  const CheckpointRecord* worst = nullptr;
  double worst_value = 0;
  for (const CheckpointRecord* record : candidates) {
    const double candidate_value = value(*record, now_unix_ms);
    // Among equals the one unused longest, then the oldest: a deterministic choice.
    const bool worse = worst == nullptr || candidate_value < worst_value ||
                       (candidate_value == worst_value &&
                        (record->last_used_unix_ms < worst->last_used_unix_ms ||
                         (record->last_used_unix_ms == worst->last_used_unix_ms && record->id < worst->id)));
    if (worse) {
      worst = record;
      worst_value = candidate_value;
    }
  }
  return worst->id;
}

}  // namespace cairn

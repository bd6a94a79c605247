#include "plan/memory_kind.hpp"

#include <algorithm>

namespace cairn {

std::string_view to_string(MemoryKind kind) {
  switch (kind) {
    case MemoryKind::unknown: return "unknown";
    case MemoryKind::truncatable: return "truncatable";
    case MemoryKind::checkpointed: return "checkpointed";
    case MemoryKind::exact: return "exact";
  }
  return "?";
}

MemoryKind memory_kind_from_string(std::string_view text) {
  for (MemoryKind kind : {MemoryKind::truncatable, MemoryKind::checkpointed, MemoryKind::exact}) {
    if (to_string(kind) == text) return kind;
  }
  return MemoryKind::unknown;
}

std::uint32_t usable_tokens(MemoryKind kind, const StateView& state, std::uint32_t common, std::uint32_t prompt) {
  if (prompt == 0) return 0;
  const std::uint32_t limit = std::min(common, prompt - 1);
  if (kind == MemoryKind::truncatable) return limit;
  if (state.ends_there && common == state.length && state.length <= limit) return state.length;
  if (kind == MemoryKind::exact) return 0;
  const auto after = std::upper_bound(state.resume_points.begin(), state.resume_points.end(), limit);
  return after == state.resume_points.begin() ? 0 : *(after - 1);
}

}  // namespace cairn

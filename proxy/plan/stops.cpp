#include "plan/stops.hpp"

#include <algorithm>

namespace cairn {

void add_stop(std::vector<Stop>& stops, Stop stop) {
  const auto place = std::lower_bound(stops.begin(), stops.end(), stop.at, [](const Stop& one, std::uint32_t at) { return one.at < at; });
  if (place != stops.end() && place->at == stop.at) {
    place->save = place->save || stop.save;
  } else {
    stops.insert(place, stop);
  }
}

std::vector<Stop> plan_stops(const StopInput& input) {
  std::vector<Stop> stops;
  if (input.kind == MemoryKind::truncatable) return stops;
  if (input.kind == MemoryKind::exact && !input.can_save) return stops;

  std::vector<std::uint32_t> wanted;
  for (const std::uint32_t at : input.wanted) {
    // A few tokens beyond what is there already are not worth a piece.
    constexpr std::uint32_t too_near = 8;
    if (at > input.base && at - input.base >= std::min(too_near, input.shortest_piece) && at < input.prompt) wanted.push_back(at);
  }
  std::sort(wanted.begin(), wanted.end());
  wanted.erase(std::unique(wanted.begin(), wanted.end()), wanted.end());

  const std::uint32_t gap = std::max<std::uint32_t>(input.shortest_piece, 1);
  std::vector<std::uint32_t> all = wanted;
  if (input.interval > 0) {
    for (std::uint64_t at = (std::uint64_t{input.base} / input.interval + 1) * input.interval; at < input.prompt;
         at += input.interval) {
      const auto position = static_cast<std::uint32_t>(at);
      // A grid stop beside a wanted one, or just before either end, is not worth a piece.
      const auto next = std::lower_bound(wanted.begin(), wanted.end(), position);
      if (next != wanted.end() && *next - position < gap) continue;
      if (next != wanted.begin() && position - *(next - 1) < gap) continue;
      if (position - input.base < gap || input.prompt - position < gap) continue;
      all.push_back(position);
    }
    std::sort(all.begin(), all.end());
  }

  std::uint32_t since_save = input.since_save;
  for (const std::uint32_t at : all) {
    Stop stop;
    stop.at = at;
    ++since_save;
    stop.save = input.kind == MemoryKind::exact;
    if (input.kind != MemoryKind::exact && input.can_save && since_save >= pieces_between_saves) {
      stop.save = true;
      since_save = 0;
    }
    stops.push_back(stop);
  }
  return stops;
}

}  // namespace cairn

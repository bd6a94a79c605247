// Where a long prompt is cut into pieces, so that the backend leaves context checkpoints or we save a state there.
// Pure.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "plan/memory_kind.hpp"

namespace cairn {

struct Stop {
  std::uint32_t at = 0;  // tokens: the piece ends here
  bool save = false;     // save the slot here, before going on
  friend bool operator==(const Stop&, const Stop&) = default;
};

struct StopInput {
  MemoryKind kind = MemoryKind::unknown;
  std::uint32_t base = 0;      // tokens already there
  std::uint32_t prompt = 0;    // tokens in all
  std::uint32_t interval = 0;  // tokens between grid stops, at multiples of it so that prompts share them; 0: no grid
  // Other places worth a state: where a second prompt branches off, the end of what the next turn will share.
  std::span<const std::uint32_t> wanted;
  bool can_save = false;
  std::uint32_t shortest_piece = 64;     // tokens; a grid stop nearer to another stop or to either end is left out
  std::uint32_t since_save = 0;             // pieces computed since the last save
};

// Into an ascending list; a stop that is there already is saved when either is to be.
void add_stop(std::vector<Stop>& stops, Stop stop);

// On a checkpointed backend, pieces computed between two saves (see plan_stops).
inline constexpr std::uint32_t pieces_between_saves = 14;

// Ascending, all in (base, prompt).
//
// truncatable: none. exact: each one saved, for only a state's end can be resumed.
// checkpointed: the backend keeps --ctx-checkpoints (32) of them per slot and each piece leaves two; past 15 pieces it
// begins to drop the early ones, so a save every `pieces_between_saves` keeps them in that file (build 11669).
std::vector<Stop> plan_stops(const StopInput& input);

}  // namespace cairn

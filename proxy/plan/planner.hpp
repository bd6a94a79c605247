// Decides, for one prompt, which slot takes it and whether it goes on from what is there, from a saved state, or from nothing;
// or that it waits for a busy slot, or leaves the choice to the backend.
// Pure: the same input gives the same plan.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

#include "plan/cost_model.hpp"
#include "plan/memory_kind.hpp"

namespace cairn {

// A slot that is free to take the prompt. All counts in tokens.
struct SlotOption {
  int slot = 0;
  std::uint32_t usable = 0;        // of the prompt, when it goes on from what the slot holds
  std::uint32_t held = 0;          // what the slot holds in all
  std::uint32_t recoverable = 0;   // of `held`, what saved states could bring back
  bool savable = true;             // false: the rest is not worth a file, or could not be saved
  std::uint32_t context_checkpoints = 0;  // in the slot: they are saved and brought back with the rest
  bool clean = true;               // false: must be washed before a restore (costs one token)
  double return_chance = 0.5;      // that what it holds is asked for again
  bool proven = false;             // it has been gone on from before: no mere chance
  std::uint64_t last_used = 0;     // a counter: smaller is longer ago
  double wait_s = 0;               // until the backend begins what it is sent: it still computes for a client that has left
};

// A saved state that shares a prefix with the prompt.
struct RestoreOption {
  std::int64_t checkpoint = 0;
  std::uint32_t usable = 0;
  double bytes = 0;
  double ready_s = 0;  // until the backend can be asked for it: brought up from the disk, its checksum read
};

// What a slot in use will offer, when it can be had: its own end, or a state that is about to be saved from it.
struct WaitOption {
  int slot = 0;
  std::uint32_t usable = 0;
  double ready_s = 0;  // until the prompt can go on from there
};

struct PlanInput {
  std::uint32_t prompt = 0;  // tokens
  std::span<const SlotOption> slots;
  std::span<const RestoreOption> restores;
  const CostModel* costs = nullptr;
  std::span<const WaitOption> waits;       // empty: it does not wait
  std::uint32_t in_backend_cache = 0;      // tokens of it that the backend's own RAM cache is believed to hold,
  std::uint32_t cache_context_checkpoints = 0;  // and with how many context checkpoints
  std::uint32_t running = 0;               // other slots in use: a save or a restore stalls them all
  std::uint32_t waiting = 0;               // requests that wait for a slot: a save puts each of them off
  bool can_save = false;
  bool can_empty = false;           // a slot can be emptied without its state's going to the backend's RAM cache
  std::uint32_t known = 0;          // tokens of it that some earlier prompt began with, wherever their state is now
};

enum class Source { live, restore, recompute, wait, backend };
std::string_view to_string(Source source);

struct Plan {
  Source source = Source::recompute;
  int slot = -1;
  std::int64_t checkpoint = 0;    // for Source::restore
  std::uint32_t base = 0;         // tokens expected to be reused
  bool save_first = false;        // what the slot holds is worth saving before it is overwritten
  bool restore_dearer = false;    // a saved state reaches further, but is not worth bringing back
  bool empty_first = false;       // what it still holds then would only be copied in vain; `base` is 0
  double expected_s = 0;          // until the first token can be sampled
  std::string_view reason;        // for the log: why this source
};

// nullopt when `slots` is empty. A plan to wait names the busy slot and no checkpoint.
std::optional<Plan> make_plan(const PlanInput& input);

}  // namespace cairn

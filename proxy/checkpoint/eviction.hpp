// Decides which checkpoint goes when the budget or the disk is full.
// Thread: the I/O thread; pure.
#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "checkpoint/record.hpp"

namespace cairn {

class EvictionPolicy {
 public:
  virtual ~EvictionPolicy() = default;
  // The next victim, or nullopt to let the save be refused instead. `candidates` are neither pinned nor in use and not
  // empty; `incoming_bytes` is what is to be saved.
  virtual std::optional<CheckpointId> choose(std::span<const CheckpointRecord* const> candidates,
                                             std::uint64_t incoming_bytes, std::int64_t now_unix_ms) = 0;
};

// The least seconds of recomputation saved per byte, worth less the longer nobody came back:
// cost * (1 + uses) / bytes / (1 + idle / half_life).
class ValuePolicy final : public EvictionPolicy {
 public:
  explicit ValuePolicy(double half_life_s = 3600) : half_life_s_(half_life_s) {}
  std::optional<CheckpointId> choose(std::span<const CheckpointRecord* const> candidates,
                                     std::uint64_t incoming_bytes, std::int64_t now_unix_ms) override;
  double value(const CheckpointRecord& record, std::int64_t now_unix_ms) const;

 private:
  double half_life_s_;
};

}  // namespace cairn

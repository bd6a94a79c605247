// ChildTable: which node continues a given parent with a given token; O(1) whatever the fan-out, 8 bytes a slot.
// Thread: one at a time; const calls may run side by side.
// Errors: none but std::bad_alloc.
//
// It keeps node ids and their hashes; the keys stay in the nodes, so callers say which id is meant.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>

#include "prefix/tokens.hpp"

namespace cairn {

class ChildTable {
 public:
  static constexpr std::uint32_t kNone = 0xffffffff;

  // A fixed function: somebody who crafts prompts to collide costs time only, and that on his own prompts' path.
  static std::uint32_t hash(std::uint32_t parent, Token first) {
    std::uint64_t x = (std::uint64_t{parent} << 32) | static_cast<std::uint32_t>(first);
    x = (x ^ (x >> 32)) * 0xd6e8feb86659fd93ULL;
    x = (x ^ (x >> 32)) * 0xd6e8feb86659fd93ULL;
    return static_cast<std::uint32_t>(x ^ (x >> 32));
  }

  // The id for which is_it(id) is true, or kNone. is_it is only asked about ids of the same hash.
  template <class IsIt>
  std::uint32_t find(std::uint32_t hash, IsIt is_it) const {
    if (capacity_ == 0) return kNone;
    for (std::size_t i = hash & mask();; i = (i + 1) & mask()) {
      const Slot slot = slots_[i];
      if (slot.id == kNone) return kNone;
      if (slot.hash == hash && is_it(slot.id)) return slot.id;
    }
  }

  // Says that find() of this hash will come soon.
  void prefetch(std::uint32_t hash) const { __builtin_prefetch(slots_.get() + (hash & mask())); }

  // The id must not be inside yet.
  void add(std::uint32_t hash, std::uint32_t id) {
    if ((size_ + 1) * 4 > capacity_ * 3) resize(capacity_ ? capacity_ * 2 : 64);
    place({hash, id});
    ++size_;
  }

  // Both want the id to be inside.
  void replace(std::uint32_t hash, std::uint32_t old_id, std::uint32_t new_id) {
    slots_[slot_of(hash, old_id)].id = new_id;
  }

  // Closes the gap instead of leaving a tombstone: what follows moves up if its own probe began at or before the gap.
  void remove(std::uint32_t hash, std::uint32_t id) {
    std::size_t gap = slot_of(hash, id);
    for (std::size_t i = (gap + 1) & mask(); slots_[i].id != kNone; i = (i + 1) & mask()) {
      const std::size_t home = slots_[i].hash & mask();
      if (((i - home) & mask()) < ((i - gap) & mask())) continue;
      slots_[gap] = slots_[i];
      gap = i;
    }
    slots_[gap].id = kNone;
    --size_;
  }

  // Takes less room if three quarters of it are unused.
  void shrink() {
    if (capacity_ > 64 && size_ * 4 < capacity_) resize(std::bit_ceil(size_ * 2 + 32));
  }

  std::size_t size() const { return size_; }
  std::uint64_t bytes() const { return capacity_ * sizeof(Slot); }

 private:
  struct Slot {
    std::uint32_t hash, id;
  };

  std::size_t mask() const { return capacity_ - 1; }

  std::size_t slot_of(std::uint32_t hash, std::uint32_t id) const {
    std::size_t i = hash & mask();
    while (slots_[i].id != id) i = (i + 1) & mask();
    return i;
  }

  void place(Slot slot) {
    std::size_t i = slot.hash & mask();
    while (slots_[i].id != kNone) i = (i + 1) & mask();
    slots_[i] = slot;
  }

  void resize(std::size_t capacity) {
    const auto old_slots = std::exchange(slots_, std::make_unique_for_overwrite<Slot[]>(capacity));
    const std::size_t old_capacity = std::exchange(capacity_, capacity);
    for (std::size_t i = 0; i < capacity; ++i) slots_[i] = {0, kNone};
    for (std::size_t i = 0; i < old_capacity; ++i) {
      if (old_slots[i].id != kNone) place(old_slots[i]);
    }
  }

  std::unique_ptr<Slot[]> slots_;
  std::size_t capacity_ = 0;  // a power of two
  std::size_t size_ = 0;
};

}  // namespace cairn

// Remembers which states were evicted, so that a request can be told why it had to compute what had been saved once.
// Thread: the I/O thread. Owner: the catalogue; and a backend, of what it has cleared out of slots.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <span>

#include "checkpoint/store.hpp"
#include "prefix/tokens.hpp"

namespace cairn {

class EvictedStates {
 public:
  // A state of these tokens is gone, with what could be resumed inside.
  void add(NamespaceId name_space, TokenSpan tokens, std::span<const std::uint32_t> resume_positions);
  // An evicted state would have served more than `beyond` tokens of the prompt.
  bool would_have_served(NamespaceId name_space, TokenSpan prompt, std::uint32_t beyond) const;

 private:
  struct Place {
    NamespaceId name_space{};
    std::uint32_t tokens = 0;
    std::uint64_t hash = 0;
  };
  std::deque<Place> order_;                             // oldest first
  std::map<std::uint32_t, std::multimap<std::uint64_t, NamespaceId>> by_length_;
};

}  // namespace cairn

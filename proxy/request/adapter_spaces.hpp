// Numbers the sets of adapters that requests name for themselves: each stands for a namespace of the slots alone.
// Thread: the I/O thread. Owner: one CachedBackend.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <string>
#include <utility>

namespace cairn {

class AdapterSpaces {
 public:
  static constexpr std::size_t remembered = 64;

  // Below 0. One that was not used for long is forgotten and gets another number when it comes again, which no slot holds anything of.
  std::int64_t of(const std::string& lora) {
    const auto at = std::find_if(known_.begin(), known_.end(), [&](const auto& one) { return one.first == lora; });
    if (at == known_.end()) {
      known_.emplace_front(lora, next_--);
      if (known_.size() > remembered) known_.pop_back();
    } else {
      std::rotate(known_.begin(), at, at + 1);
    }
    return known_.front().second;
  }

 private:
  std::deque<std::pair<std::string, std::int64_t>> known_;  // latest used first
  std::int64_t next_ = -1;
};

}  // namespace cairn

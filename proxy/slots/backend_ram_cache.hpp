// What llama-server's own cache in RAM (--cache-ram) is believed to hold: what idle slots held when it cleared them.
// Thread: the I/O thread. Owner: one backend. It is told in tokens only: how many bytes the server keeps there nobody says.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <vector>

#include "plan/memory_kind.hpp"
#include "prefix/tokens.hpp"

namespace cairn {

class BackendRamCache {
 public:
  using Time = std::chrono::steady_clock::time_point;

  // The server has put this there.
  void note(Tokens cleared, std::vector<std::uint32_t> resume_points);
  // Somebody found it in a slot.
  void remove(TokenSpan tokens);
  // Another process, with an empty one.
  void clear();

  struct Offer {
    std::uint32_t tokens = 0;               // of the prompt
    std::uint32_t context_checkpoints = 0;  // beside them
  };
  // What the server should bring back of `prompt` when it chooses the slot itself.
  Offer offer(TokenSpan prompt, MemoryKind kind) const;

  struct Learnt {
    std::vector<std::uint32_t> resume_points;  // that came with what was brought back
    bool distrusted = false;                   // from now on, for some minutes: it has failed twice in a row
  };
  // A request whose slot the server chose reused `reused` tokens of its prompt, where offer() had said `promised`. What it brings back
  // it takes out of there.
  Learnt learn(TokenSpan prompt, std::uint32_t promised, std::int64_t reused, Time now);
  bool trusted(Time now) const { return now >= trusted_from_; }

 private:
  struct Cleared {
    Tokens tokens;
    std::vector<std::uint32_t> resume_points;
  };
  std::deque<Cleared> cleared_;  // latest first
  int strikes_ = 0;              // in a row
  Time trusted_from_{};
};

}  // namespace cairn

// A prompt that was posted to be computed and saved ahead of time, and what becomes of it.
// Thread: the I/O thread. Owner: the router; the CachedBackend that computes it looks on.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "checkpoint/record.hpp"
#include "prefix/tokens.hpp"

namespace cairn {

class CachedBackend;

struct WarmedPrompt {
  std::uint64_t id = 0;
  bool answered = false;             // its request has ended
  CachedBackend* backend = nullptr;  // that computes it; nullptr: none that could save it, and `why`
  NamespaceId name_space{};
  Tokens tokens;
  bool was_there = false;            // saved states could bring it back before it was asked
  bool saved = false;                // one could since, for a moment at least
  std::string why;                   // it was not saved when that was tried last
};

enum class WarmOutcome {
  waiting,           // it is being computed, or saved when the backend has a quiet moment
  saved,
  there,             // it was saved already
  not_worth_saving,  // computing it again is as quick; nothing is lost
  failed,
};
inline std::string_view to_string(WarmOutcome outcome) {
  switch (outcome) {
    case WarmOutcome::waiting: return "waiting";
    case WarmOutcome::saved: return "saved";
    case WarmOutcome::there: return "there";
    case WarmOutcome::not_worth_saving: return "not_worth_saving";
    case WarmOutcome::failed: break;
  }
  return "failed";
}
struct ToldOutcome {
  WarmOutcome outcome = WarmOutcome::failed;
  std::string why;  // of not_worth_saving and failed, in words
};

}  // namespace cairn

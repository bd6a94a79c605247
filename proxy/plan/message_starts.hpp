// Learns how often a later prompt leaves an earlier one where that one's last message begins: agents close what they send with a
// message that their next prompt has not, and people change what they asked.
// Pure.
#pragma once

#include <string>
#include <string_view>

#include "plan/leaving_place.hpp"

namespace cairn {

class MessageStarts {
 public:
  // A prompt came whose last message begins in what is new of it.
  void offered() { count_.note_offered(); }
  // A later one left one of these there.
  void left() { count_.note_left(); }

  double chance() const;
  bool seen_often() const { return count_.seen_often(); }

  // For the index: what was learned, as a line of text; load() takes it back. False: it is none.
  std::string to_text() const;
  bool load(std::string_view text);

 private:
  LeavingCount count_;
};

}  // namespace cairn

// Which members of a body the backend may still refuse when it begins the task, after everything else of it was accepted: grammars,
// schemas, samplers. Pieces of a prompt whose request is refused were computed for nothing, and took somebody's slot.
#pragma once

#include <cstdint>
#include <deque>
#include <string_view>

namespace cairn {

// Of the JSON object `body`: a hash of such members, 0 where there are none. What is a number or a switch is not looked at. Pure.
std::uint64_t unproved_options(std::string_view body);

// What the backend said of such options.
// Thread: the I/O thread. Owner: one backend.
class OptionTrials {
 public:
  // Accepted before, or as likely to be as all the latest new ones.
  bool trusted(std::uint64_t options) const;
  void answered(std::uint64_t options, int status);
  void clear();

 private:
  std::deque<std::uint64_t> accepted_;  // newest first
  int accepted_in_a_row_ = 0;           // of those that were new
};

}  // namespace cairn

// Learns the tokens at which later prompts leave earlier ones far before their end: clients close what they send with a block of
// instructions that the next prompt has further back, and such a block begins alike each time, however long it is.
// Pure.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "plan/leaving_place.hpp"
#include "prefix/tokens.hpp"

namespace cairn {

class LeavingMarks {
 public:
  // A prompt left an earlier one inside; `rest` is how that one had gone on, as far as it is known. Nothing is learned from a token
  // that comes again in it: such are all over the place.
  void left(TokenSpan rest);

  // Where a prompt whose first `known` tokens had come before is likely to be left: before a mark. Counts the marks that it has.
  LeavingPlace offer(TokenSpan prompt, std::uint32_t known);

  // For the index: what was learned, as a line of text; load() takes it back. False: it is none.
  std::string to_text() const;
  bool load(std::string_view text);

 private:
  struct Mark {
    Token token{};
    LeavingCount count;
  };
  static constexpr std::size_t most = 16;
  std::vector<Mark> marks_;  // the latest learned from last
};

}  // namespace cairn

// Reads traces of requests: Mooncake's (hash_ids of 512-token blocks, local to the file), sessions of a coding agent (hash_ids of
// 64-token blocks, local to the session unless its hash_id_scope is "global"; nested sub-agents), and agents' prompts as text (four bytes taken for a token).
// Errors: invalid (what the file is not, with its name), unsupported (blocks of several sizes), io.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/result.hpp"
#include "prefix/tokens.hpp"

namespace cairn {

struct TraceRequest {
  double at_s = 0;
  std::uint32_t prompt_tokens = 0;
  std::uint32_t answer_tokens = 0;
  std::uint64_t first_block = 0;  // in Trace::blocks
  std::uint32_t blocks = 0;       // of the prompt; the last may be partial, or what follows it be unnamed
};

struct Trace {
  std::uint32_t block_tokens = 0;      // 0: nothing read yet
  Tokens blocks;                       // the same number at the same place: the same prefix
  std::vector<TraceRequest> requests;  // by time, the first at 0
  std::vector<std::string> skipped;    // of each file with lines or requests that cannot be read: how many, and what is wrong

  TokenSpan prompt(const TraceRequest& request) const { return TokenSpan(blocks).subspan(request.first_block, request.blocks); }
};

// Files are merged by their own times; sessions, which all begin at 0, run side by side. All must have blocks of one size.
// A line that cannot be read, as a last one cut off, is skipped; a file of which no line can be read is an error.
Result<Trace> read_traces(const std::vector<std::string>& paths);

}  // namespace cairn

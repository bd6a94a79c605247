// The memory kind that a model file announces, when Cairn can read the file that the backend loaded.
// Thread: a pool thread (it reads a file). Errors: source disk.
#pragma once

#include <cstdint>
#include <string>

#include "base/result.hpp"

namespace cairn {

struct GgufMetadata {
  std::string architecture;
  bool recurrent = false;            // has state-space, RWKV, linear-attention or short-convolution layers
  std::uint64_t sliding_window = 0;  // tokens; 0: none
};

// Reads the key-value section (GGUF 2 and 3; format: ggml docs/gguf.md). Bounded: stops at 64 MiB.
Result<GgufMetadata> read_gguf_metadata(const std::string& path);

}  // namespace cairn

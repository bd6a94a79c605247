// The clock that times are kept in across restarts.
#pragma once

#include <chrono>
#include <cstdint>

namespace cairn {

// Milliseconds since 1970.
inline std::int64_t unix_now_ms() {
  return std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::system_clock::now().time_since_epoch()).count();
}

}  // namespace cairn

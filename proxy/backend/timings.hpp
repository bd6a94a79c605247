// What the backend reports about one answer, read from the tail of the answer's bytes as they pass by.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace cairn {

// The `timings` object of an answer: the only proof of what was reused.
struct Timings {
  std::int64_t cache_n = 0;   // prompt tokens reused
  std::int64_t prompt_n = 0;  // prompt tokens computed
  double prompt_ms = 0;
  std::int64_t predicted_n = 0;
  double predicted_ms = 0;
};

// The last `"timings":{…}` in `text`. Inside a JSON string the quotes would be escaped, so a raw match is the object.
std::optional<Timings> find_timings(std::string_view text);

// Watches an answer go by for its timings, which may stand before megabytes of probabilities, and keeps its last bytes.
class TimingsTail {
 public:
  void on_bytes(std::span<const char> bytes);
  std::optional<Timings> timings() const { return latest_; }
  std::string_view text() const { return tail_; }

 private:
  void take(std::string_view bytes);

  static constexpr std::size_t kept_bytes = 16 * 1024;
  static constexpr std::size_t object_bytes = 1024;  // more than a timings object has
  std::string tail_;
  std::optional<Timings> latest_;
};

}  // namespace cairn

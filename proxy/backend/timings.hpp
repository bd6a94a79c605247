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
};

// The last `"timings":{…}` in `text`. Inside a JSON string the quotes would be escaped, so a raw match is the object.
std::optional<Timings> find_timings(std::string_view text);

// The token counts of the last `"usage":{…}` in `text`, Anthropic's or that of OpenAI's responses, over what is known `so_far` (an
// event stream says the one at its beginning and the other at its end). Without times.
std::optional<Timings> find_usage(std::string_view text, std::optional<Timings> so_far);

// Watches an answer go by for its timings, which may stand before megabytes of probabilities, and keeps its last bytes.
class TimingsTail {
 public:
  void on_bytes(std::span<const char> bytes);
  // What `timings` said, else `usage`.
  std::optional<Timings> timings() const { return latest_ ? latest_ : usage_; }
  // What `usage` said: of answers that have no `timings` and may hold a text like one, a tool's arguments.
  std::optional<Timings> usage() const { return usage_; }
  std::string_view text() const { return tail_; }

 private:
  void take(std::string_view bytes);

  static constexpr std::size_t kept_bytes = 16 * 1024;
  static constexpr std::size_t object_bytes = 1024;  // more than a timings object has
  std::string tail_;
  std::optional<Timings> latest_;
  std::optional<Timings> usage_;
};

}  // namespace cairn

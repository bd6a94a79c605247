// The starts in a row that did not find the states where they should lie: only after some is it believed that these are gone, for their
// disk may be mounted late. One that ends at once and is tried again, each few seconds, is counted once. Kept in the index. Pure.
#pragma once

#include <charconv>
#include <cstdint>
#include <string>
#include <string_view>

namespace cairn {

struct LateStarts {
  static constexpr std::string_view setting = "starts_without_states";
  static constexpr int most = 3;  // a slot directory in RAM is empty after each reboot, and was meant to be
  static constexpr std::int64_t apart_ms = 600'000;

  int count = 0;
  std::int64_t counted_unix_ms = 0;  // the last of them; older versions did not write it down

  static LateStarts parse(std::string_view text) {
    LateStarts starts;
    const char* const end = text.data() + text.size();
    const auto [rest, bad] = std::from_chars(text.data(), end, starts.count);
    if (bad == std::errc{} && rest != end) (void)std::from_chars(rest + 1, end, starts.counted_unix_ms);
    return starts;
  }
  std::string text() const { return std::to_string(count) + " " + std::to_string(counted_unix_ms); }

  // `same_start`: a process that tries again.
  bool one_more(std::int64_t now_unix_ms, bool same_start) const {
    const std::int64_t ago_ms = now_unix_ms - counted_unix_ms;
    const bool just_counted = ago_ms >= 0 && ago_ms < apart_ms;  // below 0: the clock was set back
    return count == 0 || (!same_start && !just_counted);
  }
  bool operator==(const LateStarts&) const = default;
};

}  // namespace cairn

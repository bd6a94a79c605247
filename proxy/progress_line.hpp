// One line on the terminal that says how far long work has come; nothing where stderr is none.
#pragma once

#include <fmt/format.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <string>
#include <string_view>

namespace cairn {

class ProgressLine {
 public:
  explicit ProgressLine(std::uint64_t total) : total_(total), shown_(::isatty(STDERR_FILENO) == 1) {}
  ProgressLine(const ProgressLine&) = delete;
  ProgressLine& operator=(const ProgressLine&) = delete;
  ~ProgressLine() {
    if (shown_) fmt::print(stderr, "\r\x1b[K");
  }
  bool shown() const { return shown_; }
  void show(std::uint64_t done, std::string_view what) const {
    if (!shown_) return;
    constexpr std::size_t width = 30;
    const std::size_t full = total_ > 0 ? static_cast<std::size_t>(done * width / total_) : width;
    fmt::print(stderr, "\r\x1b[K[{}{}] {}", std::string(full, '#'), std::string(width - full, '.'), what);
    std::fflush(stderr);
  }

 private:
  std::uint64_t total_;
  bool shown_;
};

}  // namespace cairn

// Makes the `prompt_progress` reports of a streamed answer those of the whole request, where earlier tasks computed a part of
// its prompt in pieces.
// Pure. Every byte but the digits of two numbers stays as it is.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace cairn {

// llama-server's {total, cache, processed, time_ms}: `processed` includes `cache`, and goes on where the pieces ended by itself.
class ContinuedProgress {
 public:
  // `reused`: by the first of the tasks; `earlier_ms`: from its start to the start of the task that answers.
  ContinuedProgress(std::int64_t reused, std::int64_t earlier_ms) : reused_(reused), earlier_ms_(earlier_ms) {}

  // What the client gets for these bytes and those held back before, up to the end of the last whole event. Valid
  // until the next call, and while `bytes` is.
  std::string_view on_bytes(std::span<const char> bytes);
  // What is held back still, when nothing more comes.
  std::string_view rest();

 private:
  void append_event(std::string_view event);

  // A larger event is no report of progress: it and all after it are passed on as they come.
  static constexpr std::size_t largest_event_bytes = 64 * 1024;

  std::int64_t reused_;
  std::int64_t earlier_ms_;
  std::string held_;  // of an event that has not ended
  std::string out_;
  bool given_up_ = false;
};

}  // namespace cairn

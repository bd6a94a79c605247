#include "plan/message_starts.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <sstream>

namespace cairn {

namespace {
constexpr float remembered = 48;  // prompts: then half of it is forgotten
// What is believed before anything was seen, and what that weighs.
constexpr double unlearned = 0.125;
constexpr double weight = 4;  // prompts
}  // namespace

void MessageStarts::offered() {
  offered_ += 1;
  if (offered_ > remembered) {
    offered_ /= 2;
    left_ /= 2;
  }
}

void MessageStarts::left() {
  left_ += 1;
  offered_ = std::max(offered_, left_);
}

double MessageStarts::chance() const { return (left_ + unlearned * weight) / (offered_ + weight); }

std::string MessageStarts::to_text() const { return fmt::format("{:.2f} {:.2f}", left_, offered_); }

bool MessageStarts::load(std::string_view text) {
  std::istringstream in{std::string{text}};
  float left = 0, offered = 0;
  if (!(in >> left >> offered) || !(left >= 0) || !(offered >= left) || offered > 2 * remembered) return false;
  left_ = left;
  offered_ = offered;
  return true;
}

}  // namespace cairn

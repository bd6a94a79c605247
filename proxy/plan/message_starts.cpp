#include "plan/message_starts.hpp"

#include <fmt/format.h>

#include <sstream>

namespace cairn {

namespace {
// What is believed before anything was seen, and what that weighs.
constexpr double unlearned = 0.125;
constexpr double weight = 4;  // prompts
}  // namespace

double MessageStarts::chance() const { return (count_.left + unlearned * weight) / (count_.offered + weight); }

std::string MessageStarts::to_text() const { return fmt::format("{:.2f} {:.2f}", count_.left, count_.offered); }

bool MessageStarts::load(std::string_view text) {
  std::istringstream in{std::string{text}};
  constexpr float most = 96;  // prompts: more than is ever counted
  LeavingCount loaded;
  if (!(in >> loaded.left >> loaded.offered) || !(loaded.left >= 0) || !(loaded.offered >= loaded.left) || loaded.offered > most) return false;
  count_ = loaded;
  return true;
}

}  // namespace cairn

#include "plan/leaving_marks.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <sstream>

namespace cairn {

namespace {
constexpr float doubt = 0.5F;
constexpr float surest = 0.95F;
}  // namespace

void LeavingMarks::left(TokenSpan rest) {
  if (rest.empty() || std::find(rest.begin() + 1, rest.end(), rest.front()) != rest.end()) return;
  Mark mark{rest.front(), {0, 1}};
  const auto at = std::find_if(marks_.begin(), marks_.end(), [&](const Mark& one) { return one.token == mark.token; });
  if (at != marks_.end()) {
    mark = *at;
    marks_.erase(at);
  } else if (marks_.size() == most) {
    marks_.erase(marks_.begin());
  }
  mark.count.note_left();
  marks_.push_back(mark);
}

LeavingPlace LeavingMarks::offer(TokenSpan prompt, std::uint32_t known) {
  LeavingPlace best;
  for (Mark& mark : marks_) {
    // The last one in what is new: what lies behind it is what the next prompt has not.
    const auto begin = prompt.begin() + std::min<std::ptrdiff_t>(known, static_cast<std::ptrdiff_t>(prompt.size()));
    const auto found = std::find(std::make_reverse_iterator(prompt.end()), std::make_reverse_iterator(begin), mark.token);
    if (found == std::make_reverse_iterator(begin)) continue;
    const double chance = std::min((mark.count.left - doubt) / (mark.count.offered + 1), surest);
    if (chance > best.chance) best = LeavingPlace{static_cast<std::uint32_t>(found.base() - prompt.begin() - 1), chance, mark.count.seen_often()};
    mark.count.note_offered();
  }
  return best;
}

std::string LeavingMarks::to_text() const {
  std::string text;
  for (const Mark& mark : marks_) fmt::format_to(std::back_inserter(text), "{}:{:.2f}:{:.2f} ", mark.token, mark.count.left, mark.count.offered);
  return text;
}

bool LeavingMarks::load(std::string_view text) {
  std::istringstream in{std::string{text}};
  std::vector<Mark> loaded;
  std::string word;
  while (in >> word) {
    std::istringstream parts{word};
    Mark mark;
    char colon = 0, second = 0;
    const bool read = static_cast<bool>(parts >> mark.token >> colon >> mark.count.left >> second >> mark.count.offered);
    if (!read || colon != ':' || second != ':' || !(mark.count.left >= 0) || !(mark.count.offered >= mark.count.left) || loaded.size() == most) return false;
    loaded.push_back(mark);
  }
  marks_ = std::move(loaded);
  return true;
}

}  // namespace cairn

#include "plan/end_offsets.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <sstream>

namespace cairn {

namespace {
constexpr float forget = 0.97F;    // a client that changes its ways is followed within some tens of turns
constexpr float most_of = 0.9F;    // of the turns seen are to be served
}  // namespace

void EndOffsets::observe(std::uint32_t offset) {
  prompts_ = prompts_ * forget + 1;
  for (float& weight : weight_) weight *= forget;
  total_ *= forget;
  if (offset > longest) return;
  total_ += 1;
  weight_[offset] += 1;
}

std::uint32_t EndOffsets::advised(std::uint32_t unlearned) const {
  if (total_ < 0.5F) return unlearned;
  float covered = 0;
  for (std::uint32_t offset = 0; offset <= longest; ++offset) {
    covered += weight_[offset];
    if (covered >= most_of * total_) return offset;
  }
  return unlearned;
}

std::uint32_t EndOffsets::unneeded() const {
  constexpr float enough = 5;  // turns seen, before any is judged
  if (total_ < enough) return 0;
  float needing = 0;  // who left nearer to the end than `offset`
  for (std::uint32_t offset = 0; offset <= longest; ++offset) {
    needing += weight_[offset];
    if (needing > (1 - most_of) * total_) return offset;
  }
  return longest;
}

double EndOffsets::followed(double unlearned, double weight) const {
  return (static_cast<double>(total_) + weight * unlearned) / (static_cast<double>(prompts_) + weight);
}

double EndOffsets::next_turn(bool continues, bool end_is_told) const {
  // The first chat of all is worth a stop there, of 500 tokens on a laptop; then it is learned whether any are.
  constexpr double conversation = 0.5, chat = 0.07;
  // One that has gone on goes on again, however many prompts that nobody goes on from come between its turns.
  constexpr double least = 0.8;
  return continues ? std::max(followed(conversation), least) : followed(end_is_told ? chat : 0);
}

void EndOffsets::observe_branch(bool inside) { inside_ = inside_ * forget + (inside ? 1.0F : 0.0F); }

double EndOffsets::branches() const {
  constexpr double unlearned = 0.3, weight_of_unlearned = 4;
  return (static_cast<double>(inside_) + weight_of_unlearned * unlearned) / (static_cast<double>(prompts_) + weight_of_unlearned);
}

double EndOffsets::returning() const {
  constexpr double weight_of_unlearned = 4;
  return (static_cast<double>(total_) + static_cast<double>(inside_) + weight_of_unlearned) / (static_cast<double>(prompts_) + weight_of_unlearned);
}

std::string EndOffsets::to_text() const {
  std::string text = fmt::format("{:.3f} {:.3f}", prompts_, inside_);
  for (std::uint32_t offset = 0; offset <= longest; ++offset) {
    if (weight_[offset] >= 0.01F) fmt::format_to(std::back_inserter(text), " {}:{:.3f}", offset, weight_[offset]);
  }
  return text;
}

bool EndOffsets::load(std::string_view text) {
  std::istringstream in{std::string{text}};
  EndOffsets loaded;
  if (!(in >> loaded.prompts_ >> loaded.inside_) || !(loaded.prompts_ >= 0) || !(loaded.inside_ >= 0)) return false;
  std::string word;
  while (in >> word) {
    std::istringstream pair{word};
    std::uint32_t offset = 0;
    char colon = 0;
    float weight = 0;
    if (!(pair >> offset >> colon >> weight) || offset > longest || colon != ':' || !(weight >= 0)) return false;
    loaded.weight_[offset] = weight;
    loaded.total_ += weight;
  }
  *this = loaded;
  return true;
}

}  // namespace cairn

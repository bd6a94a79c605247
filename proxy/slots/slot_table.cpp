#include "slots/slot_table.hpp"

#include <algorithm>
#include <utility>

namespace cairn {

SlotTable::SlotTable(int count) {
  slots_.reserve(most_slots);
  reset(count);
}

void SlotTable::reset(int count) {
  count_ = static_cast<std::size_t>(std::clamp(count, 0, most_slots));
  while (slots_.size() < count_) {
    SlotState slot;
    slot.id = static_cast<int>(slots_.size());
    slots_.push_back(std::move(slot));
  }
  forget_all();
  for (SlotState& slot : slots_) slot.other_weights = slot.taken = false;
}

void SlotTable::forget(int id) {
  SlotState& slot = at(id);
  ++slot.content;
  slot.known.clear();
  slot.attempted.reset();
  slot.by_length = slot.unresolved = false;
  slot.unknown_tail = 0;
  slot.tail_counted = false;
  slot.resume_points.clear();
  slot.unsaved = false;
  slot.doubtful = false;
  slot.chosen_for_us = false;
  slot.recoverable = 0;
  slot.pieces_since_save = 0;
}

void SlotTable::note_attempt(int id, TokenSpan prompt, std::uint32_t held_before) {
  if (at(id).unresolved) return;
  at(id).attempted_at = std::chrono::steady_clock::now();
  at(id).attempted = std::make_shared<const Tokens>(prompt.begin(), prompt.end());
  at(id).held_before = held_before;
}

void SlotTable::forget_all() {
  for (SlotState& slot : slots_) forget(slot.id);
  forget_placed();
}

bool SlotTable::believe_length(int id, std::optional<std::int64_t> n, bool processing) {
  SlotState& slot = at(id);
  if (slot.leased) return false;
  const std::int64_t now = n.value_or(0);  // never used by this process
  if (slot.attempted != nullptr && now > 0 && now >= static_cast<std::int64_t>(slot.known.size())) {
    // As many as before: it never began, as far as can be told.
    const bool began = now != slot.held_before;
    if (!began && !processing && slot.known.empty()) {
      forget(id);
      return true;
    }
    if (began) {
      const Tokens& prompt = *slot.attempted;
      slot.known.assign(prompt.begin(), prompt.begin() + std::min<std::ptrdiff_t>(now, static_cast<std::ptrdiff_t>(prompt.size())));
      slot.by_length = true;
    }
    slot.unknown_tail = static_cast<std::uint32_t>(now) - static_cast<std::uint32_t>(slot.known.size());
    slot.tail_counted = false;
    if (!processing) slot.attempted.reset();
    return false;
  }
  if (now == slot.held()) {
    slot.doubtful = false;
    return false;
  }
  // More than we know of, with our tokens possibly in front, cannot be told from another prompt altogether: the backend
  // compares tokens itself, so believing in the known part risks only time. Fewer means it was cleared or replaced.
  constexpr std::int64_t miscounted = 16;  // tokens, by some other build than those we know
  if (now > slot.held() && !slot.known.empty() && (!slot.tail_counted || now <= slot.held() + miscounted)) {
    slot.by_length = true;
    slot.unknown_tail = static_cast<std::uint32_t>(now) - static_cast<std::uint32_t>(slot.known.size());
    return false;
  }
  const bool wrong = slot.held() != 0;
  forget(id);
  return wrong;
}

bool SlotTable::holds(int id, const Placed& placed, std::optional<std::int64_t> tokens) const {
  const std::size_t held = placed.known.size() + placed.unknown_tail;
  return !at(id).other_weights && tokens == static_cast<std::int64_t>(held) && held != at(id).held();
}

void SlotTable::put_placed(int id, Placed placed) {
  forget(id);
  SlotState& to = at(id);
  to.known = std::move(placed.known);
  to.unknown_tail = placed.unknown_tail;
  to.tail_counted = true;
  to.by_length = true;
  to.resume_points = std::move(placed.resume_points);
  to.proven = placed.proven;
  to.return_chance = placed.return_chance;
  to.name_space = placed.name_space;
  touch(id);
}

bool SlotTable::was_placed(TokenSpan prompt) const {
  return std::ranges::any_of(placed_, [prompt](const Placed& placed) { return common_prefix(placed.known, prompt) == prompt.size(); });
}

bool SlotTable::believe_placed(int id, std::int64_t tokens) {
  const auto there = std::find_if(placed_.begin(), placed_.end(), [&](const Placed& placed) { return holds(id, placed, tokens); });
  if (there == placed_.end()) return false;
  put_placed(id, std::move(*there));
  placed_.erase(there);
  return true;
}

std::vector<int> SlotTable::believe_lengths(std::span<const Length> lengths) {
  const auto unexpected = [this](const Length& one) { return one.tokens.value_or(0) != at(one.id).held(); };
  const auto listed = [this](const Length& one) { return one.id >= 0 && one.id < static_cast<int>(count_); };
  const auto ours = [&](const Length& one) { return listed(one) && !at(one.id).leased; };
  std::vector<int> found;
  for (Placed& placed : std::exchange(placed_, {})) {
    const auto there = std::find_if(lengths.begin(), lengths.end(), [&](const Length& one) {
      return ours(one) && !one.processing && holds(one.id, placed, one.tokens);
    });
    if (there != lengths.end()) {
      put_placed(there->id, std::move(placed));
      found.push_back(there->id);
      continue;
    }
    const bool leased_again = std::any_of(lengths.begin(), lengths.end(), [&](const Length& one) {
      return listed(one) && at(one.id).leased && !at(one.id).running && holds(one.id, placed, one.tokens);
    });
    if (leased_again) placed_.push_back(std::move(placed));
  }
  for (const Length& one : lengths) {
    if (!ours(one) || !std::exchange(at(one.id).chosen_for_us, false) || !unexpected(one)) continue;
    const SlotState& from = at(one.id);
    const auto there = std::find_if(lengths.begin(), lengths.end(), [&](const Length& other) {
      return other.id != one.id && ours(other) && !at(other.id).other_weights && unexpected(other) && other.tokens == static_cast<std::int64_t>(from.held());
    });
    if (there == lengths.end()) continue;
    SlotState& to = at(there->id);
    const int id = to.id, saves = to.saves;
    const std::uint64_t content = to.content;
    to = from;
    to.id = id;
    to.saves = saves;
    to.content = content + 1;
    to.by_length = true;
    forget(one.id);
  }
  for (const Length& one : lengths) {
    if (ours(one)) believe_length(one.id, one.tokens, one.processing);
  }
  return found;
}

void add_piece_resume_points(std::vector<std::uint32_t>& points, std::uint32_t from, std::uint32_t to,
                             std::uint32_t ubatch) {
  constexpr std::uint32_t fewest = 64;
  constexpr std::uint32_t before_end = 4;
  for (const std::uint32_t back : {before_end + ubatch, before_end}) {
    if (to <= back) continue;
    const std::uint32_t at = to - back;
    if (at < fewest || at < from) continue;
    const auto place = std::lower_bound(points.begin(), points.end(), at);
    if (place == points.end() || *place != at) points.insert(place, at);
  }
}

void thin_resume_points(std::vector<std::uint32_t>& points) {
  constexpr std::size_t most = 32;
  constexpr std::uint32_t step = 8192;
  while (points.size() > most) {
    const auto near = std::adjacent_find(points.begin(), points.end(), [](std::uint32_t one, std::uint32_t next) { return next - one <= step; });
    points.erase(near == points.end() ? points.begin() : near + 1);
  }
}

void cut_resume_points(std::vector<std::uint32_t>& points, std::uint32_t length) {
  points.erase(std::upper_bound(points.begin(), points.end(), length), points.end());
}

}  // namespace cairn

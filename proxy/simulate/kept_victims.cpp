#include "simulate/kept_victims.hpp"

#include <algorithm>
#include <cmath>
#include <utility>

namespace cairn {

namespace {
constexpr std::size_t children = 4;  // of a place in the heap: they lie in one cache line
constexpr std::size_t ahead = 4;     // memory is asked for so many states before it is needed
}  // namespace

void KeptVictims::add(Number number, const CheckpointFacts& record) {
  if (number >= items_.size()) items_.resize(std::size_t{number} + 1);
  items_[number] = Item{.record = &record, .waits = true};
  changed_.push_back(number);
}

void KeptVictims::remove(Number number) {
  if (number >= items_.size() || items_[number].record == nullptr) return;
  const std::uint32_t at = items_[number].at;
  items_[number] = Item{};
  if (at == nowhere) return;
  const Scored last = heap_.back();
  heap_.pop_back();
  if (at < heap_.size()) put(at, last);
}

void KeptVictims::changed(Number number) {
  if (number >= items_.size() || items_[number].record == nullptr || std::exchange(items_[number].waits, true)) return;
  changed_.push_back(number);
}

void KeptVictims::begin_round(std::int64_t now_unix_ms) {
  now_unix_ms_ = now_unix_ms;
  ++round_;
  if (policy_.scores_hold() == ScoresHold::one_round) {
    std::vector<const CheckpointFacts*> candidates;
    candidates.reserve(items_.size());
    for (const Item& item : items_) {
      if (item.record != nullptr) candidates.push_back(item.record);
    }
    if (!candidates.empty()) policy_.begin_round(candidates, now_unix_ms_);
    for (Number number = 0; number < items_.size(); ++number) {
      if (items_[number].record != nullptr) look_at(number);
    }
    changed_.clear();
    return;
  }
  const std::span<const DueQueue::Due> due = due_.take_due(now_unix_ms_);
  for (std::size_t i = 0; i < due.size(); ++i) {
    if (i + ahead < due.size()) __builtin_prefetch(&items_[due[i + ahead].number]);
    Item& item = items_[due[i].number];
    if (item.record == nullptr || item.queued_ms != due[i].at_ms) continue;
    item.queued_ms = 0;
    if (item.due_ms <= now_unix_ms_) {
      changed(due[i].number);
    } else {
      due_.push(item.queued_ms = item.due_ms, due[i].number);
    }
  }
  look_at_changed();
}

// What is looked at lies all over memory: cache misses are the cost.
void KeptVictims::look_at_changed() {
  for (std::size_t i = 0; i < changed_.size() + 2 * ahead; ++i) {
    if (i < changed_.size()) {
      const Item& item = items_[changed_[i]];
      __builtin_prefetch(item.record);
      if (item.at != nowhere) {
        __builtin_prefetch(&heap_[item.at]);
        __builtin_prefetch(&heap_[std::min(item.at * children + 1, heap_.size() - 1)]);
      }
    }
    if (i >= ahead && i - ahead < changed_.size()) {
      const Item& item = items_[changed_[i - ahead]];
      if (item.record != nullptr) worth_.expect(*item.record);
    }
    if (i < 2 * ahead) continue;
    const Number number = changed_[i - 2 * ahead];
    if (items_[number].waits) look_at(number);
  }
  changed_.clear();
}

void KeptVictims::look_at(Number number) {
  Item& item = items_[number];
  const CheckpointFacts& record = *item.record;
  const ScoresHold hold = policy_.scores_hold();
  const StateWorth worth = hold == ScoresHold::until_used ? StateWorth{} : worth_.look_at(record, now_unix_ms_);
  const Scored scored{policy_.score(record, worth, now_unix_ms_), number};
  item.round = round_;
  item.waits = false;
  item.last_used_unix_ms = record.last_used_unix_ms;
  if (item.at == nowhere) {
    push(scored);
  } else {
    put(item.at, scored);
  }
  if (hold != ScoresHold::a_while) return;
  item.due_ms = next_look_ms(record, scored.score, worth.lasts_s);
  if (item.queued_ms != 0 && item.queued_ms <= item.due_ms) return;
  due_.push(item.queued_ms = item.due_ms, number);
}

// When age changes its score; where it is worth much more than what goes, and will still be when its age has doubled or grown
// fourfold or eightfold, then.
std::int64_t KeptVictims::next_look_ms(const CheckpointFacts& record, double score, double lasts_s) {
  constexpr std::int64_t least_ms = 1000;  // who is young is used soon, or waits long
  const std::int64_t age_ms = std::max(least_ms, now_unix_ms_ - record.last_used_unix_ms);
  const double safe = bar_ * much_more_;
  if (bar_ > 0 && score > safe) {
    for (const std::int64_t ages : {7, 3, 1}) {
      const std::int64_t then_ms = now_unix_ms_ + ages * age_ms;
      if (policy_.score(record, worth_.later(then_ms), then_ms) > safe) return then_ms;
    }
  }
  return now_unix_ms_ + std::max<std::int64_t>(least_ms, std::llround(std::ceil(lasts_s * 1000)));
}

std::uint64_t KeptVictims::bytes_below(const CheckpointFacts& incoming, std::uint64_t enough) {
  const double score = policy_.score(incoming, worth_.look_at(incoming, now_unix_ms_), now_unix_ms_);
  const auto goes_before_incoming = [&](const Scored& scored) {
    const CheckpointFacts& record = *items_[scored.number].record;
    if (scored.score != score) return scored.score < score;
    if (record.last_used_unix_ms != incoming.last_used_unix_ms) return record.last_used_unix_ms < incoming.last_used_unix_ms;
    return record.id < incoming.id;
  };
  std::uint64_t bytes = 0;
  set_aside_.clear();
  while (bytes < enough) {
    const Scored* scored = top();
    if (scored == nullptr || !goes_before_incoming(*scored)) break;
    bytes += items_[scored->number].record->bytes;
    set_aside_.push_back(*scored);
    pop();
  }
  for (const Scored& scored : set_aside_) push(scored);
  return bytes;
}

KeptVictims::Number KeptVictims::worst() {
  const Scored* scored = top();
  return scored == nullptr ? none : scored->number;
}

void KeptVictims::take() {
  const Scored worst = heap_.front();
  policy_.evicted(*items_[worst.number].record, worst.score);
  constexpr double weight = 0.02;
  bar_ = std::max(worst.score, bar_ + weight * (worst.score - bar_));
  remove(worst.number);
  ++round_;  // what was worth nothing beside it may be worth something now
}

const KeptVictims::Scored* KeptVictims::top() {
  while (!heap_.empty()) {
    const Number number = heap_.front().number;
    if (items_[number].round != round_) look_at(number);
    if (heap_.front().number == number) return &heap_.front();
  }
  return nullptr;
}

// As Victims has it: among equals the one unused longest, then the oldest.
bool KeptVictims::goes_before(const Scored& a, const Scored& b) const {
  if (a.score != b.score) return a.score < b.score;
  const Item &of_a = items_[a.number], &of_b = items_[b.number];
  if (of_a.last_used_unix_ms != of_b.last_used_unix_ms) return of_a.last_used_unix_ms < of_b.last_used_unix_ms;
  return of_a.record->id < of_b.record->id;
}

void KeptVictims::push(const Scored& scored) {
  heap_.push_back(scored);
  put(heap_.size() - 1, scored);
}

void KeptVictims::pop() {
  items_[heap_.front().number].at = nowhere;
  const Scored last = heap_.back();
  heap_.pop_back();
  if (!heap_.empty()) put(0, last);
}

void KeptVictims::put(std::size_t at, const Scored& scored) {
  const auto place = [&](std::size_t to, const Scored& which) {
    heap_[to] = which;
    items_[which.number].at = static_cast<std::uint32_t>(to);
  };
  while (at > 0 && goes_before(scored, heap_[(at - 1) / children])) {
    const std::size_t parent = (at - 1) / children;
    place(at, heap_[parent]);
    at = parent;
  }
  for (std::size_t first = at * children + 1; first < heap_.size(); first = at * children + 1) {
    std::size_t best = first;
    for (std::size_t child = first + 1; child < std::min(first + children, heap_.size()); ++child) {
      if (goes_before(heap_[child], heap_[best])) best = child;
    }
    if (!goes_before(heap_[best], scored)) break;
    place(at, heap_[best]);
    at = best;
  }
  place(at, scored);
}

}  // namespace cairn

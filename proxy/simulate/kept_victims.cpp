#include "simulate/kept_victims.hpp"

#include <algorithm>
#include <cmath>
#include <utility>

namespace cairn {

// As Victims has it: among equals the one unused longest, then the oldest.
bool KeptVictims::Place::operator<(const Place& other) const {
  if (score != other.score) return score < other.score;
  if (last_used_unix_ms != other.last_used_unix_ms) return last_used_unix_ms < other.last_used_unix_ms;
  return id < other.id;
}

void KeptVictims::add(const CheckpointRecord& record) {
  items_[record.id].record = &record;
  changed_.push_back(record.id);
}

void KeptVictims::remove(CheckpointId id) {
  const auto found = items_.find(id);
  if (found == items_.end()) return;
  if (!found->second.is_new) order_.erase(found->second.at);
  items_.erase(found);
}

void KeptVictims::changed(CheckpointId id) {
  const auto found = items_.find(id);
  if (found == items_.end() || std::exchange(found->second.waits, true)) return;
  changed_.push_back(id);
}

void KeptVictims::begin_round(std::int64_t now_unix_ms) {
  now_unix_ms_ = now_unix_ms;
  ++round_;
  if (policy_.scores_hold() == ScoresHold::one_round) {
    std::vector<const CheckpointRecord*> candidates;
    candidates.reserve(items_.size());
    for (const auto& [id, item] : items_) candidates.push_back(item.record);
    if (!candidates.empty()) policy_.begin_round(candidates, now_unix_ms_);
    for (auto& [id, item] : items_) look_at(item);
    changed_.clear();
    return;
  }
  for (const CheckpointId id : changed_) {
    const auto found = items_.find(id);
    if (found != items_.end() && found->second.waits) look_at(found->second);
  }
  changed_.clear();
  while (!due_.empty() && due_.top().at_ms <= now_unix_ms_) {
    const Due due = due_.top();
    due_.pop();
    const auto found = items_.find(due.id);
    if (found == items_.end() || found->second.queued_ms != due.at_ms) continue;
    Item& item = found->second;
    item.queued_ms = 0;
    if (item.due_ms <= now_unix_ms_) {
      look_at(item);
    } else {
      due_.push({item.queued_ms = item.due_ms, due.id});
    }
  }
}

void KeptVictims::look_at(Item& item) {
  const CheckpointRecord& record = *item.record;
  const ScoresHold hold = policy_.scores_hold();
  const StateWorth worth = hold == ScoresHold::until_used ? StateWorth{} : worth_(record, now_unix_ms_);
  const Place place{policy_.score(record, worth, now_unix_ms_), record.last_used_unix_ms, record.id};
  item.round = round_;
  item.waits = false;
  if (std::exchange(item.is_new, false)) {
    item.at = order_.insert(place).first;
  } else if (*item.at < place || place < *item.at) {
    auto node = order_.extract(item.at);
    node.value() = place;
    item.at = order_.insert(std::move(node)).position;
  }
  if (hold != ScoresHold::a_while) return;
  item.due_ms = next_look_ms(record, place.score, worth.lasts_s);
  if (item.queued_ms != 0 && item.queued_ms <= item.due_ms) return;
  due_.push({item.queued_ms = item.due_ms, record.id});
}

// When age changes its score; where it is worth much more than what goes, and will still be when its age has doubled or grown
// fourfold or eightfold, then.
std::int64_t KeptVictims::next_look_ms(const CheckpointRecord& record, double score, double lasts_s) {
  constexpr std::int64_t least_ms = 1000;  // who is young is used soon, or waits long
  const std::int64_t age_ms = std::max(least_ms, now_unix_ms_ - record.last_used_unix_ms);
  const double safe = bar_ * much_more_;
  if (bar_ > 0 && score > safe) {
    for (const std::int64_t ages : {7, 3, 1}) {
      if (score_at(record, now_unix_ms_ + ages * age_ms) > safe) return now_unix_ms_ + ages * age_ms;
    }
  }
  return now_unix_ms_ + std::max<std::int64_t>(least_ms, std::llround(std::ceil(lasts_s * 1000)));
}

std::uint64_t KeptVictims::bytes_below(const CheckpointRecord& incoming, std::uint64_t enough) {
  const Place own{score_at(incoming, now_unix_ms_), incoming.last_used_unix_ms, incoming.id};
  std::uint64_t bytes = 0;
  for (auto at = order_.begin(); at != order_.end() && bytes < enough && *at < own;) {
    Item& item = items_.at(at->id);
    const auto next = std::next(at);
    if (item.round != round_) look_at(item);
    at = next;
    const bool risen = next != order_.end() && *next < *item.at;  // it is met again further on
    if (!risen && *item.at < own) bytes += item.record->bytes;
  }
  return bytes;
}

const CheckpointRecord* KeptVictims::worst() {
  while (!order_.empty()) {
    Item& item = items_.at(order_.begin()->id);
    if (item.round != round_) look_at(item);
    if (item.at == order_.begin()) return item.record;
  }
  return nullptr;
}

void KeptVictims::take() {
  const Place place = *order_.begin();
  policy_.evicted(*items_.at(place.id).record, place.score);
  constexpr double weight = 0.02;
  bar_ = std::max(place.score, bar_ + weight * (place.score - bar_));
  remove(place.id);
  ++round_;  // what was worth nothing beside it may be worth something now
}

}  // namespace cairn

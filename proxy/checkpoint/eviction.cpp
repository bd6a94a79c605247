#include "checkpoint/eviction.hpp"

#include <algorithm>

namespace cairn {

namespace {

double idle_ms(const CheckpointFacts& record, std::int64_t now_unix_ms) {
  return static_cast<double>(std::max<std::int64_t>(0, now_unix_ms - record.last_used_unix_ms));
}
double bytes_of(const CheckpointFacts& record) { return static_cast<double>(std::max<std::uint64_t>(1, record.bytes)); }
double efficiency(const CheckpointFacts& record) { return record.cost_to_recompute_s / bytes_of(record); }

// Where nobody knows better: all of it, by its uses, less and less often the longer nobody came.
StateWorth worth_by_record(const CheckpointFacts& record, std::int64_t now_unix_ms) {
  constexpr double hour_ms = 3.6e6;
  const double uses_per_s = static_cast<double>(1 + record.uses) * 1000 / (hour_ms + idle_ms(record, now_unix_ms));
  return StateWorth{.tokens_per_s = static_cast<double>(std::max(1U, record.token_count)) * uses_per_s};
}

}  // namespace

double ValuePolicy::score(const CheckpointFacts& record, const StateWorth& worth, std::int64_t) {
  const double seconds_a_token = record.cost_to_recompute_s / std::max<double>(1, record.token_count);
  return worth.tokens_per_s * seconds_a_token / bytes_of(record);
}

double LruPolicy::score(const CheckpointFacts& record, const StateWorth&, std::int64_t) {
  return static_cast<double>(record.last_used_unix_ms);
}

double GdsfPolicy::score(const CheckpointFacts& record, const StateWorth&, std::int64_t) {
  const auto [at, is_new] = seen_.try_emplace(record.id, Seen{record.uses, floor_});
  if (!is_new && at->second.uses != record.uses) at->second = Seen{record.uses, floor_};
  return at->second.floor + static_cast<double>(1 + record.uses) * efficiency(record);
}

void GdsfPolicy::evicted(const CheckpointFacts& record, double score) {
  floor_ = std::max(floor_, score);
  seen_.erase(record.id);
}

void MarconiPolicy::begin_round(std::span<const CheckpointFacts* const> candidates, std::int64_t now_unix_ms) {
  longest_idle_ms_ = 1;
  best_efficiency_ = 0;
  for (const CheckpointFacts* record : candidates) {
    longest_idle_ms_ = std::max(longest_idle_ms_, idle_ms(*record, now_unix_ms));
    best_efficiency_ = std::max(best_efficiency_, efficiency(*record));
  }
}

double MarconiPolicy::score(const CheckpointFacts& record, const StateWorth& worth, std::int64_t now_unix_ms) {
  const double recency = 1 - idle_ms(record, now_unix_ms) / longest_idle_ms_;
  const double saved = best_efficiency_ > 0 ? efficiency(record) / best_efficiency_ : 0;
  constexpr double stays = 2;  // above all that have no branches
  return recency + saved + (worth.branched_from ? stays : 0);
}

std::unique_ptr<EvictionPolicy> make_policy(std::string_view name) {
  if (name == "value") return std::make_unique<ValuePolicy>();
  if (name == "lru") return std::make_unique<LruPolicy>();
  if (name == "gdsf") return std::make_unique<GdsfPolicy>();
  if (name == "marconi") return std::make_unique<MarconiPolicy>();
  return nullptr;
}

Victims::Victims(EvictionPolicy& policy, const WorthOf& worth, std::span<const CheckpointRecord* const> candidates,
                 std::int64_t now_unix_ms)
    : policy_(policy), worth_(worth), now_unix_ms_(now_unix_ms) {
  if (candidates.empty()) return;
  policy_.begin_round(std::vector<const CheckpointFacts*>(candidates.begin(), candidates.end()), now_unix_ms_);
  heap_.reserve(candidates.size());
  for (const CheckpointRecord* record : candidates) heap_.push_back(scored(*record));
  std::make_heap(heap_.begin(), heap_.end(), goes_later);
}

Victims::Scored Victims::scored(const CheckpointRecord& record) const {
  const double score = policy_.score(record, worth_ ? worth_(record) : worth_by_record(record, now_unix_ms_), now_unix_ms_);
  return Scored{score, &record, record.id, record.bytes, record.last_used_unix_ms};
}

// Among equals the one unused longest, then the oldest: a deterministic choice.
bool Victims::goes_later(const Scored& a, const Scored& b) {
  if (a.score != b.score) return a.score > b.score;
  if (a.last_used_unix_ms != b.last_used_unix_ms) return a.last_used_unix_ms > b.last_used_unix_ms;
  return a.id > b.id;
}

std::uint64_t Victims::bytes_below(const CheckpointRecord& incoming) const {
  const Scored own = scored(incoming);
  std::uint64_t bytes = 0;
  for (const Scored& candidate : heap_) {
    if (goes_later(own, candidate)) bytes += candidate.bytes;
  }
  return bytes;
}

const CheckpointRecord* Victims::worst() {
  while (!heap_.empty()) {
    const Scored now = scored(*heap_.front().record);
    if (now.score <= heap_.front().score) return now.record;
    std::pop_heap(heap_.begin(), heap_.end(), goes_later);
    heap_.back() = now;
    std::push_heap(heap_.begin(), heap_.end(), goes_later);
  }
  return nullptr;
}

void Victims::take() {
  policy_.evicted(*heap_.front().record, heap_.front().score);
  std::pop_heap(heap_.begin(), heap_.end(), goes_later);
  heap_.pop_back();
}

}  // namespace cairn

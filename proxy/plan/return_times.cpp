#include "plan/return_times.hpp"

#include <algorithm>
#include <array>
#include <cmath>

namespace cairn {

namespace {

// Ages: one bucket for the first second, then four an octave.
constexpr int per_octave = 4;
constexpr std::size_t buckets = 1 + per_octave * 17;
constexpr std::size_t most_waiting = 1 << 20;

double begin_of(std::size_t bucket) { return bucket == 0 ? 0 : std::exp2(static_cast<double>(bucket - 1) / per_octave); }
const std::array<double, buckets + 1>& bounds() {
  static const std::array<double, buckets + 1> made = [] {
    std::array<double, buckets + 1> all{};
    for (std::size_t i = 0; i <= buckets; ++i) all[i] = begin_of(i);
    return all;
  }();
  return made;
}
std::size_t bucket_of(double age_s) {
  const auto after = std::upper_bound(bounds().begin(), bounds().end(), age_s);
  return std::min<std::size_t>(static_cast<std::size_t>(after - bounds().begin()) - 1, buckets - 1);
}

// Classes: all, by turn, branch places by visits, then every combination of four traits in four steps each.
constexpr ReturnTimes::Class all_prompts = 0, first_turn = 1, first_branch = 5, first_leaf = 9, classes = first_leaf + 256;

template <class Value>
std::uint16_t step_of(Value value, Value second, Value third, Value fourth) {
  return static_cast<std::uint16_t>((value >= second) + (value >= third) + (value >= fourth));
}

int parent_of(ReturnTimes::Class of) {
  if (of == all_prompts) return -1;
  return of < first_leaf ? all_prompts : first_turn + (of - first_leaf) / 64;
}

// As many observations as a class needs to outweigh the wider one.
constexpr double prior_weight = 8;
// Before anything was seen: the same chance in each octave, which makes the rate fall with age.
constexpr double prior_chance = 0.15 / per_octave;
// Beyond so many observations of a bucket the older half fades.
constexpr float most_evidence = 4096;

}  // namespace

ReturnTimes::ReturnTimes() : evidence_(classes), in_bucket_(buckets), rates_(classes) {
  for (Evidence& evidence : evidence_) {
    evidence.ended.assign(buckets, 0);
    evidence.returned.assign(buckets, 0);
  }
}

ReturnTimes::Class ReturnTimes::class_of(const PromptTraits& traits) {
  const std::uint16_t turn = step_of(traits.turn, 1U, 2U, 4U);
  const std::uint16_t gap = turn == 0 ? std::uint16_t{0} : step_of(traits.gap_s, 15.0, 60.0, 240.0);
  const std::uint16_t size = step_of(traits.prompt_tokens, 2000U, 8000U, 32000U);
  const std::uint16_t answer = step_of(traits.answer_tokens, 16U, 128U, 512U);
  return static_cast<Class>(first_leaf + ((turn * 4 + gap) * 4 + size) * 4 + answer);
}

ReturnTimes::Class ReturnTimes::class_of_branch(std::uint32_t visits) {
  return static_cast<Class>(first_branch + step_of(visits, 2U, 4U, 8U));
}

ReturnTimes::Watch ReturnTimes::begin(Class of, double now_s) {
  advance(now_s);
  const Watch watch = first_ + waiting_.size();
  waiting_.push_back(Waiting{now_s, of, 0, true});
  in_bucket_[0].push_back(watch);
  while (!waiting_.empty() && (!waiting_.front().alive || waiting_.size() > most_waiting)) {
    waiting_.pop_front();
    ++first_;
  }
  return watch;
}

void ReturnTimes::returned(Watch watch, double now_s) {
  advance(now_s);
  if (watch < first_ || watch - first_ >= waiting_.size()) return;
  Waiting& it = waiting_[watch - first_];
  if (!it.alive) return;
  it.alive = false;
  end(it.of, it.bucket, true);
}

void ReturnTimes::reclassify(Watch watch, Class of) {
  if (watch >= first_ && watch - first_ < waiting_.size()) waiting_[watch - first_].of = of;
}

// Whoever has outlived the bucket he waits in goes on to the next one.
void ReturnTimes::advance(double now_s) {
  for (std::size_t bucket = 0; bucket < buckets; ++bucket) {
    std::deque<Watch>& queue = in_bucket_[bucket];
    while (!queue.empty()) {
      const Watch watch = queue.front();
      if (watch >= first_ && waiting_[watch - first_].alive) {
        Waiting& it = waiting_[watch - first_];
        if (now_s - it.since_s < bounds()[bucket + 1]) break;
        end(it.of, bucket, false);
        if (bucket + 1 < buckets) {
          ++it.bucket;
          in_bucket_[bucket + 1].push_back(watch);
        } else {
          it.alive = false;
        }
      }
      queue.pop_front();
    }
  }
}

void ReturnTimes::end(Class of, std::size_t bucket, bool came_back) {
  for (int at = of; at >= 0; at = parent_of(static_cast<Class>(at))) {
    float& ended = evidence_[static_cast<std::size_t>(at)].ended[bucket];
    float& returned = evidence_[static_cast<std::size_t>(at)].returned[bucket];
    ended += 1;
    returned += came_back ? 1 : 0;
    if (ended > most_evidence) {
      ended /= 2;
      returned /= 2;
    }
  }
  if (!came_back) return;
  // The tables are made anew when they would differ: after each thirtieth more.
  returns_ += 1;
  if (returns_ < returns_at_version_ * 1.03 + 1) return;
  returns_at_version_ = returns_;
  ++version_;
}

const std::vector<double>& ReturnTimes::chances(Class of) const {
  Rates& rates = rates_[of];
  if (rates.version == version_) return rates.chance;
  rates.version = version_;
  const int parent = parent_of(of);
  const std::vector<double>* wider = parent < 0 ? nullptr : &chances(static_cast<Class>(parent));
  rates.chance.resize(buckets);
  for (std::size_t i = 0; i < buckets; ++i) {
    const double prior = wider == nullptr ? prior_chance : (*wider)[i];
    rates.chance[i] = (evidence_[of].returned[i] + prior_weight * prior) / (evidence_[of].ended[i] + prior_weight);
  }
  rates.rate.assign(buckets, 0);
  for (std::size_t from = 0; from < buckets; ++from) {
    double left = 1, kept_s = 0;
    for (std::size_t i = from; i < buckets; ++i) {
      kept_s += left * (bounds()[i + 1] - bounds()[i]) * (1 - rates.chance[i] / 2);
      left *= 1 - rates.chance[i];
      rates.rate[from] = std::max(rates.rate[from], (1 - left) / kept_s);
    }
  }
  return rates.chance;
}

double ReturnTimes::rate(Class of, double age_s) const {
  chances(of);
  return rates_[of].rate[bucket_of(std::max(age_s, 0.0))];
}

}  // namespace cairn

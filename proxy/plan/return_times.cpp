#include "plan/return_times.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <sstream>

namespace cairn {

namespace {

// Ages: one bucket for the first second, then four an octave.
constexpr int per_octave = 4;
constexpr std::size_t buckets = 1 + per_octave * 17;
constexpr std::size_t most_waiting = 1 << 20;

const std::array<double, buckets + 1>& bounds() {
  static const std::array<double, buckets + 1> made = [] {
    std::array<double, buckets + 1> all{};
    for (std::size_t i = 1; i <= buckets; ++i) all[i] = std::exp2(static_cast<double>(i - 1) / per_octave);
    return all;
  }();
  return made;
}
std::size_t bucket_of(double age_s) {
  const auto after = std::upper_bound(bounds().begin(), bounds().end(), age_s);
  return std::min<std::size_t>(static_cast<std::size_t>(after - bounds().begin()) - 1, buckets - 1);
}

// The terms: by age; by age beside the pauses, in octaves; then `steps` of each trait. A trait's step 0 says that it is unknown.
constexpr int steps = 32;
constexpr int pauses = 18;
constexpr int least_beside = -6, most_beside = 8;
constexpr std::size_t first_beside = buckets;
constexpr std::size_t first_scale = first_beside + (most_beside - least_beside + 1);
constexpr std::size_t first_trait = first_scale + 1 + buckets / per_octave;
constexpr std::size_t all_terms = first_trait + steps * ReturnTimes::traits;

std::uint8_t octave(double value, int least, int most) {
  if (!(value > 0)) return 1;
  return static_cast<std::uint8_t>(1 + std::clamp(static_cast<int>(std::floor(std::log2(value))), least, most) - least);
}

// SIZE_MAX: no pauses yet.
std::size_t beside(std::size_t bucket, std::uint8_t pause) {
  if (pause == 0) return SIZE_MAX;
  const int octaves = bucket == 0 ? -1 : static_cast<int>(bucket - 1) / per_octave;
  return first_beside + static_cast<std::size_t>(std::clamp(octaves - (pause - 1), least_beside, most_beside) - least_beside);
}

// How much of what the traits say holds at that age.
std::size_t scale_at(std::size_t bucket) { return first_scale + (bucket + per_octave - 1) / per_octave; }

double chance_of(double log_odds) { return 1 / (1 + std::exp(-log_odds)); }

// Before anything was seen: the same chance in each octave, which makes the rate fall with age.
constexpr double prior_chance = 0.15 / per_octave;
constexpr float prior_age_variance = 0.5F, prior_scale_variance = 0.05F, prior_trait_variance = 0.6F;
// No term is ever so certain that it would not follow a change within some hundreds of observations.
constexpr float least_variance = 0.0005F;

// Sums of trait terms are told apart in such steps.
constexpr double sum_step = 0.2;
constexpr int most_sum_steps = 60;

}  // namespace

ReturnTimes::ReturnTimes() : terms_(all_terms), in_bucket_(buckets), rates_((2 * most_sum_steps + 1) * (pauses + 1)) {
  const auto prior = static_cast<float>(std::log(prior_chance / (1 - prior_chance)));
  for (std::size_t i = 0; i < all_terms; ++i) {
    terms_[i] = i < first_beside ? Term{prior, prior_age_variance} : Term{0, prior_trait_variance};
    if (i >= first_scale && i < first_trait) terms_[i] = Term{1, prior_scale_variance};
  }
}

namespace {

// Which term of each trait; those that speak of a last prompt stay unknown for the first.
enum Trait : std::size_t { turn, length, answer, fresh, gap, mean_gap, lost, said, branch_visits };
static_assert(branch_visits + 1 == ReturnTimes::traits);
constexpr std::uint8_t half = steps / 2;  // the second half of a trait's terms: the same octaves, in another situation

std::uint8_t turn_term(std::uint64_t turns) {
  return static_cast<std::uint8_t>(1 + (turns < 4 ? turns : std::min<std::uint64_t>(octave(static_cast<double>(turns), 2, 6) + 3, 8)));
}
std::uint8_t length_term(std::uint64_t turns, std::uint32_t tokens) {
  return static_cast<std::uint8_t>(octave(tokens, 7, 17) + (turns > 0 ? half : 0));
}

}  // namespace

ReturnTimes::Kind ReturnTimes::kind_of(const PromptTraits& prompt) {
  Kind kind;
  const bool later = prompt.turn > 0;
  kind.terms[turn] = turn_term(prompt.turn);
  kind.terms[length] = length_term(prompt.turn, prompt.prompt_tokens);
  if (prompt.answer_tokens > 0) kind.terms[answer] = static_cast<std::uint8_t>(octave(prompt.answer_tokens, 0, 12) + (later ? half : 0));
  if (!later) {
    const std::uint32_t shared = prompt.prompt_tokens - std::min(prompt.prompt_tokens, prompt.fresh_tokens);
    kind.terms[fresh] = static_cast<std::uint8_t>(octave(shared, 5, 16) + half);
    return kind;
  }
  kind.terms[fresh] = octave(prompt.fresh_tokens, 5, 16);
  kind.terms[gap] = octave(prompt.gap_s, -1, 14);
  kind.terms[mean_gap] = octave(prompt.mean_gap_s, -1, 14);
  kind.terms[lost] = octave(1 - prompt.kept, -8, -1);
  // What is new beyond the last answer is what the user said; less than that answer: it was cut, or told in other words.
  const double new_words = static_cast<double>(prompt.fresh_tokens) - prompt.last_answer_tokens;
  kind.terms[said] = static_cast<std::uint8_t>(octave(std::abs(new_words), 5, 16) + (new_words < 0 ? half : 0));
  kind.pause = octave(prompt.mean_gap_s, 0, pauses - 1);
  return kind;
}

ReturnTimes::Kind ReturnTimes::kind_of_saved(std::uint64_t uses, std::uint32_t prompt_tokens) {
  Kind kind;
  kind.terms[turn] = turn_term(uses);
  kind.terms[length] = length_term(uses, prompt_tokens);
  return kind;
}

ReturnTimes::Kind ReturnTimes::kind_of_branch(std::uint32_t visits) {
  Kind kind;
  kind.terms[branch_visits] = octave(visits, 0, 7);
  return kind;
}

ReturnTimes::Watch ReturnTimes::begin(const Kind& kind, double now_s) {
  advance(now_s);
  const Watch watch = first_ + waiting_.size();
  waiting_.push_back(Waiting{now_s, kind, 0, true});
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
  learn(it.kind, it.bucket, true);
  // The tables are made anew when they would differ: after each thirtieth more.
  returns_ += 1;
  if (returns_ < returns_at_version_ * 1.03 + 1) return;
  returns_at_version_ = returns_;
  ++version_;
}

void ReturnTimes::reclassify(Watch watch, const Kind& kind) {
  if (watch >= first_ && watch - first_ < waiting_.size()) waiting_[watch - first_].kind = kind;
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
        learn(it.kind, bucket, false);
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

void ReturnTimes::learn(const Kind& kind, std::size_t bucket, bool came_back) {
  struct Used {
    Term* term = nullptr;
    double by = 1;  // what the log-odds change with it
  };
  std::array<Used, traits + 3> used{};
  std::size_t count = 0;
  used[count++].term = &terms_[bucket];
  if (const std::size_t at = beside(bucket, kind.pause); at != SIZE_MAX) used[count++].term = &terms_[at];
  Term& scale = terms_[scale_at(bucket)];
  const double sum = trait_sum(kind);
  for (std::size_t trait = 0; trait < traits; ++trait) {
    if (kind.terms[trait] != 0) used[count++] = Used{&terms_[first_trait + trait * steps + kind.terms[trait]], scale.mean};
  }
  double log_odds = 0, variance = 0;
  for (std::size_t i = 0; i < count; ++i) {
    log_odds += used[i].by * used[i].term->mean;
    variance += used[i].by * used[i].by * used[i].term->variance;
  }
  used[count++] = Used{&scale, sum};
  variance += sum * sum * scale.variance;
  const double chance = chance_of(log_odds);
  const double information = chance * (1 - chance);
  const double surprise = ((came_back ? 1 : 0) - chance) / (1 + variance * information);
  const double shrink = information / (1 + variance * information);
  for (std::size_t i = 0; i < count; ++i) {
    Term& term = *used[i].term;
    const double by = used[i].by;
    term.mean += static_cast<float>(term.variance * by * surprise);
    term.variance = std::max(least_variance, static_cast<float>(term.variance * (1 - term.variance * by * by * shrink)));
  }
}

double ReturnTimes::trait_sum(const Kind& kind) const {
  double sum = 0;
  for (std::size_t trait = 0; trait < traits; ++trait) {
    if (kind.terms[trait] != 0) sum += terms_[first_trait + trait * steps + kind.terms[trait]].mean;
  }
  return sum;
}

const std::vector<float>& ReturnTimes::rates_of(int step, std::uint8_t pause) const {
  Rates& rates = rates_[static_cast<std::size_t>(step + most_sum_steps) * (pauses + 1) + pause];
  if (rates.version == version_) return rates.rate;
  rates.version = version_;
  std::array<double, buckets> chance{};
  for (std::size_t i = 0; i < buckets; ++i) {
    const std::size_t at = beside(i, pause);
    chance[i] = chance_of(terms_[i].mean + (at == SIZE_MAX ? 0 : terms_[at].mean) + terms_[scale_at(i)].mean * step * sum_step);
  }
  rates.rate.assign(buckets, 0);
  for (std::size_t from = 0; from < buckets; ++from) {
    double left = 1, kept_s = 0, best = 0;
    for (std::size_t i = from; i < buckets; ++i) {
      kept_s += left * (bounds()[i + 1] - bounds()[i]) * (1 - chance[i] / 2);
      left *= 1 - chance[i];
      best = std::max(best, (1 - left) / kept_s);
    }
    rates.rate[from] = static_cast<float>(best);
  }
  return rates.rate;
}

double ReturnTimes::rate(const Kind& kind, double age_s) const {
  const double at = std::clamp(trait_sum(kind) / sum_step, -most_sum_steps + 1.0, most_sum_steps - 1.0);
  const double lower = std::floor(at);
  const std::size_t bucket = bucket_of(std::max(age_s, 0.0));
  const double below = rates_of(static_cast<int>(lower), kind.pause)[bucket];
  const double above = rates_of(static_cast<int>(lower) + 1, kind.pause)[bucket];
  return below + (above - below) * (at - lower);
}

double ReturnTimes::rate_lasts_s(double age_s) {
  const std::size_t bucket = bucket_of(std::max(age_s, 0.0));
  return bucket + 1 < buckets ? bounds()[bucket + 1] - age_s : horizon_s;
}

std::string ReturnTimes::to_text() const {
  std::string text = "2";
  for (const Term& term : terms_) fmt::format_to(std::back_inserter(text), " {:.4g} {:.4g}", term.mean, term.variance);
  return text;
}

bool ReturnTimes::load(std::string_view text) {
  std::istringstream in{std::string{text}};
  int version = 0;
  std::vector<Term> loaded(all_terms);
  if (!(in >> version) || version != 2) return false;
  for (Term& term : loaded) {
    if (!(in >> term.mean >> term.variance) || !std::isfinite(term.mean) || !(term.variance > 0) || !(term.variance <= 1)) return false;
  }
  std::string rest;
  if (in >> rest) return false;
  terms_ = std::move(loaded);
  ++version_;
  return true;
}

}  // namespace cairn

#include "plan/return_times.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <iterator>
#include <limits>
#include <sstream>
#include <utility>

namespace cairn {

namespace {

// Ages: one bucket for the first second, then four an octave.
constexpr int per_octave = 4;
constexpr std::size_t buckets = ReturnTimes::buckets;
static_assert((buckets - 1) % per_octave == 0);
constexpr std::size_t most_waiting = 1 << 20;

constexpr std::array<double, per_octave> quarters{1, 1.189207115002721, 1.4142135623730951, 1.681792830507429};
constexpr std::array<double, buckets + 1> bounds = [] {
  std::array<double, buckets + 1> all{};
  double octave = 1;
  for (std::size_t i = 0; i < buckets; ++i) {
    all[i + 1] = octave * quarters[i % per_octave];
    if (i % per_octave == per_octave - 1) octave *= 2;
  }
  return all;
}();
std::size_t bucket_of(double age_s) {
  if (!(age_s >= 1)) return 0;
  // The octave is the exponent of the number.
  const auto octave = static_cast<std::size_t>((std::bit_cast<std::uint64_t>(age_s) >> 52) - 1023);
  std::size_t bucket = std::min(1 + octave * per_octave, buckets - 1);
  while (bucket + 1 < buckets && age_s >= bounds[bucket + 1]) ++bucket;
  return bucket;
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

ReturnTimes::ReturnTimes() : terms_(all_terms), terms_of_tables_(first_trait), rates_((2 * most_sum_steps + 1) * (pauses + 1)) {
  first_in_.fill(0);
  next_leaves_s_.fill(std::numeric_limits<double>::infinity());
  const auto prior = static_cast<float>(std::log(prior_chance / (1 - prior_chance)));
  for (std::size_t i = 0; i < all_terms; ++i) {
    terms_[i] = i < first_beside ? Term{prior, prior_age_variance} : Term{0, prior_trait_variance};
    if (i >= first_scale && i < first_trait) terms_[i] = Term{1, prior_scale_variance};
  }
  make_tables_anew();
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
  const Watch watch = end();
  waiting_.push_back(Waiting{now_s, kind, 0, true});
  for (std::size_t bucket = 0; bucket < buckets; ++bucket) {
    next_leaves_s_[bucket] = std::min(next_leaves_s_[bucket], now_s + bounds[bucket + 1]);
  }
  while (gone_ < waiting_.size() && (!waiting_[gone_].alive || waiting_.size() - gone_ > most_waiting)) ++gone_;
  if (gone_ > waiting_.size() / 2) {
    waiting_.erase(waiting_.begin(), waiting_.begin() + static_cast<std::ptrdiff_t>(gone_));
    first_ += std::exchange(gone_, 0);
  }
  return watch;
}

ReturnTimes::Waiting* ReturnTimes::find(Watch watch) {
  return watch >= first_ + gone_ && watch < end() ? &waiting_[watch - first_] : nullptr;
}

void ReturnTimes::returned(Watch watch, double now_s) {
  advance(now_s);
  Waiting* it = find(watch);
  if (it == nullptr || !it->alive) return;
  it->alive = false;
  learn(it->kind, it->bucket, true);
  // The tables are made anew when they would differ.
  returns_ += 1;
  if (returns_ < returns_at_version_ * 1.002 + 1) return;
  returns_at_version_ = returns_;
  make_tables_anew();
}

void ReturnTimes::make_tables_anew() {
  std::copy_n(terms_.begin(), first_trait, terms_of_tables_.begin());
  ++version_;
}

void ReturnTimes::reclassify(Watch watch, const Kind& kind) {
  if (Waiting* it = find(watch)) it->kind = kind;
}

// Whoever has outlived the bucket he waits in goes on to the next one. They came one after the other, and so they go.
void ReturnTimes::advance(double now_s) {
  for (std::size_t bucket = 0; bucket < buckets; ++bucket) {
    if (now_s < next_leaves_s_[bucket]) continue;
    next_leaves_s_[bucket] = std::numeric_limits<double>::infinity();
    Watch& next = first_in_[bucket];
    for (next = std::max(next, first_ + gone_); next < end(); ++next) {
      Waiting& it = waiting_[next - first_];
      if (!it.alive) continue;
      const double leaves_s = it.since_s + bounds[bucket + 1];
      if (now_s < leaves_s) {
        next_leaves_s_[bucket] = leaves_s;
        break;
      }
      learn(it.kind, bucket, false);
      if (bucket + 1 < buckets) {
        ++it.bucket;
      } else {
        it.alive = false;
      }
    }
  }
}

void ReturnTimes::learn(const Kind& kind, std::size_t bucket, bool came_back) {
  std::array<Term*, traits> of_traits{};
  std::size_t count = 0;
  double sum = 0, sum_variance = 0;
  for (std::size_t trait = 0; trait < traits; ++trait) {
    if (kind.terms[trait] == 0) continue;
    Term* term = &terms_[first_trait + trait * steps + kind.terms[trait]];
    sum += term->mean;
    sum_variance += term->variance;
    of_traits[count++] = term;
  }
  Term& of_age = terms_[bucket];
  Term& scale = terms_[scale_at(bucket)];
  const std::size_t at = beside(bucket, kind.pause);
  Term* of_pause = at == SIZE_MAX ? nullptr : &terms_[at];
  const double scaled = scale.mean;  // what the log-odds change with a trait's term
  double log_odds = of_age.mean + scaled * sum;
  double variance = of_age.variance + scaled * scaled * sum_variance + sum * sum * scale.variance;
  if (of_pause != nullptr) {
    log_odds += of_pause->mean;
    variance += of_pause->variance;
  }
  const double chance = chance_of(log_odds);
  const double information = chance * (1 - chance);
  const double weight = 1 / (1 + variance * information);
  const double surprise = ((came_back ? 1 : 0) - chance) * weight;
  const double shrink = information * weight;
  const auto update = [&](Term& term, double by) {
    term.mean += static_cast<float>(term.variance * by * surprise);
    term.variance = std::max(least_variance, static_cast<float>(term.variance * (1 - term.variance * by * by * shrink)));
  };
  update(of_age, 1);
  if (of_pause != nullptr) update(*of_pause, 1);
  for (std::size_t i = 0; i < count; ++i) update(*of_traits[i], scaled);
  update(scale, sum);
}

double ReturnTimes::trait_sum(const Kind& kind) const {
  double sum = 0;
  for (std::size_t trait = 0; trait < traits; ++trait) {
    if (kind.terms[trait] != 0) sum += terms_[first_trait + trait * steps + kind.terms[trait]].mean;
  }
  return sum;
}

const ReturnTimes::ByAge& ReturnTimes::rates_of(int step, std::uint8_t pause) const {
  Rates& rates = rates_[static_cast<std::size_t>(step + most_sum_steps) * (pauses + 1) + pause];
  if (rates.version == version_) return rates.rate;
  rates.version = version_;
  // For each age the stretch that promises most, from the oldest down: it ends with the bucket, or goes on with the best stretch
  // from there if that promises more.
  struct Stretch {
    double promised = 0, left = 1, kept_s = 0;
    std::size_t end = 0;
  };
  std::array<Stretch, buckets> best;
  for (std::size_t from = buckets; from-- > 0;) {
    const std::size_t at = beside(from, pause);
    const std::vector<Term>& terms = terms_of_tables_;
    const double chance = chance_of(terms[from].mean + (at == SIZE_MAX ? 0 : terms[at].mean) + terms[scale_at(from)].mean * step * sum_step);
    Stretch stretch{.left = 1 - chance, .kept_s = (bounds[from + 1] - bounds[from]) * (1 - chance / 2), .end = from + 1};
    stretch.promised = chance / stretch.kept_s;
    while (stretch.end < buckets && best[stretch.end].promised >= stretch.promised) {
      const Stretch& rest = best[stretch.end];
      stretch.kept_s += stretch.left * rest.kept_s;
      stretch.left *= rest.left;
      stretch.promised = (1 - stretch.left) / stretch.kept_s;
      stretch.end = rest.end;
    }
    best[from] = stretch;
    rates.rate[from] = static_cast<float>(stretch.promised);
  }
  return rates.rate;
}

ReturnTimes::Curve ReturnTimes::curve(const Kind& kind) const {
  const double at = std::clamp(trait_sum(kind) / sum_step, -most_sum_steps + 1.0, most_sum_steps - 1.0);
  const double lower = std::floor(at);
  return Curve(rates_of(static_cast<int>(lower), kind.pause), rates_of(static_cast<int>(lower) + 1, kind.pause), at - lower);
}

double ReturnTimes::Curve::rate(double age_s) const {
  const std::size_t bucket = bucket_of(age_s);
  const double below = (*below_)[bucket];
  return below + ((*above_)[bucket] - below) * share_;
}

double ReturnTimes::rate_lasts_s(double age_s) {
  const std::size_t bucket = bucket_of(age_s);
  return bucket + 1 < buckets ? bounds[bucket + 1] - age_s : horizon_s;
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
  make_tables_anew();
  return true;
}

}  // namespace cairn

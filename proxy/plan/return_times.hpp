// Learns when prompts are come back to, so that room is kept for those that will be soon: hazards over age, by traits of the prompt.
// Pure: the caller's clock, in seconds, never backwards.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace cairn {

// What tells prompts that return from those that do not.
struct PromptTraits {
  std::uint32_t turn = 0;           // prompts of this conversation before it
  double gap_s = 0;                 // since the last of them
  double mean_gap_s = 0;            // between them; a lone gap counts as its own mean
  std::uint32_t prompt_tokens = 0;
  std::uint32_t fresh_tokens = 0;   // of them, not known before
  double kept = 1;                  // share of the last one that this one goes on from
  std::uint32_t answer_tokens = 0;  // 0 while it is not known
  std::uint32_t last_answer_tokens = 0;  // of the last one
};

// An additive model: the log-odds that something that has waited this long returns within the next quarter of an octave are a
// term for the age, one for the age beside the conversation's own pauses, and one for each trait. The terms are learned online,
// each with its own uncertainty (a diagonal extended Kalman filter), so that few observations tell something about many kinds.
class ReturnTimes {
 public:
  static constexpr std::size_t traits = 9;
  static constexpr std::size_t buckets = 69;  // of ages: the first second, then four an octave up to horizon_s
  // Of each trait, the term that applies; the pauses (in octaves of seconds, 0: none).
  struct Kind {
    std::array<std::uint8_t, traits> terms{};
    std::uint8_t pause = 0;
    bool operator==(const Kind&) const = default;
  };
  using ByAge = std::array<float, buckets>;
  using Watch = std::uint64_t;
  static constexpr Watch none = ~Watch{0};

  ReturnTimes();

  static Kind kind_of(const PromptTraits& prompt);
  // A prompt of which a saved state tells alone: how often it was gone on from.
  static Kind kind_of_saved(std::uint64_t uses, std::uint32_t prompt_tokens);
  // A place inside prompts where so many others have left it.
  static Kind kind_of_branch(std::uint32_t visits);

  // Waits for the return of something seen now. What did not return within `horizon_s`, or is one of too many, counts as
  // observed so far.
  Watch begin(const Kind& kind, double now_s);
  // It returned. Nothing happens when it had returned before, or was given up.
  void returned(Watch watch, double now_s);
  // Its kind was a guess.
  void reclassify(Watch watch, const Kind& kind);

  // Returns a second of keeping, for something last seen `age_s` ago: the best that keeping it for any stretch promises,
  // P(it returns meanwhile) / E(seconds kept until then). Not monotonic in age: people take a minute to answer.
  class Curve {
   public:
    double rate(double age_s) const;

   private:
    friend class ReturnTimes;
    Curve(const ByAge& below, const ByAge& above, double share) : below_(&below), above_(&above), share_(share) {}
    const ByAge* below_;  // at the next lower and higher of the sums of trait terms that there are tables for
    const ByAge* above_;
    double share_;
  };
  // As learned until now: good until the next call that is not const.
  Curve curve(const Kind& kind) const;
  double rate(const Kind& kind, double age_s) const { return curve(kind).rate(age_s); }
  // Seconds until that changes with age.
  static double rate_lasts_s(double age_s);

  // What was learned, for the next process. load() leaves everything as it was and returns false when the text is none of these.
  std::string to_text() const;
  bool load(std::string_view text);

  static constexpr double horizon_s = 131072;

 private:
  struct Term {
    float mean = 0;
    float variance = 0;
  };
  struct Waiting {
    double since_s = 0;
    Kind kind;
    std::uint8_t bucket = 0;
    bool alive = false;
  };
  // Of one sum of trait terms and one pause.
  struct Rates {
    std::uint32_t version = 0;  // 0: never computed
    ByAge rate{};
  };

  void advance(double now_s);
  void make_tables_anew();
  void learn(const Kind& kind, std::size_t bucket, bool came_back);
  double trait_sum(const Kind& kind) const;
  const ByAge& rates_of(int step, std::uint8_t pause) const;
  Watch end() const { return first_ + waiting_.size(); }
  Waiting* find(Watch watch);  // nullptr: not among them any more

  std::vector<Term> terms_;
  std::vector<Waiting> waiting_;  // in order of `begin`; the first one is number first_
  Watch first_ = 0;
  std::size_t gone_ = 0;  // of waiting_, from its beginning
  // Since all grow old alike, those in one bucket lie side by side, the oldest first: where they begin (or somewhat before, where
  // some have returned), and when the oldest goes on.
  std::array<Watch, buckets> first_in_{};
  std::array<double, buckets> next_leaves_s_{};
  std::uint32_t version_ = 0;
  double returns_ = 0;
  double returns_at_version_ = 0;
  std::vector<Term> terms_of_tables_;  // of ages and scales, as they were when version_ was new: whoever asks when, the tables are the same
  mutable std::vector<Rates> rates_;   // the tables, made when they are asked for
};

}  // namespace cairn

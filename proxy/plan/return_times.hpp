// Learns when prompts are come back to, so that room is kept for those that will be soon: discrete hazards over age, by class of
// prompt, thin classes leaning on wider ones.
// Pure: the caller's clock, in seconds, never backwards.
#pragma once

#include <cstdint>
#include <deque>
#include <vector>

namespace cairn {

// What tells prompts that return from those that do not.
struct PromptTraits {
  std::uint32_t turn = 0;           // prompts of this conversation before it
  double gap_s = 0;                 // since the last of them
  std::uint32_t prompt_tokens = 0;
  std::uint32_t answer_tokens = 0;  // 0 while it is not known
};

class ReturnTimes {
 public:
  using Class = std::uint16_t;
  using Watch = std::uint64_t;
  static constexpr Watch none = ~Watch{0};

  ReturnTimes();

  static Class class_of(const PromptTraits& traits);
  // A place inside prompts where so many others have left it.
  static Class class_of_branch(std::uint32_t visits);

  // Waits for the return of something seen now. What did not return within `horizon_s`, or is one of too many, counts as
  // observed so far.
  Watch begin(Class of, double now_s);
  // It returned. Nothing happens when it had returned before, or was given up.
  void returned(Watch watch, double now_s);
  // Its class was a guess.
  void reclassify(Watch watch, Class of);

  // Returns a second of keeping, for something last seen `age_s` ago: the best that keeping it for any stretch promises,
  // P(it returns meanwhile) / E(seconds kept until then). Not monotonic in age: people take a minute to answer.
  double rate(Class of, double age_s) const;

  static constexpr double horizon_s = 131072;

 private:
  struct Waiting {
    double since_s = 0;
    Class of = 0;
    std::uint8_t bucket = 0;
    bool alive = false;
  };
  struct Evidence {
    std::vector<float> ended;     // returned in the bucket, or outlived it
    std::vector<float> returned;  // in the bucket
  };
  struct Rates {
    std::uint32_t version = 0;  // 0: never computed
    std::vector<double> chance;  // of a return within the bucket, for what reached it
    std::vector<double> rate;
  };

  void advance(double now_s);
  void end(Class of, std::size_t bucket, bool came_back);
  const std::vector<double>& chances(Class of) const;

  std::vector<Evidence> evidence_;
  std::deque<Waiting> waiting_;  // in order of `begin`; the first one is number first_
  Watch first_ = 0;
  std::vector<std::deque<Watch>> in_bucket_;
  std::uint32_t version_ = 1;
  double returns_ = 0;
  double returns_at_version_ = 0;
  mutable std::vector<Rates> rates_;
};

}  // namespace cairn

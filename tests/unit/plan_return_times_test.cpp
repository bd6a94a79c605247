#include "plan/return_times.hpp"

#include <gtest/gtest.h>

namespace cairn {
namespace {

constexpr PromptTraits first_turn{.turn = 0, .gap_s = 0, .prompt_tokens = 1000, .answer_tokens = 10};
constexpr PromptTraits later_turn{.turn = 2, .gap_s = 20, .prompt_tokens = 1000, .answer_tokens = 10};

TEST(ReturnTimes, UnlearnedRateFallsWithAge) {
  const ReturnTimes times;
  const auto of = ReturnTimes::class_of(first_turn);
  for (double age_s = 1; age_s < 100000; age_s *= 3) EXPECT_GT(times.rate(of, age_s), times.rate(of, age_s * 3)) << age_s;
}

TEST(ReturnTimes, WhatReturnsIsWorthMoreThanWhatNeverDoes) {
  ReturnTimes times;
  const auto returning = ReturnTimes::class_of(later_turn);
  const auto single = ReturnTimes::class_of(first_turn);
  for (int i = 0; i < 500; ++i) {
    const double now_s = i * 20.0;
    const auto watch = times.begin(returning, now_s);
    times.begin(single, now_s);
    times.returned(watch, now_s + 10);
  }
  EXPECT_GT(times.rate(returning, 0), 10 * times.rate(single, 0));
}

TEST(ReturnTimes, SomethingThatReturnsAfterAMinuteIsWorthMoreJustBeforeThanAtFirst) {
  ReturnTimes times;
  const auto of = ReturnTimes::class_of(first_turn);
  for (int i = 0; i < 500; ++i) {
    const auto watch = times.begin(of, i * 70.0);
    times.returned(watch, i * 70.0 + 60);
  }
  EXPECT_GT(times.rate(of, 45), 1.5 * times.rate(of, 1));
  EXPECT_GT(times.rate(of, 45), 5 * times.rate(of, 600));
}

TEST(ReturnTimes, AReturnCountsOnceAndUnknownWatchesNotAtAll) {
  ReturnTimes once, thrice;
  const auto of = ReturnTimes::class_of(first_turn);
  for (ReturnTimes* times : {&once, &thrice}) {
    const auto watch = times->begin(of, 0);
    times->returned(watch, 5);
    if (times == &once) continue;
    times->returned(watch, 5);
    times->returned(ReturnTimes::none, 5);
    times->returned(watch + 100, 5);
  }
  EXPECT_EQ(once.rate(of, 4), thrice.rate(of, 4));
}

TEST(ReturnTimes, AThinClassLeansOnTheWiderOne) {
  ReturnTimes times;
  const auto seen = ReturnTimes::class_of(later_turn);
  PromptTraits other = later_turn;
  other.prompt_tokens = 50000;
  for (int i = 0; i < 300; ++i) {
    const auto watch = times.begin(seen, i * 10.0);
    times.returned(watch, i * 10.0 + 4);
  }
  const ReturnTimes fresh;
  EXPECT_GT(times.rate(ReturnTimes::class_of(other), 0), 2 * fresh.rate(ReturnTimes::class_of(other), 0));
}

TEST(ReturnTimes, ReclassifiedPromptsCountForTheirNewClass) {
  ReturnTimes times;
  const auto guessed = ReturnTimes::class_of(first_turn);
  const auto real = ReturnTimes::class_of(later_turn);
  for (int i = 0; i < 300; ++i) {
    times.begin(guessed, i * 10.0);  // never returns
    const auto watch = times.begin(guessed, i * 10.0);
    times.reclassify(watch, real);
    times.returned(watch, i * 10.0 + 4);
  }
  EXPECT_GT(times.rate(real, 0), 2 * times.rate(guessed, 0));
}

}  // namespace
}  // namespace cairn

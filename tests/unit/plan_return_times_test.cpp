#include "plan/return_times.hpp"

#include <gtest/gtest.h>

#include <vector>

namespace cairn {
namespace {

constexpr PromptTraits first_turn{.turn = 0, .gap_s = 0, .prompt_tokens = 1000, .answer_tokens = 10};
constexpr PromptTraits later_turn{.turn = 2, .gap_s = 20, .mean_gap_s = 20, .prompt_tokens = 1000, .fresh_tokens = 100, .answer_tokens = 10};

TEST(ReturnTimes, UnlearnedRateFallsWithAge) {
  const ReturnTimes times;
  const auto of = ReturnTimes::kind_of(first_turn);
  for (double age_s = 1; age_s < 100000; age_s *= 3) EXPECT_GT(times.rate(of, age_s), times.rate(of, age_s * 3)) << age_s;
}

TEST(ReturnTimes, WhatReturnsIsWorthMoreThanWhatNeverDoes) {
  ReturnTimes times;
  const auto returning = ReturnTimes::kind_of(later_turn);
  const auto single = ReturnTimes::kind_of(first_turn);
  for (int i = 0; i < 500; ++i) {
    const double now_s = i * 20.0;
    const auto watch = times.begin(returning, now_s);
    times.begin(single, now_s);
    times.returned(watch, now_s + 10);
  }
  EXPECT_GT(times.rate(returning, 0), 10 * times.rate(single, 0));
}

// Of those with a long answer most return within seconds, or never; the others now and then, after any time.
TEST(ReturnTimes, WhatTraitsSayMayHoldForTheYoungAlone) {
  ReturnTimes times;
  PromptTraits long_answer = first_turn;
  long_answer.answer_tokens = 500;
  const auto soon = ReturnTimes::kind_of(long_answer), any_time = ReturnTimes::kind_of(first_turn);
  constexpr int waiting = 100;
  std::vector<ReturnTimes::Watch> others;
  for (int i = 0; i < 3000; ++i) {
    const double now_s = i * 20.0;
    const auto watch = times.begin(soon, now_s);
    others.push_back(times.begin(any_time, now_s));
    if (i % 4 != 0) times.returned(watch, now_s + 5);
    if (i >= waiting) times.returned(others[static_cast<std::size_t>(i - waiting)], now_s + 6);
  }
  const double young = times.rate(soon, 2) / times.rate(any_time, 2);
  const double old = times.rate(soon, 1500) / times.rate(any_time, 1500);
  EXPECT_GT(young, 10 * old);
}

TEST(ReturnTimes, SomethingThatReturnsAfterAMinuteIsWorthMoreJustBeforeThanAtFirst) {
  ReturnTimes times;
  const auto of = ReturnTimes::kind_of(first_turn);
  for (int i = 0; i < 500; ++i) {
    const auto watch = times.begin(of, i * 70.0);
    times.returned(watch, i * 70.0 + 60);
  }
  EXPECT_GT(times.rate(of, 45), 1.5 * times.rate(of, 1));
  EXPECT_GT(times.rate(of, 45), 5 * times.rate(of, 600));
}

TEST(ReturnTimes, AReturnCountsOnceAndUnknownWatchesNotAtAll) {
  ReturnTimes once, thrice;
  const auto of = ReturnTimes::kind_of(first_turn);
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

TEST(ReturnTimes, AKindNeverSeenLeansOnTheTraitsThatItShares) {
  ReturnTimes times;
  const auto seen = ReturnTimes::kind_of(later_turn);
  PromptTraits other = later_turn;
  other.prompt_tokens = 50000;
  for (int i = 0; i < 300; ++i) {
    const auto watch = times.begin(seen, i * 10.0);
    times.returned(watch, i * 10.0 + 4);
  }
  const ReturnTimes fresh;
  EXPECT_GT(times.rate(ReturnTimes::kind_of(other), 0), 2 * fresh.rate(ReturnTimes::kind_of(other), 0));
}

TEST(ReturnTimes, ReclassifiedPromptsCountForTheirNewKind) {
  ReturnTimes times;
  const auto guessed = ReturnTimes::kind_of(first_turn);
  const auto real = ReturnTimes::kind_of(later_turn);
  for (int i = 0; i < 300; ++i) {
    times.begin(guessed, i * 10.0);  // never returns
    const auto watch = times.begin(guessed, i * 10.0);
    times.reclassify(watch, real);
    times.returned(watch, i * 10.0 + 4);
  }
  EXPECT_GT(times.rate(real, 0), 2 * times.rate(guessed, 0));
}

TEST(ReturnTimes, TraitsThatTellNothingApartDoNotCoverOneThatDoes) {
  ReturnTimes times;
  const auto kind = [](std::uint32_t fresh, std::uint32_t answer) {
    PromptTraits prompt = later_turn;
    prompt.fresh_tokens = fresh;
    prompt.answer_tokens = answer;
    return ReturnTimes::kind_of(prompt);
  };
  for (int i = 0; i < 400; ++i) {
    const double now_s = i * 30.0;
    const std::uint32_t answer = i % 2 == 0 ? 20 : 900;
    const auto watch = times.begin(kind(100, answer), now_s);
    times.begin(kind(20'000, answer), now_s);
    times.returned(watch, now_s + 20);
  }
  // Also with an answer that was never seen.
  for (const std::uint32_t answer : {20U, 900U, 5000U}) EXPECT_GT(times.rate(kind(100, answer), 10), 10 * times.rate(kind(20'000, answer), 10)) << answer;
}

TEST(ReturnTimes, PausesOfTheConversationSayWhenItReturns) {
  ReturnTimes times;
  const auto kind = [](double pause_s) {
    PromptTraits prompt = later_turn;
    prompt.gap_s = prompt.mean_gap_s = pause_s;
    return ReturnTimes::kind_of(prompt);
  };
  double now_s = 0;
  for (int i = 0; i < 400; ++i, now_s += 700) {
    const auto quick = times.begin(kind(10), now_s);
    const auto slow = times.begin(kind(600), now_s);
    times.returned(quick, now_s + 10);
    times.returned(slow, now_s + 600);
  }
  EXPECT_GT(times.rate(kind(10), 5), 10 * times.rate(kind(600), 5));
  EXPECT_LT(times.rate(kind(10), 400), times.rate(kind(600), 400));
}

TEST(ReturnTimes, WhoAsksBetweenLearnsTheSame) {
  ReturnTimes asked, quiet;
  const auto of = ReturnTimes::kind_of(later_turn), other = ReturnTimes::kind_of(first_turn);
  for (ReturnTimes* times : {&asked, &quiet}) {
    for (int i = 0; i < 5000; ++i) {
      const auto watch = times->begin(i % 3 == 0 ? of : other, i * 7.0);
      if (i % 3 == 0) times->returned(watch, i * 7.0 + 3 + i % 4);
      if (times == &asked) (void)times->rate(i % 2 == 0 ? of : other, i % 100);
    }
  }
  for (double age_s = 0.5; age_s < 100000; age_s *= 1.1) {
    EXPECT_EQ(asked.rate(of, age_s), quiet.rate(of, age_s)) << age_s;
    EXPECT_EQ(asked.rate(other, age_s), quiet.rate(other, age_s)) << age_s;
  }
}

TEST(ReturnTimes, WhatWasLearnedIsReadBack) {
  ReturnTimes times;
  const auto kind = ReturnTimes::kind_of(later_turn);
  for (int i = 0; i < 100; ++i) times.returned(times.begin(kind, i * 20.0), i * 20.0 + 9);
  ReturnTimes again;
  EXPECT_NE(again.rate(kind, 5), times.rate(kind, 5));
  ASSERT_TRUE(again.load(times.to_text()));
  EXPECT_NEAR(again.rate(kind, 5) / times.rate(kind, 5), 1, 0.05);  // its table may be some returns younger
  EXPECT_EQ(again.to_text(), times.to_text());
}

TEST(ReturnTimes, OtherTextsAreRefusedAndChangeNothing) {
  ReturnTimes times;
  const std::string before = times.to_text();
  std::string endless = before, long_one = before + " 1", negative = before;
  endless.replace(endless.find(' ') + 1, 1, "nan");
  negative.replace(negative.rfind(' ') + 1, 1, "-");
  for (const std::string& text : {std::string{}, std::string{"2"}, std::string{"1 0.5"}, endless, long_one, negative}) {
    EXPECT_FALSE(times.load(text)) << text.substr(0, 40);
    EXPECT_EQ(times.to_text(), before);
  }
}

}  // namespace
}  // namespace cairn

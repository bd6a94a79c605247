#include "request/probe_schedule.hpp"

#include <gtest/gtest.h>

namespace cairn {
namespace {

using std::chrono::milliseconds;

ProbeResult trouble(LookAgain again, std::uint32_t computed) {
  ProbeResult found;
  found.save_trouble = "because";
  found.look_again = again;
  found.computed_tokens = computed;
  return found;
}

int probes_in_an_hour(LookAgain again, std::uint32_t computed) {
  ProbeSchedule schedule;
  ProbeSchedule::Clock::time_point now{};
  const ProbeResult found = trouble(again, computed);
  int probes = 1;
  schedule.note(found, false, now);
  for (int second = 0; second < 3600; ++second) {
    now += std::chrono::seconds{1};
    if (!schedule.due(now)) continue;
    schedule.note(found, true, now);
    ++probes;
  }
  return probes;
}

TEST(ProbeSchedule, LooksAgainMoreAndMoreRarely) {
  EXPECT_EQ(probes_in_an_hour(LookAgain::never, 0), 1);
  EXPECT_EQ(probes_in_an_hour(LookAgain::rarer, 0), 17);  // after 5, 10, ... 160 s and then each 300
  EXPECT_EQ(probes_in_an_hour(LookAgain::often, 0), 3601);
}

TEST(ProbeSchedule, ADiskThatRefusesIsNotLookedAtThroughUsersSlotsAgainAndAgain) {
  EXPECT_EQ(probes_in_an_hour(LookAgain::often, 4), 17);
}

TEST(ProbeSchedule, ProbesThatOverwriteASlotEnd) {
  EXPECT_EQ(probes_in_an_hour(LookAgain::rarer, 4), ProbeSchedule::most_computing);
}

TEST(ProbeSchedule, LooksThatOverwriteNothingUseUpNoneOfThoseThatDo) {
  for (const LookAgain harmless : {LookAgain::often, LookAgain::rarer}) {
    ProbeSchedule schedule;
    ProbeSchedule::Clock::time_point now{};
    for (int i = 0; i < 2 * ProbeSchedule::most_computing; ++i) schedule.note(trouble(harmless, 0), i > 0, now);
    schedule.note(trouble(LookAgain::rarer, 4), true, now);
    EXPECT_TRUE(schedule.due(now + ProbeSchedule::longest));
  }
}

TEST(ProbeSchedule, AnotherProcessAndASuccessBeginAnew) {
  ProbeSchedule schedule;
  ProbeSchedule::Clock::time_point now{};
  const ProbeResult found = trouble(LookAgain::rarer, 4);
  for (int i = 0; i < ProbeSchedule::most_computing; ++i) schedule.note(found, i > 0, now);
  EXPECT_FALSE(schedule.due(now + ProbeSchedule::longest));
  schedule.note(found, false, now);
  EXPECT_FALSE(schedule.due(now + ProbeSchedule::first - milliseconds{1}));
  EXPECT_TRUE(schedule.due(now + ProbeSchedule::first));
  ProbeResult good;
  good.can_pin = good.can_save = true;
  schedule.note(found, true, now);
  schedule.note(good, true, now);
  EXPECT_FALSE(schedule.due(now + ProbeSchedule::longest));
  schedule.note(found, true, now);
  EXPECT_TRUE(schedule.due(now + ProbeSchedule::first));
}

TEST(ProbeSchedule, TheSameTroubleIsToldOnce) {
  ProbeSchedule schedule;
  ProbeResult found = trouble(LookAgain::rarer, 0);
  EXPECT_FALSE(schedule.note(found, false, {}));
  EXPECT_TRUE(schedule.note(found, true, {}));
  EXPECT_FALSE(schedule.note(found, false, {}));
  found.save_trouble = "another";
  EXPECT_FALSE(schedule.note(found, true, {}));
}

}  // namespace
}  // namespace cairn

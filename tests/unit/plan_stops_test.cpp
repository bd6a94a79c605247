#include "plan/stops.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <iostream>
#include <random>

namespace cairn {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

StopInput input_of(MemoryKind kind, std::uint32_t base, std::uint32_t prompt, std::uint32_t interval) {
  StopInput input;
  input.kind = kind;
  input.base = base;
  input.prompt = prompt;
  input.interval = interval;
  return input;
}

std::vector<std::uint32_t> places(const StopInput& input) {
  std::vector<std::uint32_t> at;
  for (const Stop& stop : plan_stops(input)) at.push_back(stop.at);
  return at;
}

TEST(Stops, GridOnAbsoluteMultiples) {
  const auto checkpointed = [](std::uint32_t base, std::uint32_t prompt, std::uint32_t interval) {
    return places(input_of(MemoryKind::checkpointed, base, prompt, interval));
  };
  EXPECT_THAT(checkpointed(0, 4000, 1000), ElementsAre(1000, 2000, 3000));  // none at the prompt's own end
  EXPECT_THAT(checkpointed(0, 4500, 1000), ElementsAre(1000, 2000, 3000, 4000));
  EXPECT_THAT(checkpointed(1234, 4500, 1000), ElementsAre(2000, 3000, 4000));  // two prompts share them
  EXPECT_THAT(checkpointed(2000, 4500, 1000), ElementsAre(3000, 4000));        // none where it begins
  EXPECT_THAT(checkpointed(0, 1000, 1000), IsEmpty());
  EXPECT_THAT(checkpointed(0, 999, 1000), IsEmpty());
  EXPECT_THAT(checkpointed(0, 4500, 0), IsEmpty());
  EXPECT_THAT(checkpointed(4500, 4500, 1000), IsEmpty());
  EXPECT_THAT(checkpointed(5000, 4500, 1000), IsEmpty());
  EXPECT_THAT(checkpointed(0, 0, 1000), IsEmpty());
}

TEST(Stops, GridStopsKeepTheirDistanceFromBothEnds) {
  EXPECT_THAT(places(input_of(MemoryKind::checkpointed, 937, 4000, 1000)), ElementsAre(2000, 3000));
  EXPECT_THAT(places(input_of(MemoryKind::checkpointed, 936, 4000, 1000)), ElementsAre(1000, 2000, 3000));
  EXPECT_THAT(places(input_of(MemoryKind::checkpointed, 0, 3063, 1000)), ElementsAre(1000, 2000));
  EXPECT_THAT(places(input_of(MemoryKind::checkpointed, 0, 3064, 1000)), ElementsAre(1000, 2000, 3000));
}

TEST(Stops, WantedPlacesAreKeptAndGridStopsGiveWayToThem) {
  StopInput input = input_of(MemoryKind::checkpointed, 500, 4500, 1000);
  const std::vector<std::uint32_t> wanted{4499, 1990, 3064, 2000, 1990, 500, 4500, 0, 9000, 501};
  input.wanted = wanted;
  // 3000 is 64 from 3064: far enough. 2000 is wanted itself.
  EXPECT_THAT(places(input), ElementsAre(1000, 1990, 2000, 3000, 3064, 4000, 4499));
  const std::vector<std::uint32_t> near{3063};
  input.wanted = near;
  EXPECT_THAT(places(input), ElementsAre(1000, 2000, 3063, 4000));
  const std::vector<std::uint32_t> before{2937};
  input.wanted = before;
  EXPECT_THAT(places(input), ElementsAre(1000, 2000, 2937, 4000));
  input.interval = 0;
  EXPECT_THAT(places(input), ElementsAre(2937));
}

TEST(Stops, TruncatableHasNone) {
  StopInput input = input_of(MemoryKind::truncatable, 0, 100'000, 1000);
  input.can_save = true;
  const std::vector<std::uint32_t> wanted{5000};
  input.wanted = wanted;
  EXPECT_THAT(plan_stops(input), IsEmpty());
}

TEST(Stops, ExactSavesEachOneOrStopsNowhere) {
  StopInput input = input_of(MemoryKind::exact, 0, 3500, 1000);
  EXPECT_THAT(plan_stops(input), IsEmpty());
  input.can_save = true;
  const std::vector<std::uint32_t> wanted{3490};
  input.wanted = wanted;
  EXPECT_THAT(plan_stops(input), ElementsAre(Stop{1000, true}, Stop{2000, true}, Stop{3000, true}, Stop{3490, true}));
}

TEST(Stops, CheckpointedSavesBeforeTheBackendDropsTheEarlyOnes) {
  StopInput input = input_of(MemoryKind::checkpointed, 0, 40'500, 1000);
  for (const Stop& stop : plan_stops(input)) EXPECT_FALSE(stop.save);
  input.can_save = true;
  std::vector<std::uint32_t> saves;
  for (const Stop& stop : plan_stops(input)) {
    if (stop.save) saves.push_back(stop.at);
  }
  EXPECT_THAT(saves, ElementsAre(14'000, 28'000));
  input.since_save = 13;
  EXPECT_TRUE(plan_stops(input).front().save);
}

TEST(Stops, AddedInOrderAndSavedWhenEitherIsToBe) {
  std::vector<Stop> stops;
  add_stop(stops, Stop{200, false});
  add_stop(stops, Stop{100, true});
  add_stop(stops, Stop{300, false});
  add_stop(stops, Stop{200, true});
  add_stop(stops, Stop{100, false});
  EXPECT_THAT(stops, ElementsAre(Stop{100, true}, Stop{200, true}, Stop{300, false}));
}

TEST(Stops, NearTheLargestNumberOfTokens) {
  StopInput input = input_of(MemoryKind::checkpointed, 4'294'960'000u, 4'294'967'295u, 3000);
  EXPECT_THAT(places(input), ElementsAre(4'294'962'000u, 4'294'965'000u));
}

TEST(Stops, AnyInputGivesAscendingStopsInsideAndEveryWantedOne) {
  const char* given = std::getenv("CAIRN_TEST_SEED");
  const auto seed = static_cast<std::uint32_t>(given ? std::strtoul(given, nullptr, 10) : std::random_device()());
  std::cout << "CAIRN_TEST_SEED=" << seed << std::endl;
  std::mt19937 random(seed);
  for (int round = 0; round < 5000; ++round) {
    StopInput input = input_of(std::array{MemoryKind::checkpointed, MemoryKind::exact, MemoryKind::unknown}[random() % 3], random() % 3000,
                               random() % 6000, random() % 3 == 0 ? 0 : 64 + random() % 1000);
    input.can_save = random() % 2 == 0;
    std::vector<std::uint32_t> wanted(random() % 5);
    for (std::uint32_t& at : wanted) at = random() % 6000;
    input.wanted = wanted;
    const std::vector<std::uint32_t> at = places(input);
    ASSERT_TRUE(std::is_sorted(at.begin(), at.end()));
    ASSERT_EQ(std::adjacent_find(at.begin(), at.end()), at.end());
    if (!at.empty()) ASSERT_TRUE(at.front() > input.base && at.back() < input.prompt);
    if (input.kind == MemoryKind::exact && !input.can_save) continue;
    for (const std::uint32_t one : wanted) {
      if (one >= input.base + 8 && one < input.prompt) ASSERT_TRUE(std::binary_search(at.begin(), at.end(), one));
    }
    for (const std::uint32_t one : at) {
      const bool was_wanted = std::find(wanted.begin(), wanted.end(), one) != wanted.end();
      if (!was_wanted) ASSERT_EQ(one % input.interval, 0u);
    }
  }
}

}  // namespace
}  // namespace cairn

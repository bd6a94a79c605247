#include "slots/slot_table.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>
#include <stdexcept>

namespace cairn {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

Tokens counting(std::size_t count) {
  Tokens tokens(count);
  std::iota(tokens.begin(), tokens.end(), 0);
  return tokens;
}

void fill(SlotState& slot, std::size_t known, std::uint32_t tail = 0) {
  slot.known = counting(known);
  slot.unknown_tail = tail;
  slot.resume_points = {10, 50};
  slot.unsaved = true;
  slot.recoverable = 7;
}

bool is_empty(const SlotState& slot) {
  return slot.held() == 0 && slot.resume_points.empty() && !slot.unsaved && slot.recoverable == 0;
}

TEST(SlotTable, BeginsWithEmptySlots) {
  SlotTable table(3);
  ASSERT_EQ(table.slots().size(), 3u);
  for (int id = 0; id < 3; ++id) {
    EXPECT_EQ(table.at(id).id, id);
    EXPECT_TRUE(is_empty(table.at(id)));
    EXPECT_FALSE(table.at(id).leased);
  }
  EXPECT_THROW(table.at(3), std::out_of_range);
  EXPECT_THROW(table.at(-1), std::out_of_range);
}

TEST(SlotTable, AViewEndsWhereTheUnknownBegins) {
  SlotTable table(1);
  fill(table.at(0), 100);
  EXPECT_EQ(table.at(0).held(), 100u);
  EXPECT_EQ(table.at(0).view().length, 100u);
  EXPECT_TRUE(table.at(0).view().ends_there);
  EXPECT_THAT(table.at(0).view().resume_points, ElementsAre(10, 50));
  table.at(0).unknown_tail = 5;
  EXPECT_EQ(table.at(0).held(), 105u);
  EXPECT_EQ(table.at(0).view().length, 100u);
  EXPECT_FALSE(table.at(0).view().ends_there);
}

TEST(SlotTable, ForgettingOneLeavesTheOthers) {
  SlotTable table(2);
  fill(table.at(0), 100, 3);
  fill(table.at(1), 200);
  table.at(0).leased = true;
  table.forget(0);
  EXPECT_TRUE(is_empty(table.at(0)));
  EXPECT_TRUE(table.at(0).leased);  // who uses it is another matter
  EXPECT_EQ(table.at(1).held(), 200u);
  table.forget_all();
  EXPECT_TRUE(is_empty(table.at(1)));
}

struct Row {
  const char* what;
  std::size_t known;
  std::uint32_t tail;
  std::optional<std::int64_t> told;
  bool wrong;
  std::uint32_t held_after;
  std::size_t known_after;
};

TEST(SlotTable, TheBackendsWordWins) {
  const std::vector<Row> rows{
      {"it does not say: not used since it started", 100, 20, std::nullopt, true, 0, 0},
      {"it does not say, and we knew of nothing", 0, 0, std::nullopt, false, 0, 0},
      {"as we thought", 100, 0, 100, false, 100, 100},
      {"as we thought, the answer included", 100, 20, 120, false, 120, 100},
      {"cleared", 100, 0, 0, true, 0, 0},
      {"fewer than we thought", 100, 20, 119, true, 0, 0},
      {"just the prompt without its answer: cut or replaced", 100, 20, 100, true, 0, 0},
      {"more: somebody's answer, perhaps", 100, 0, 130, false, 130, 100},
      {"more than with the answer we knew of", 100, 20, 130, false, 130, 100},
      {"something where we knew of nothing", 0, 0, 500, false, 0, 0},
      {"nothing where we knew of nothing", 0, 0, 0, false, 0, 0},
      {"nonsense", 100, 0, -1, true, 0, 0},
  };
  for (const Row& row : rows) {
    SlotTable table(1);
    SlotState& slot = table.at(0);
    if (row.known > 0) fill(slot, row.known, row.tail);
    EXPECT_EQ(table.believe_length(0, row.told), row.wrong) << row.what;
    EXPECT_EQ(slot.held(), row.held_after) << row.what;
    EXPECT_EQ(slot.known.size(), row.known_after) << row.what;
    if (row.held_after == 0) EXPECT_TRUE(is_empty(slot)) << row.what;
    else EXPECT_THAT(slot.resume_points, ElementsAre(10, 50)) << row.what;
  }
}

TEST(SlotTable, ATaskThatWasBrokenOffLeftAsMuchAsTheBackendSays) {
  SlotTable table(1);
  SlotState& slot = table.at(0);
  fill(slot, 100, 1);
  table.note_attempt(0, counting(1000), 101);
  EXPECT_FALSE(table.believe_length(0, 640, true));  // it has not noticed yet, and goes on
  EXPECT_EQ(slot.known, counting(640));
  EXPECT_EQ(slot.unknown_tail, 0u);
  EXPECT_FALSE(table.believe_length(0, 900));
  EXPECT_EQ(slot.known, counting(900));
  EXPECT_EQ(slot.attempted, nullptr);
  table.note_attempt(0, counting(1000), 900);
  EXPECT_FALSE(table.believe_length(0, 1003));  // and three of an answer
  EXPECT_EQ(slot.known, counting(1000));
  EXPECT_EQ(slot.unknown_tail, 3u);
  table.note_attempt(0, counting(1200), 1003);
  EXPECT_TRUE(table.believe_length(0, 20));  // somebody else's
  EXPECT_TRUE(is_empty(slot));
  EXPECT_EQ(slot.attempted, nullptr);
}

TEST(SlotTable, ATaskThatNeverBeganHasLeftWhatWasThere) {
  SlotTable table(2);
  SlotState& slot = table.at(0);
  fill(slot, 20, 1);
  table.note_attempt(0, counting(1000), 800);
  EXPECT_FALSE(table.believe_length(0, 800));
  EXPECT_EQ(slot.known, counting(20));
  EXPECT_EQ(slot.unknown_tail, 780u);
  EXPECT_FALSE(slot.by_length);
  table.note_attempt(1, counting(1000), 800);  // of which nothing is known any more
  EXPECT_TRUE(table.believe_length(1, 800));
  EXPECT_TRUE(is_empty(table.at(1)));
}

TEST(SlotTable, BehindATaskWhoseEndNobodySawTheLengthTellsNothing) {
  SlotTable table(1);
  SlotState& slot = table.at(0);
  fill(slot, 20, 1);
  slot.unresolved = true;
  table.note_attempt(0, counting(1000), 21);
  EXPECT_EQ(slot.attempted, nullptr);
  EXPECT_FALSE(table.believe_length(0, 700));
  EXPECT_EQ(slot.known, counting(20));
  table.forget(0);
  table.note_attempt(0, counting(1000), 0);
  EXPECT_FALSE(table.believe_length(0, 700));
  EXPECT_EQ(slot.known, counting(700));
}

TEST(SlotTable, ASlotInUseIsNotJudged) {
  SlotTable table(1);
  fill(table.at(0), 100);
  table.at(0).leased = true;
  EXPECT_FALSE(table.believe_length(0, 0));
  EXPECT_EQ(table.at(0).held(), 100u);
}

TEST(SlotTable, AnotherBackendMayHaveAnotherNumberOfSlots) {
  SlotTable table(2);
  SlotState& held = table.at(1);  // by a request that is still on its way
  fill(held, 100, 3);
  held.leased = true;
  table.reset(1);
  EXPECT_EQ(table.slots().size(), 1u);
  EXPECT_TRUE(is_empty(held));
  EXPECT_TRUE(held.leased);
  table.reset(500);
  ASSERT_EQ(table.slots().size(), 500u);
  EXPECT_EQ(&table.at(1), &held);
  EXPECT_EQ(table.at(499).id, 499);
  table.reset(0);
  EXPECT_TRUE(table.slots().empty());
  table.reset(-1);
  EXPECT_TRUE(table.slots().empty());
  table.reset(1'000'000);
  EXPECT_EQ(table.slots().size(), static_cast<std::size_t>(SlotTable::most_slots));
  EXPECT_EQ(&table.at(1), &held);
}

TEST(SlotTable, TouchingOrdersTheSlots) {
  SlotTable table(3);
  table.touch(2);
  table.touch(0);
  table.touch(2);
  EXPECT_EQ(table.at(1).last_used, 0u);
  EXPECT_LT(table.at(0).last_used, table.at(2).last_used);
}

TEST(ResumePoints, WhereTheServerLeavesContextCheckpoints) {
  const auto after = [](std::uint32_t from, std::uint32_t to, std::vector<std::uint32_t> points = {}) {
    add_piece_resume_points(points, from, to, 512);
    return points;
  };
  EXPECT_THAT(after(0, 2000), ElementsAre(1484, 1996));
  EXPECT_THAT(after(0, 67), IsEmpty());  // at 63: fewer than 64 tokens
  EXPECT_THAT(after(0, 68), ElementsAre(64));
  EXPECT_THAT(after(0, 580), ElementsAre(64, 576));
  EXPECT_THAT(after(0, 579), ElementsAre(575));
  EXPECT_THAT(after(1600, 2000), ElementsAre(1996));  // the other place lies before this piece
  EXPECT_THAT(after(1484, 2000), ElementsAre(1484, 1996));
  EXPECT_THAT(after(1998, 2000), IsEmpty());
  EXPECT_THAT(after(0, 3), IsEmpty());
  EXPECT_THAT(after(0, 0), IsEmpty());
  EXPECT_THAT(after(0, 2000, {100, 1484, 3000}), ElementsAre(100, 1484, 1996, 3000));
}

// 40,000 tokens in pieces of 1,024, as build 11669 was seen to keep them.
TEST(ResumePoints, OfMoreThanTheBackendKeepsTheEarlyOnesAreThinned) {
  std::vector<std::uint32_t> points;
  for (std::uint32_t to = 1024; to <= 39 * 1024; to += 1024) {
    add_piece_resume_points(points, to - 1024, to, 512);
    thin_resume_points(points);
  }
  EXPECT_EQ(points.size(), 32u);
  EXPECT_THAT(std::vector<std::uint32_t>(points.begin(), points.begin() + 3), ElementsAre(508, 9212, 17916));
  EXPECT_GT(points[3], 25'000u);  // the backend was two further
  // Far apart: the oldest go.
  std::vector<std::uint32_t> far;
  for (std::uint32_t at = 1; at <= 34; ++at) far.push_back(at * 10'000);
  thin_resume_points(far);
  EXPECT_EQ(far.size(), 32u);
  EXPECT_EQ(far.front(), 30'000u);
}

TEST(ResumePoints, CuttingKeepsThoseUpToTheCut) {
  std::vector<std::uint32_t> points{10, 20, 30};
  cut_resume_points(points, 40);
  EXPECT_THAT(points, ElementsAre(10, 20, 30));
  cut_resume_points(points, 20);
  EXPECT_THAT(points, ElementsAre(10, 20));
  cut_resume_points(points, 19);
  EXPECT_THAT(points, ElementsAre(10));
  cut_resume_points(points, 0);
  EXPECT_THAT(points, IsEmpty());
}

TEST(SlotTable, ATaskWhoseSlotTheBackendChoseIsFoundByItsLength) {
  SlotTable table(3);
  fill(table.at(0), 100, 7);
  table.at(0).chosen_for_us = true;
  fill(table.at(1), 30);
  const SlotTable::Length lengths[] = {{0, 12}, {1, 30}, {2, 107}, {9, 107}};
  table.believe_lengths(lengths);
  EXPECT_TRUE(is_empty(table.at(0)));
  EXPECT_EQ(table.at(1).held(), 30u);
  EXPECT_EQ(table.at(2).id, 2);
  EXPECT_EQ(table.at(2).known.size(), 100u);
  EXPECT_EQ(table.at(2).unknown_tail, 7u);
  EXPECT_TRUE(table.at(2).unsaved);
  EXPECT_FALSE(table.at(2).chosen_for_us);
}

TEST(SlotTable, ASlotThatGrewUnaskedHoldsAnotherPrompt) {
  const auto known = [](bool counted, std::int64_t now) {
    SlotTable table(1);
    fill(table.at(0), 100, 7);
    table.at(0).tail_counted = counted;
    table.believe_length(0, now);
    EXPECT_EQ(table.at(0).by_length, !table.at(0).known.empty() && now != 107) << "what it is judged by proves nothing";
    return table.at(0).known.size();
  };
  EXPECT_EQ(known(true, 107), 100u);
  EXPECT_EQ(known(true, 110), 100u) << "a build that counts otherwise";
  EXPECT_EQ(known(true, 500), 0u) << "somebody else's: a saved state would be passed over for it";
  EXPECT_EQ(known(false, 500), 100u) << "an answer that nobody has counted";
  EXPECT_EQ(known(true, 106), 0u);
}

SlotTable::Placed placed(std::uint32_t tokens, std::uint32_t tail) {
  SlotState like;
  fill(like, tokens, tail);
  return SlotTable::Placed{like.known, tail, {10}, true, 0.9, 7};
}

TEST(SlotTable, WhatTheBackendPlacedIsFoundByItsLength) {
  SlotTable table(4);
  fill(table.at(0), 107);  // as long, and where it was
  table.at(2).leased = true;
  table.note_placed(placed(100, 7));
  const SlotTable::Length lengths[] = {{0, 107}, {1, std::nullopt}, {2, 107}, {3, 107}, {9, 107}};
  EXPECT_THAT(table.believe_lengths(lengths), ElementsAre(3));
  EXPECT_FALSE(table.looks_for_placed());
  EXPECT_EQ(table.at(0).known.size(), 107u);
  EXPECT_TRUE(is_empty(table.at(2))) << "somebody else's";
  const SlotState& found = table.at(3);
  EXPECT_EQ(found.known.size(), 100u);
  EXPECT_EQ(found.unknown_tail, 7u);
  EXPECT_TRUE(found.by_length) << "a guess that fails is to prove nothing";
  EXPECT_THAT(found.resume_points, ElementsAre(10));
  EXPECT_TRUE(found.proven);
  EXPECT_EQ(found.return_chance, 0.9);
  EXPECT_EQ(found.name_space, 7);
  EXPECT_GT(found.last_used, 0u);
}

TEST(SlotTable, WhatTheBackendPlacedIsNotGuessed) {
  const auto found = [](SlotTable::Length length, bool other_weights = false) {
    SlotTable table(1);
    table.at(0).other_weights = other_weights;
    table.note_placed(placed(100, 7));
    const bool any = !table.believe_lengths(std::span(&length, 1)).empty();
    EXPECT_FALSE(table.looks_for_placed()) << "a later look would find another task";
    return any;
  };
  EXPECT_TRUE(found({0, 107}));
  EXPECT_FALSE(found({0, 106}));
  EXPECT_FALSE(found({0, 107, true})) << "it goes on there";
  EXPECT_FALSE(found({0, 107}, true));
  SlotTable table(1);
  table.note_placed(placed(100, 7));
  table.forget_placed();  // other tasks have begun
  const SlotTable::Length length{0, 107};
  EXPECT_THAT(table.believe_lengths(std::span(&length, 1)), IsEmpty());
}

TEST(SlotTable, WhatTheBackendPlacedIsNotGivenUpWhereItsSlotWasLeasedAgain) {
  SlotTable table(2);
  table.note_placed(placed(100, 7));
  table.at(1).leased = true;
  const SlotTable::Length there[] = {{0, 3}, {1, 107}};
  EXPECT_THAT(table.believe_lengths(there), IsEmpty());
  EXPECT_TRUE(table.looks_for_placed());
  EXPECT_FALSE(table.believe_placed(1, 106));
  EXPECT_TRUE(table.believe_placed(1, 107));
  EXPECT_EQ(table.at(1).known.size(), 100u);
  EXPECT_FALSE(table.looks_for_placed());
  table.note_placed(placed(200, 7));
  table.at(1).running = true;  // what it counts is its own
  const SlotTable::Length running[] = {{0, 3}, {1, 207}};
  EXPECT_THAT(table.believe_lengths(running), IsEmpty());
  EXPECT_FALSE(table.looks_for_placed());
}

TEST(SlotTable, NoBeliefMovesToASlotThatOtherAdaptersMayHaveUsed) {
  SlotTable table(2);
  fill(table.at(0), 100);
  table.at(0).chosen_for_us = true;
  table.at(1).other_weights = true;
  const SlotTable::Length lengths[] = {{0, 3}, {1, 100}};
  table.believe_lengths(lengths);
  EXPECT_TRUE(is_empty(table.at(0)) && is_empty(table.at(1)));
  EXPECT_TRUE(table.at(1).other_weights) << "forgetting tokens does not make them the model's own";
  table.reset(2);
  EXPECT_FALSE(table.at(1).other_weights) << "another process has run nothing yet";
}

TEST(SlotTable, ATaskStaysWhereItWasBelieved) {
  const auto held = [](bool chosen, std::optional<std::int64_t> own, std::optional<std::int64_t> other, bool other_leased) {
    SlotTable table(2);
    fill(table.at(0), 100);
    table.at(0).chosen_for_us = chosen;
    table.at(1).leased = other_leased;
    const SlotTable::Length lengths[] = {{0, own}, {1, other}};
    table.believe_lengths(lengths);
    EXPECT_FALSE(table.at(0).chosen_for_us && !chosen);
    return std::pair{table.at(0).held(), table.at(1).held()};
  };
  EXPECT_EQ(held(true, 100, 100, false), (std::pair{100u, 0u})) << "it is where it should be";
  EXPECT_EQ(held(false, 0, 100, false), (std::pair{0u, 0u})) << "it was put there";
  EXPECT_EQ(held(true, 0, 100, true), (std::pair{0u, 0u})) << "the other one is in use";
  EXPECT_EQ(held(true, 0, std::nullopt, false), (std::pair{0u, 0u})) << "it is nowhere";
}

}  // namespace
}  // namespace cairn

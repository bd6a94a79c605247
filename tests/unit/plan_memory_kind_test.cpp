#include "plan/memory_kind.hpp"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace cairn {
namespace {

constexpr MemoryKind kinds[] = {MemoryKind::unknown, MemoryKind::truncatable, MemoryKind::checkpointed, MemoryKind::exact};

TEST(MemoryKindNames, ReadBackWhatTheyWrite) {
  for (const MemoryKind kind : kinds) EXPECT_EQ(memory_kind_from_string(to_string(kind)), kind);
  EXPECT_EQ(memory_kind_from_string(""), MemoryKind::unknown);
  EXPECT_EQ(memory_kind_from_string("Exact"), MemoryKind::unknown);
}

struct Row {
  const char* what;
  std::uint32_t length;
  bool ends_there;
  std::vector<std::uint32_t> points;
  std::uint32_t common;
  std::uint32_t prompt;
  std::uint32_t truncatable, checkpointed, exact;
};

TEST(UsableTokens, Table) {
  const std::vector<Row> rows{
      {"no prompt", 100, true, {50}, 0, 0, 0, 0, 0},
      {"a prompt of one token", 100, true, {50}, 1, 1, 0, 0, 0},
      {"nothing shared", 100, true, {50}, 0, 200, 0, 0, 0},
      {"an empty state", 0, true, {}, 0, 200, 0, 0, 0},
      {"extended", 100, true, {50, 96}, 100, 200, 100, 100, 100},
      {"extended by one token", 100, true, {50, 96}, 100, 101, 100, 100, 100},
      {"the same prompt again: its last token is computed", 100, true, {50, 96}, 100, 100, 99, 96, 0},
      {"a shorter prompt", 100, true, {50, 96}, 60, 60, 59, 50, 0},
      {"left in the middle", 100, true, {50, 96}, 70, 200, 70, 50, 0},
      {"left right at a resume point", 100, true, {50, 96}, 50, 200, 50, 50, 0},
      {"left one before it", 100, true, {50, 96}, 49, 200, 49, 0, 0},
      {"left one behind it", 100, true, {50, 96}, 97, 200, 97, 96, 0},
      {"a prompt that ends at a resume point computes from the one before", 100, true, {50, 96}, 50, 50, 49, 0, 0},
      {"a prompt that ends one behind it", 100, true, {50, 96}, 51, 51, 50, 50, 0},
      {"an unknown answer follows", 100, false, {50, 96}, 100, 200, 100, 96, 0},
      {"an unknown answer follows, no points", 100, false, {}, 100, 200, 100, 0, 0},
      {"a resume point at the end of what is known", 100, false, {50, 100}, 100, 200, 100, 100, 0},
      {"no points, left in the middle", 100, true, {}, 70, 200, 70, 0, 0},
  };
  for (const Row& row : rows) {
    const StateView state{row.length, row.ends_there, row.points};
    EXPECT_EQ(usable_tokens(MemoryKind::truncatable, state, row.common, row.prompt), row.truncatable) << row.what;
    EXPECT_EQ(usable_tokens(MemoryKind::checkpointed, state, row.common, row.prompt), row.checkpointed) << row.what;
    EXPECT_EQ(usable_tokens(MemoryKind::exact, state, row.common, row.prompt), row.exact) << row.what;
    // Not known yet: as careful as checkpointed, for what is believed there can be resumed by every kind.
    EXPECT_EQ(usable_tokens(MemoryKind::unknown, state, row.common, row.prompt), row.checkpointed) << row.what;
  }
}

TEST(UsableTokens, NeverMoreThanIsSharedAndNeverTheWholePrompt) {
  const std::vector<std::uint32_t> points{3, 4, 9, 11};
  for (const MemoryKind kind : kinds) {
    for (std::uint32_t length = 0; length <= 12; ++length) {
      for (const bool ends : {false, true}) {
        for (std::uint32_t prompt = 0; prompt <= 14; ++prompt) {
          for (std::uint32_t common = 0; common <= std::min(length, prompt); ++common) {
            const std::uint32_t usable = usable_tokens(kind, StateView{length, ends, points}, common, prompt);
            EXPECT_LE(usable, common);
            EXPECT_TRUE(usable < prompt || prompt == 0);
            EXPECT_LE(usable, usable_tokens(MemoryKind::truncatable, StateView{length, ends, points}, common, prompt));
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace cairn

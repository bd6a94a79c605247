// The numbers of sets of adapters.
#include "request/adapter_spaces.hpp"

#include <gtest/gtest.h>

#include <set>
#include <string>

namespace cairn {
namespace {

std::string lora(std::size_t number) { return R"([{"id":0,"scale":)" + std::to_string(number) + "}]"; }

TEST(AdapterSpaces, EachHasItsOwn) {
  AdapterSpaces spaces;
  const std::int64_t first = spaces.of(lora(1)), second = spaces.of(lora(2));
  EXPECT_LT(first, 0);
  EXPECT_LT(second, 0);
  EXPECT_NE(first, second);
  EXPECT_EQ(spaces.of(lora(1)), first);
  EXPECT_EQ(spaces.of(lora(2)), second);
}

// Every text that a client sent was kept until the next probe. What is forgotten must not hand its number on: a slot may still hold its tokens.
TEST(AdapterSpaces, ThoseNotUsedForLongAreForgottenAndNoNumberIsUsedTwice) {
  AdapterSpaces spaces;
  const std::int64_t kept = spaces.of(lora(0)), forgotten = spaces.of(lora(1));
  std::set<std::int64_t> used{kept, forgotten};
  for (std::size_t number = 2; number < 3 * AdapterSpaces::remembered; ++number) {
    EXPECT_TRUE(used.insert(spaces.of(lora(number))).second) << number;
    EXPECT_EQ(spaces.of(lora(0)), kept);
  }
  EXPECT_TRUE(used.insert(spaces.of(lora(1))).second) << "it was not forgotten, or got another's number";
}

}  // namespace
}  // namespace cairn

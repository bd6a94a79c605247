#include "base/printable_text.hpp"

#include <gtest/gtest.h>

namespace cairn {
namespace {

TEST(PrintableTextTest, ShowsControlCharactersAndNothingElse) {
  for (const std::string_view same : {"", "system prompt", "\u00a0\u00e9\u4e2d\U0001f600", "back\\slash"}) EXPECT_EQ(printable_text(same), same);
  EXPECT_EQ(printable_text("\x1b[2J\n\x7f"), "\\x1b[2J\\x0a\\x7f");
  EXPECT_EQ(printable_text("\u009b2J"), "\\xc2\\x9b2J") << "as good as ESC [";
  EXPECT_EQ(printable_text(std::string_view("a\0b", 3)), "a\\x00b");
  EXPECT_EQ(printable_text("cut \xc2"), "cut \xc2");
}

}  // namespace
}  // namespace cairn

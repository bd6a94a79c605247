#include "base/printable_text.hpp"

#include <gtest/gtest.h>

namespace cairn {
namespace {

TEST(PrintableTextTest, ShowsControlCharactersAndNothingElse) {
  for (const std::string_view same : {"", "system prompt", "\u00a0\u00e9\u4e2d\U0001f600", "back\\slash"}) EXPECT_EQ(printable_text(same), same);
  EXPECT_EQ(printable_text("\x1b[2J\n\x7f"), "\\x1b[2J\\x0a\\x7f");
  EXPECT_EQ(printable_text("\u009b2J"), "\\xc2\\x9b2J") << "as good as ESC [";
  EXPECT_EQ(printable_text(std::string_view("a\0b", 3)), "a\\x00b");
}

TEST(PrintableTextTest, ShowsBytesThatAreNoUtf8) {
  EXPECT_EQ(printable_text("cut \xc2"), "cut \\xc2");
  EXPECT_EQ(printable_text("\x9b" "2J caf\xe9.txt"), "\\x9b2J caf\\xe9.txt") << "a terminal of eight bits takes the first for ESC [";
  EXPECT_EQ(printable_text("\xed\xa0\x80 \xc0\x80 \xe4\xb8"), "\\xed\\xa0\\x80 \\xc0\\x80 \\xe4\\xb8");
}

TEST(JsonTextTest, IsUtf8) {
  EXPECT_EQ(json_text(boost::json::object{{"file", "caf\xe9 \u00e9\x1b\n"}}), "{\"file\":\"caf\\\\xe9 \u00e9\\u001b\\n\"}");
  EXPECT_EQ(json_text(boost::json::array{1, "\xf0\x9f"}), "[1,\"\\\\xf0\\\\x9f\"]");
}

}  // namespace
}  // namespace cairn

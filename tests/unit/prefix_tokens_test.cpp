#include <gtest/gtest.h>

#include <limits>

#include "prefix/tokens.hpp"

namespace cairn {
namespace {

TEST(CommonPrefix, OfEmptyIsZero) {
  const Tokens some{1, 2, 3};
  EXPECT_EQ(common_prefix({}, {}), 0u);
  EXPECT_EQ(common_prefix(some, {}), 0u);
  EXPECT_EQ(common_prefix({}, some), 0u);
}

TEST(CommonPrefix, StopsAtTheShorterOne) {
  const Tokens shorter{1, 2, 3};
  const Tokens longer{1, 2, 3, 4};
  EXPECT_EQ(common_prefix(shorter, longer), 3u);
  EXPECT_EQ(common_prefix(longer, shorter), 3u);
  EXPECT_EQ(common_prefix(longer, longer), 4u);
}

// Every length around the strides that are compared at once, every place of the first difference, every alignment.
TEST(CommonPrefix, FindsTheFirstDifferenceWhereverItIs) {
  for (std::size_t length = 0; length <= 100; ++length) {
    for (std::size_t start : {0u, 1u, 3u}) {
      Tokens a(start + length);
      for (std::size_t i = 0; i < a.size(); ++i) a[i] = static_cast<Token>(i * 7919);
      const TokenSpan left = TokenSpan(a).subspan(start);
      for (std::size_t differs = 0; differs <= length; ++differs) {
        Tokens b(left.begin(), left.end());
        for (std::size_t i = differs; i < length; ++i) b[i] ^= 1 << (i % 31);
        ASSERT_EQ(common_prefix(left, b), differs) << length << " tokens, start " << start;
      }
    }
  }
}

TEST(CommonPrefix, ComparesAllBits) {
  Tokens a(64, 0);
  for (Token other : {1, 1 << 30, std::numeric_limits<Token>::min(), -1}) {
    Tokens b(64, 0);
    b[40] = other;
    EXPECT_EQ(common_prefix(a, b), 40u);
  }
}

}  // namespace
}  // namespace cairn

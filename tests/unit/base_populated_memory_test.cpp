#include "base/populated_memory.hpp"

#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <vector>

namespace cairn::test {
namespace {

TEST(PopulatedMemory, TouchesNothingButItsOwn) {
  for (const std::size_t bytes : {0, 1, 4095, 4096, 40'000, 1'000'000}) {
    for (const std::size_t from : {0, 1, 17, 4096}) {
      std::vector<char> around(bytes + 2 * 8192, 'a');
      populate(around.data() + from, bytes);
      EXPECT_EQ(around, std::vector<char>(around.size(), 'a')) << bytes << " from " << from;
    }
  }
}

TEST(PopulatedMemory, GivesAndTakesBack) {
  std::pmr::unsynchronized_pool_resource pool(&populated_memory());
  std::pmr::vector<std::pmr::vector<int>> rows(&pool);
  for (int i = 0; i < 200; ++i) rows.emplace_back(static_cast<std::size_t>(i * 100), i);
  rows.erase(rows.begin(), rows.begin() + 100);
  for (int i = 0; i < 100; ++i) EXPECT_EQ(rows[static_cast<std::size_t>(i)].back(), i + 100);
  EXPECT_TRUE(populated_memory().is_equal(populated_memory()));
}

}  // namespace
}  // namespace cairn::test

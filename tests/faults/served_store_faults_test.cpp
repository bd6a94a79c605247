// What is served from an index that fails each read while it is opened: all of its states, or none yet.
#include <gtest/gtest.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>

#include <cerrno>
#include <exception>
#include <optional>
#include <vector>

#include "served_store.hpp"
#include "simulated_disk.hpp"
#include "unit/checkpoint_support.hpp"

namespace cairn::test {
namespace {

class ServedStoreFaults : public ::testing::Test {
 protected:
  // Only SQLite's files lie on it.
  SimulatedDisk disk;
  ScratchDirectory scratch;
  FaultyLayer files;
  BlockingPool pool{1};
  Config config;
  std::vector<CheckpointId> ids;
  void SetUp() override {
    use_for_sqlite(&disk);
    StoreFixture fixture{scratch, files};
    ASSERT_TRUE(fixture.open());
    for (Token salt = 0; salt < 5; ++salt) {
      const auto saved = fixture.save(tokens_of_length(3000, salt * 100'000), 1000);
      ASSERT_TRUE(saved) << to_string(saved.error());
      ids.push_back(saved->id);
    }
    config.slot_dir = scratch.slots();
    config.state_dir = scratch.state();
    config.min_free_bytes = 0;
  }
  void TearDown() override { use_for_sqlite(nullptr); }

  Result<void> open(boost::asio::io_context& io, ServedStore& served) {
    std::optional<Result<void>> result;
    boost::asio::co_spawn(io, served.open(), [&](std::exception_ptr, Result<void> opened) { result = opened; });
    io.restart();
    io.run();
    return *result;
  }
  void expect_all(ServedStore& served) {
    ASSERT_NE(served.catalogue(), nullptr);
    EXPECT_EQ(served.store()->counters().files, ids.size());
    for (const CheckpointId id : ids) EXPECT_EQ(served.catalogue()->tokens_of(id).size(), 3000u);
  }
};

// It served those that it had read; the others counted as worthless and were evicted.
TEST_F(ServedStoreFaults, AnIndexThatIsReadHalfIsOpenedAgain) {
  int refused = 0;
  bool failed = true;
  for (int number = 1; failed; ++number) {
    SCOPED_TRACE(number);
    boost::asio::io_context io;
    ServedStore served(io.get_executor(), config, pool);
    const int before = disk.calls();
    failed = false;
    disk.fault = [&](int call, std::string_view) -> std::optional<int> {
      if (call != before + number) return std::nullopt;
      failed = true;
      return EIO;
    };
    Result<void> opened = open(io, served);
    disk.fault = nullptr;
    refused += !opened;
    if (!opened) {
      EXPECT_EQ(served.store(), nullptr);
      opened = open(io, served);
    }
    ASSERT_TRUE(opened) << to_string(opened.error());
    expect_all(served);
    if (HasFailure()) return;
  }
  EXPECT_GT(refused, 5);
}

}  // namespace
}  // namespace cairn::test

#include "request/answer_spool.hpp"

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

#include "run_to_end.hpp"

namespace cairn {
namespace {

using test::run_to_end;

Task<bool> put_piece(AnswerSpool& spool, const std::string& piece) {
  co_await spool.put(piece);
  co_return true;
}

std::string taken(AnswerSpool& spool, std::size_t at_most) {
  std::vector<char> piece(at_most);
  const auto count = run_to_end(spool.take(piece));
  EXPECT_TRUE(count);
  return std::string(piece.data(), count ? *count : 0);
}

TEST(AnswerSpool, WithoutAFileItIsFullAtItsMemory) {
  AnswerSpool spool(nullptr);
  const std::string piece(16 * 1024, 'a');
  for (std::size_t put = 0; put < AnswerSpool::memory_bytes; put += piece.size()) {
    EXPECT_FALSE(spool.full());
    run_to_end(put_piece(spool, piece));
  }
  EXPECT_TRUE(spool.full());
  EXPECT_EQ(taken(spool, piece.size()), piece);
  EXPECT_FALSE(spool.full());
}

TEST(AnswerSpool, WithAFileNothingWaitsAndTheOrderStays) {
  const unsigned seed = std::random_device{}();
  RecordProperty("seed", std::to_string(seed));
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  BlockingPool pool(1);
  AnswerSpool spool(&pool);
  std::string put, got;
  // Filled faster than emptied and then the other way round, twice: in memory, in the file, empty, and afresh.
  for (const int puts_in_ten : {8, 2, 9, 1}) {
    for (int step = 0; step < 400; ++step) {
      if (static_cast<int>(random() % 10) < puts_in_ten) {
        std::string piece(1 + random() % 9000, '\0');
        for (char& byte : piece) byte = static_cast<char>(random());
        EXPECT_FALSE(spool.full());
        run_to_end(put_piece(spool, piece));
        put += piece;
      } else {
        got += taken(spool, 1 + random() % 12000);
      }
    }
  }
  for (std::string piece = taken(spool, 50'000); !piece.empty(); piece = taken(spool, 50'000)) got += piece;
  EXPECT_TRUE(got == put) << got.size() << " of " << put.size() << " bytes";
}

}  // namespace
}  // namespace cairn

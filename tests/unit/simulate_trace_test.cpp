#include "simulate/trace.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <set>

namespace cairn {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::StartsWith;

class TraceFiles : public testing::Test {
 protected:
  std::string file(const std::string& name, const std::string& text) {
    const std::filesystem::path path = folder_ / name;
    std::ofstream(path) << text;
    return path.string();
  }
  static Tokens blocks(const Trace& trace, std::size_t request) {
    const TokenSpan span = trace.prompt(trace.requests[request]);
    return {span.begin(), span.end()};
  }
  void SetUp() override {
    folder_ = std::filesystem::path(testing::TempDir()) / testing::UnitTest::GetInstance()->current_test_info()->name();
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  std::filesystem::path folder_;
};

TEST_F(TraceFiles, MooncakesLines) {
  const auto trace = read_traces({file("a.jsonl", R"({"timestamp": 2000, "input_length": 600, "output_length": 7, "hash_ids": [5, 9]}
{"timestamp": 1000, "input_length": 512, "output_length": 1, "hash_ids": [5]}
)")});
  ASSERT_TRUE(trace) << trace.error().context;
  EXPECT_EQ(trace->block_tokens, 512u);
  ASSERT_EQ(trace->requests.size(), 2u);
  EXPECT_EQ(trace->requests[0].at_s, 0);
  EXPECT_EQ(trace->requests[1].at_s, 1);
  EXPECT_EQ(trace->requests[1].prompt_tokens, 600u);
  EXPECT_EQ(trace->requests[1].answer_tokens, 7u);
  EXPECT_EQ(blocks(*trace, 0).front(), blocks(*trace, 1).front());
}

TEST_F(TraceFiles, IdsMayBeHashes) {
  const std::string lines = R"({"timestamp": 0, "input_length": 2048, "hash_ids": [18446744073709551615, 268435455, 268435456, 18446744073709551615]}
)";
  const auto trace = read_traces({file("a.jsonl", lines), file("b.jsonl", lines)});
  ASSERT_TRUE(trace) << trace.error().context;
  const Tokens first = blocks(*trace, 0), second = blocks(*trace, 1);
  EXPECT_EQ(first[0], first[3]);
  const std::set<Token> different{first[0], first[1], first[2], second[0], second[1], second[2]};
  EXPECT_EQ(different.size(), 6u);  // nor do those of another file count as the same
}

TEST_F(TraceFiles, SessionsWithSubAgentsAndIdsOfTheirOwn) {
  const std::string session = R"({"block_size": 64, "requests": [
    {"t": 5.0, "in": 130, "out": 3, "hash_ids": [1, 2]},
    {"t": 1.0, "type": "subagent", "requests": [{"t": 2.0, "in": 64, "out": 1, "hash_ids": [1]}]}]})";
  const auto trace = read_traces({file("a.json", session), file("b.json", session)});
  ASSERT_TRUE(trace) << trace.error().context;
  EXPECT_EQ(trace->block_tokens, 64u);
  ASSERT_EQ(trace->requests.size(), 4u);
  EXPECT_EQ(blocks(*trace, 0).size(), 1u);
  EXPECT_EQ(blocks(*trace, 0)[0], blocks(*trace, 2)[0]);  // the sub-agent shares its parent's blocks
  EXPECT_NE(blocks(*trace, 0)[0], blocks(*trace, 1)[0]);  // another session does not
}

// Four sessions that share nothing hit one another's blocks.
TEST_F(TraceFiles, SessionsInTheLinesOfOneFileShareNoBlocks) {
  const std::string line = R"({"block_size": 64, "hash_id_scope": "local", "requests": [{"t": 0, "in": 64, "hash_ids": [1]}]})";
  const auto trace = read_traces({file("a.jsonl", line + "\n" + line + "\n")});
  ASSERT_TRUE(trace) << trace.error().context;
  EXPECT_NE(blocks(*trace, 0)[0], blocks(*trace, 1)[0]);
}

TEST_F(TraceFiles, SessionsWhoseIdsHoldEverywhereShareThem) {
  const std::string session = R"({"block_size": 64, "hash_id_scope": "global", "requests": [{"t": 0, "in": 128, "hash_ids": [7, 9]}]})";
  const std::string own = R"({"block_size": 64, "hash_id_scope": "local", "requests": [{"t": 1, "in": 64, "hash_ids": [7]}]})";
  const auto trace = read_traces({file("a.json", session), file("b.json", session), file("c.json", own)});
  ASSERT_TRUE(trace) << trace.error().context;
  EXPECT_EQ(blocks(*trace, 0), blocks(*trace, 1));
  EXPECT_NE(blocks(*trace, 0)[0], blocks(*trace, 2)[0]);
}

// One odd entry ended the whole run.
TEST_F(TraceFiles, OddRequestsOfASessionAreSkippedAndSaid) {
  const auto trace = read_traces({file("a.json", R"({"block_size": 64, "requests": [
    {"t": 0, "in": 64, "hash_ids": [1]}, {"t": 1, "type": "subagent"}, {"t": 2, "in": 64}]})")});
  ASSERT_TRUE(trace) << trace.error().context;
  EXPECT_EQ(trace->requests.size(), 2u);  // one has a length and no ids
  EXPECT_THAT(trace->skipped, ElementsAre(HasSubstr("1 requests skipped")));
  EXPECT_FALSE(read_traces({file("b.json", R"({"block_size": 64, "requests": [{"type": "subagent"}]})")}));
}

// Likewise one that makes no sense.
TEST_F(TraceFiles, RequestsOfASessionThatMakeNoSenseAreSkippedAndSaid) {
  const auto trace = read_traces({file("a.json", R"({"block_size": 64, "requests": [
    {"t": 0, "in": 64, "hash_ids": [1]}, {"t": 1, "in": 64, "hash_ids": [1, -1]}, {"t": 1, "in": 64, "hash_ids": ["x"]},
    {"t": 1, "in": 1073741825, "hash_ids": [1]}, {"t": 1e300, "in": 64, "hash_ids": [1]}, {"t": -1e300, "in": 64},
    {"t": 2, "in": 64, "hash_ids": [1]}, {"t": 1e300, "requests": [{"t": 0, "in": 64}]}]})")});
  ASSERT_TRUE(trace) << trace.error().context;
  ASSERT_EQ(trace->requests.size(), 2u);
  EXPECT_EQ(trace->requests[1].at_s, 2);
  EXPECT_EQ(trace->blocks.size(), 2u);
  EXPECT_EQ(blocks(*trace, 0), blocks(*trace, 1));
  EXPECT_THAT(trace->skipped, ElementsAre(HasSubstr("6 requests skipped")));
}

TEST_F(TraceFiles, ASubAgentsClockMayBeginWithIt) {
  const auto trace = read_traces({file("a.json", R"({"block_size": 64, "requests": [
    {"t": 1.0, "in": 64, "hash_ids": [1]},
    {"t": 10.0, "requests": [{"t": 0.0, "in": 64, "hash_ids": [1]}, {"t": 2.0, "in": 64, "hash_ids": [1]}]},
    {"t": 20.0, "requests": [{"t": 19.0, "in": 64, "hash_ids": [1]}]}]})")});  // the entry was stamped later
  ASSERT_TRUE(trace) << trace.error().context;
  std::vector<double> times;
  for (const TraceRequest& request : trace->requests) times.push_back(request.at_s);
  EXPECT_THAT(times, ElementsAre(0, 9, 11, 18));
}

TEST_F(TraceFiles, TextIsFourBytesAToken) {
  const auto trace = read_traces({file("a.jsonl", R"({"timestamp": 3000000, "input": "abcdefgh!", "output": "1234", "session_id": "x"}
{"timestamp": 1000000, "input": "abcdXXXX", "output": "", "session_id": "x"})")});
  ASSERT_TRUE(trace) << trace.error().context;
  EXPECT_EQ(trace->block_tokens, 1u);
  EXPECT_EQ(trace->requests[1].at_s, 2);
  EXPECT_EQ(trace->requests[1].prompt_tokens, 2u);
  EXPECT_EQ(blocks(*trace, 0)[0], blocks(*trace, 1)[0]);
  EXPECT_NE(blocks(*trace, 0)[1], blocks(*trace, 1)[1]);
}

TEST_F(TraceFiles, WhatIsNoTraceIsSaid) {
  const std::pair<const char*, const char*> cases[] = {
      {"hello", "neither JSON"},
      {R"({"timestamp": 1, "hash_ids": [1]})", "input_length"},
      {R"({"timestamp": 1, "input_length": 5, "hash_ids": ["x"]})", "no number"},
      {R"({"requests": []})", "block_size"},
      {"{\"timesta\n{\"timestamp\": 1}\n", "neither JSON"},
      {"{\"timestamp\": 1}\n{\"timesta", "line 1: neither hash_ids"},
      {"{\n\"requests\": [\n]}", "block_size"},
      {R"({"block_size": 4294967296, "requests": [{"t": 0, "in": 64, "hash_ids": [1]}]})", "block_size of more than 2^30"},
      {R"({"timestamp": 1e300, "input_length": 5, "hash_ids": [1]})", "10^12 s"},
      {R"({"timestamp": 1e300, "input": "abcdefgh"})", "10^12 s"},
  };
  for (const auto& [text, said] : cases) {
    const std::string path = file("bad", text);
    const auto trace = read_traces({path});
    ASSERT_FALSE(trace) << text;
    const std::string& context = trace.error().context;
    EXPECT_EQ(trace.error().code, ErrorCode::invalid);
    EXPECT_THAT(context, HasSubstr(said));
    EXPECT_THAT(context, StartsWith(path + ": "));
    EXPECT_EQ(context.find(path, path.size()), std::string::npos) << "the path once: " << context;
  }
  EXPECT_EQ(read_traces({(folder_ / "missing").string()}).error().code, ErrorCode::io);
}

const std::string good_line = R"({"timestamp": 1, "input_length": 5, "hash_ids": [1]})";

TEST_F(TraceFiles, ALastLineThatIsCutOffIsSkippedAndSaid) {
  const std::string path = file("a.jsonl", good_line + "\n" + good_line + "\n\n{\"timesta");
  const auto trace = read_traces({path, file("b.jsonl", good_line)});
  ASSERT_TRUE(trace) << trace.error().context;
  EXPECT_EQ(trace->requests.size(), 3u);
  EXPECT_THAT(trace->skipped, ElementsAre(path + ": 1 of 3 lines skipped; the first, line 4: no JSON"));
}

TEST_F(TraceFiles, AFirstLineThatIsCutOffIsSkippedToo) {
  const auto trace = read_traces({file("a.jsonl", "_ids\": [1]}\n" + good_line + "\n" + good_line)});
  ASSERT_TRUE(trace) << trace.error().context;
  EXPECT_EQ(trace->requests.size(), 2u);
  EXPECT_THAT(trace->skipped, ElementsAre(HasSubstr("1 of 3 lines skipped; the first, line 1: no JSON")));
}

TEST_F(TraceFiles, OfALineThatIsSkippedNothingStays) {
  const std::string lines = R"({"timestamp": 1, "input_length": 4096, "hash_ids": [1, 2, "x"]}
{"block_size": 64, "requests": [{"t": 0, "in": 5, "hash_ids": [1, "x"]}]}
{"timestamp": 2, "input_length": 5, "hash_ids": [7, 8]}
{"timestamp": 3, "input_length": 5, "hash_ids": [-1]}
)";
  const auto trace = read_traces({file("a.jsonl", lines)});
  ASSERT_TRUE(trace) << trace.error().context;
  EXPECT_EQ(trace->block_tokens, 512u);
  ASSERT_EQ(trace->requests.size(), 1u);
  EXPECT_EQ(trace->blocks.size(), 2u);
  EXPECT_EQ(blocks(*trace, 0).size(), 2u);
  EXPECT_THAT(trace->skipped, ElementsAre(HasSubstr("3 of 4 lines skipped; the first, line 1: a hash id is no number")));
}

TEST_F(TraceFiles, WhereAllCanBeReadNothingIsSaid) {
  const auto trace = read_traces({file("a.jsonl", good_line + "\n" + good_line), file("empty.jsonl", "")});
  ASSERT_TRUE(trace) << trace.error().context;
  EXPECT_THAT(trace->skipped, IsEmpty());
}

TEST_F(TraceFiles, BlocksOfDifferentSizesAreNotMixed) {
  const auto trace = read_traces({file("a.jsonl", R"({"timestamp": 1, "input_length": 5, "hash_ids": [1]})"),
                                  file("b.json", R"({"block_size": 64, "requests": [{"t": 0, "in": 5, "hash_ids": [1]}]})")});
  ASSERT_FALSE(trace);
  EXPECT_THAT(trace.error().context, HasSubstr("blocks of 64"));
}

}  // namespace
}  // namespace cairn

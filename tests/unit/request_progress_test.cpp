#include "request/progress.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

namespace cairn {
namespace {

// As a chat of build 11669 sends it: reports, a head of the message, text that talks of reports, the end.
std::string chat_stream(std::string_view first, std::string_view second) {
  const std::string head = R"(data: {"choices":[{"finish_reason":null,"index":0,"delta":{"role":"assistant","content":null}}],"id":"x")";
  return head + R"(,"prompt_progress":)" + std::string(first) + "}\n\n" + head + R"(,"prompt_progress":)" + std::string(second) +
         "}\n\n" + head + "}\n\n" +
         R"(data: {"choices":[{"delta":{"content":"\"prompt_progress\":{\"cache\":1,\"time_ms\":2}"}}]})" "\n\n"
         R"(data: {"choices":[{"delta":{"content":"prompt_progress","cache":4096,"time_ms":3}}]})" "\n\n"
         R"(data: {"choices":[],"timings":{"cache_n":4096,"prompt_n":904}})" "\n\ndata: [DONE]\n\n";
}

const std::string from_backend = chat_stream(R"({"total":5000,"cache":4096,"processed":4096,"time_ms":0})",
                                             R"({"total":5000,"cache":4096,"processed":5000,"time_ms":501})");
const std::string for_client = chat_stream(R"({"total":5000,"cache":64,"processed":4096,"time_ms":2200})",
                                           R"({"total":5000,"cache":64,"processed":5000,"time_ms":2701})");

std::string through(ContinuedProgress& progress, const std::vector<std::string_view>& pieces) {
  std::string out;
  for (const std::string_view piece : pieces) out += progress.on_bytes(piece);
  out += progress.rest();
  return out;
}

std::string continued(const std::vector<std::string_view>& pieces) {
  ContinuedProgress progress(64, 2200);
  return through(progress, pieces);
}

TEST(ContinuedProgress, CountsFromTheFirstTask) { EXPECT_EQ(continued({from_backend}), for_client); }

TEST(ContinuedProgress, SplitAnywhere) {
  const std::string_view all = from_backend;
  for (std::size_t first = 0; first <= all.size(); ++first) {
    EXPECT_EQ(continued({all.substr(0, first), all.substr(first)}), for_client) << first;
    // And again soon after.
    const std::size_t second = std::min(first + 3, all.size());
    EXPECT_EQ(continued({all.substr(0, first), all.substr(first, second - first), all.substr(second)}), for_client) << first;
  }
  std::vector<std::string_view> bytes;
  for (std::size_t i = 0; i < all.size(); ++i) bytes.push_back(all.substr(i, 1));
  EXPECT_EQ(continued(bytes), for_client);
}

TEST(ContinuedProgress, AWholeEventIsNotHeldBack) {
  ContinuedProgress progress(64, 2200);
  const std::string event = "data: {\"content\":\"a\"}\n\n";
  EXPECT_EQ(progress.on_bytes(event), event);
  EXPECT_EQ(progress.on_bytes(event + "dat"), event);
  EXPECT_EQ(progress.on_bytes(std::string_view("a: 1\n")), "");
  EXPECT_EQ(progress.on_bytes(std::string_view("\n")), "data: 1\n\n");
  EXPECT_EQ(progress.on_bytes(std::string_view("data: cut")), "");
  EXPECT_EQ(progress.rest(), "data: cut");
  EXPECT_EQ(progress.rest(), "");
}

TEST(ContinuedProgress, SpacesAndOrderStay) {
  EXPECT_EQ(continued({"data: {\"prompt_progress\" : { \"time_ms\" : 7 , \"processed\":9, \"cache\": 4096 }, \"content\": \"\"}\n\n"}),
            "data: {\"prompt_progress\" : { \"time_ms\" : 2207 , \"processed\":9, \"cache\": 64 }, \"content\": \"\"}\n\n");
}

TEST(ContinuedProgress, WhatTheBackendLostIsNotCounted) {
  EXPECT_EQ(continued({"data: {\"prompt_progress\":{\"total\":9,\"cache\":0,\"processed\":3,\"time_ms\":1}}\n\n"}),
            "data: {\"prompt_progress\":{\"total\":9,\"cache\":0,\"processed\":3,\"time_ms\":2201}}\n\n");
}

TEST(ContinuedProgress, WhatIsNoReportStays) {
  for (const std::string_view text : {
           "data: {\"prompt_progress\":null}\n\n", "data: {\"prompt_progress\":{\"cache\":", "data: {\"prompt_progress\":{}}\n\n",
           "data: {\"prompt_progress\":{\"cache\":\"5\",\"time_ms\":null}}\n\n", "data: {\"prompt_progress\":{,}}\n\n",
           "data: {\"prompt_progress\":{\"cache\":[1,2]}\n\n", "data: {\"prompt_progress\"\n\n", "\n\n\n\n", "",
           "{\"content\":\"not a stream\",\"timings\":{}}", "event: x\r\n\r\ndata: y\r\n\r\n"}) {
    EXPECT_EQ(continued({text}), text);
  }
}

TEST(ContinuedProgress, GivesUpAtAHugeEvent) {
  ContinuedProgress progress(64, 2200);
  std::string out;
  const std::string huge(40'000, 'x');
  out += progress.on_bytes(huge);
  EXPECT_EQ(out, "");
  out += progress.on_bytes(huge);
  EXPECT_EQ(out, huge + huge);
  // From here on there is nothing to wait for.
  EXPECT_EQ(progress.on_bytes(std::string_view("y")), "y");
  EXPECT_EQ(progress.on_bytes("\n\n" + from_backend), "\n\n" + from_backend);
  EXPECT_EQ(progress.rest(), "");
}

}  // namespace
}  // namespace cairn

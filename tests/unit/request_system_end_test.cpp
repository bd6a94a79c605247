#include "request/system_end.hpp"

#include <gtest/gtest.h>

#include <string>

namespace cairn {
namespace {

TEST(SystemEnd, IsWhereTheFirstUserSpeaks) {
  const std::string body = R"({"messages":[{"role":"system","content":"You are terse."},{"role":"user","content":"terse?"}]})";
  const std::string prompt = "<|system|>\nYou are terse.\n<|user|>\nterse?\n<|assistant|>\n";
  EXPECT_EQ(prompt.substr(system_end_bytes(body, prompt)), "terse?\n<|assistant|>\n");
}

TEST(SystemEnd, ToolsMayStandBehindTheSystemPromptAndTextIsTrimmed) {
  const std::string body =
      R"({"tools":[{"type":"function","function":{"name":"f"}}],"messages":[{"content":[{"type":"text","text":" Be kind. \n"}],"role":"developer"},
          {"role":"user","content":[{"type":"image"},{"type":"text","text":"\nhello there "}]}]})";
  const std::string prompt = "[Be kind.][{\"name\":\"f\"}]\nuser: hello there\n";
  EXPECT_EQ(prompt.substr(system_end_bytes(body, prompt)), "hello there\n");
}

TEST(SystemEnd, OfSeveralMessagesOnlyTheFirstCounts) {
  const std::string body =
      R"({"messages":[{"role":"system","content":"S"},{"role":"user","content":"one"},{"role":"assistant","content":"two"},{"role":"user","content":"one"}]})";
  EXPECT_EQ(system_end_bytes(body, "S|one|two|one|"), 2u);
}

TEST(SystemEnd, ToolsAloneAreShared) {
  const std::string body = R"({"messages":[{"role":"user","content":"go"}],"tools":[{"type":"function"}]})";
  EXPECT_EQ(system_end_bytes(body, "tools: x;go"), 9u);
}

TEST(SystemEnd, IsNotSaidWhereNothingIsSharedOrNothingIsFound) {
  EXPECT_EQ(system_end_bytes(R"({"messages":[{"role":"user","content":"go"}]})", "user: go"), 0u);
  EXPECT_EQ(system_end_bytes(R"({"messages":[{"role":"user","content":"go"}],"tools":[]})", "user: go"), 0u);
  EXPECT_EQ(system_end_bytes(R"({"messages":[{"role":"system","content":"S"}]})", "S"), 0u);
  EXPECT_EQ(system_end_bytes(R"({"messages":[{"role":"system","content":"S"},{"role":"user","content":"go"}]})", "other text"), 0u);
  EXPECT_EQ(system_end_bytes(R"({"messages":7})", "7"), 0u);
  EXPECT_EQ(system_end_bytes("no JSON", "no JSON"), 0u);
}

}  // namespace
}  // namespace cairn

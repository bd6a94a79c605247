#include "request/generation_suffix.hpp"

#include <gtest/gtest.h>

#include <boost/json.hpp>

#include "backend/llama_api.hpp"
#include "unit/run_to_end.hpp"
#include "unit/scripted_upstream.hpp"

namespace cairn::test {
namespace {

namespace json = boost::json;

// A template: every message in a line, then "<answer>" unless the body says not to.
class GenerationSuffixTest : public ::testing::Test {
 protected:
  GenerationSuffixTest() {
    upstream_.answer_with([this](const RequestHead& head, std::string_view body) -> Result<ScriptedUpstream::Reply> {
      EXPECT_EQ(head.target, "/apply-template");
      last_body_ = std::string(body);
      if (failing_) return upstream_error(ErrorCode::closed, "down");
      ScriptedUpstream::Reply reply;
      reply.body = json::serialize(json::object{{"prompt", render(body)}});
      return reply;
    });
  }
  std::string render(std::string_view body) const {
    const json::value value = json::parse(json::string_view(body.data(), body.size()));
    std::string text;
    for (const json::value& message : value.at("messages").as_array()) {
      text += "<" + std::string(message.at("content").as_string()) + ">\n";
    }
    const json::value* add = value.as_object().if_contains("add_generation_prompt");
    if (ignores_switch_ || add == nullptr || add->as_bool()) text += suffix_;
    return text;
  }
  std::size_t suffix_of(const std::string& body) {
    return run_to_end(suffixes_.suffix_bytes(api_, body, render(body), cancel_));
  }
  static std::string body_of(const std::string& text) { return R"({"messages":[{"role":"user","content":")" + text + R"("}]})"; }

  ScriptedUpstream upstream_;
  LlamaApi api_{upstream_, ""};
  GenerationSuffixes suffixes_;
  CancelSource cancel_;
  std::string suffix_ = "<answer>\n";
  std::string last_body_;
  bool failing_ = false;
  bool ignores_switch_ = false;
};

TEST_F(GenerationSuffixTest, IsFoundOnceAndThenKnown) {
  EXPECT_EQ(suffix_of(body_of("one")), 9u);
  EXPECT_EQ(upstream_.calls, 1);
  EXPECT_EQ(last_body_, R"({"add_generation_prompt":false,"messages":[{"role":"user","content":"one"}]})");
  EXPECT_EQ(suffix_of(body_of("another")), 9u);
  EXPECT_EQ(upstream_.calls, 1);
  suffixes_.clear();
  EXPECT_EQ(suffix_of(body_of("one")), 9u);
  EXPECT_EQ(upstream_.calls, 2);
}

TEST_F(GenerationSuffixTest, TheLongestOfThoseKnownWins) {
  EXPECT_EQ(suffix_of(body_of("one")), 9u);
  suffix_ = "<thought></thought>\n<answer> \n";
  EXPECT_EQ(suffix_of(body_of("two")), suffix_.size());
  EXPECT_EQ(suffix_of(body_of("three")), suffix_.size());
  EXPECT_EQ(upstream_.calls, 2);
  suffix_ = "<answer>\n";
  EXPECT_EQ(suffix_of(body_of("four")), 9u);
  EXPECT_EQ(upstream_.calls, 2);
}

TEST_F(GenerationSuffixTest, AnEmptyBodyIsStillJson) {
  failing_ = true;
  (void)run_to_end(suffixes_.suffix_bytes(api_, " { }", "text", cancel_));
  EXPECT_NO_THROW((void)json::parse(last_body_)) << last_body_;
  EXPECT_EQ(run_to_end(suffixes_.suffix_bytes(api_, "", "text", cancel_)), 0u);
  EXPECT_EQ(run_to_end(suffixes_.suffix_bytes(api_, "[]", "text", cancel_)), 0u);
}

TEST_F(GenerationSuffixTest, TheClientsOwnWordWins) {
  const std::string body = R"({"messages":[{"role":"user","content":"a"}],"add_generation_prompt":false})";
  EXPECT_EQ(suffix_of(body), 0u);
}

TEST_F(GenerationSuffixTest, ATemplateThatDoesNotKnowTheSwitchIsAskedThreeTimes) {
  ignores_switch_ = true;
  for (int i = 0; i < 5; ++i) EXPECT_EQ(suffix_of(body_of(std::to_string(i))), 0u);
  EXPECT_EQ(upstream_.calls, 3);
}

TEST_F(GenerationSuffixTest, AVeryLongOneIsNone) {
  suffix_ = std::string(600, 'x');
  EXPECT_EQ(suffix_of(body_of("a")), 0u);
}

// Three clients that leave, or a backend that is away for a moment, say nothing about the template.
TEST_F(GenerationSuffixTest, TroubleOfTheBackendIsNoWordAboutTheTemplate) {
  failing_ = true;
  for (int i = 0; i < 5; ++i) EXPECT_EQ(suffix_of(body_of(std::to_string(i))), 0u);
  failing_ = false;
  EXPECT_EQ(suffix_of(body_of("again")), 9u);
}

}  // namespace
}  // namespace cairn::test

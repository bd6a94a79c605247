#include "backend/timings.hpp"

#include <gtest/gtest.h>

#include <random>
#include <string>

namespace cairn {
namespace {

constexpr std::string_view stream_end =
    R"(data: {"choices":[{"finish_reason":"stop","index":0,"delta":{}}],"created":1763900000,"id":"chatcmpl-x","model":"m",)"
    R"("system_fingerprint":"b11669-abc","object":"chat.completion.chunk","usage":{"completion_tokens":7,"prompt_tokens":1310,)"
    R"("total_tokens":1317,"prompt_tokens_details":{"cached_tokens":1290}},"timings":{"cache_n":1290,"prompt_n":20,"prompt_ms":31.25,)"
    R"("prompt_per_token_ms":1.56,"prompt_per_second":640.0,"predicted_n":7,"predicted_ms":80.5,"predicted_per_token_ms":11.5,)"
    R"("predicted_per_second":86.9}})"
    "\n\ndata: [DONE]\n\n";

void expect_the_numbers(const std::optional<Timings>& timings) {
  ASSERT_TRUE(timings);
  EXPECT_EQ(timings->cache_n, 1290);
  EXPECT_EQ(timings->prompt_n, 20);
  EXPECT_DOUBLE_EQ(timings->prompt_ms, 31.25);
  EXPECT_EQ(timings->predicted_n, 7);
}

TEST(FindTimings, AtTheEndOfAStream) { expect_the_numbers(find_timings(stream_end)); }

TEST(FindTimings, InAWholeAnswer) {
  expect_the_numbers(find_timings(
      R"({"index":0,"content":" x","tokens":[],"id_slot":0,"stop":true,"generation_settings":{"seed":1,"samplers":["top_k"]},)"
      R"("prompt":"a","timings": { "cache_n" : 1290, "prompt_n":20,"prompt_ms":31.25,"predicted_n":7,"predicted_ms":80.5 }})"));
}

TEST(FindTimings, TheLastOneCounts) {
  std::string text;
  for (int i = 0; i < 5; ++i) text += R"(data: {"content":"x","timings":{"cache_n":1,"prompt_n":2,"prompt_ms":3}})" "\n\n";
  expect_the_numbers(find_timings(text + std::string(stream_end)));
}

TEST(FindTimings, TextThatTalksAboutTimingsIsNone) {
  EXPECT_FALSE(find_timings(R"({"content":"the field \"timings\":{\"cache_n\":9,\"prompt_n\":9} says"})"));
  EXPECT_FALSE(find_timings(R"({"content":"timings:{} \"timings\" \\\"timings\\\":{\\\"prompt_n\\\":1}"})"));
  std::string text{stream_end};
  text.insert(0, R"(data: {"content":"\"timings\":{\"cache_n\":9,\"prompt_n\":9}"})" "\n\n");
  text += R"(data: {"content":"\"timings\":{\"cache_n\":8,\"prompt_n\":8}"})";
  expect_the_numbers(find_timings(text));
}

TEST(FindTimings, WhatIsNotThere) {
  for (const char* text : {"", "{}", "\"timings\":", "\"timings\":{", R"("timings":{"prompt_n":1)", R"("timings":null})", R"("timings":{}})",
                           R"("timings":{"cache_n":5}})", R"("timings":{"prompt_n":"7"}})", R"("timings":{"prompt_n":}})",
                           R"("timings":{prompt_n:3}})", R"({"timings_per_token":{"prompt_n":3}})"}) {
    EXPECT_FALSE(find_timings(text)) << text;
  }
}

TEST(FindTimings, MissingFieldsAreZero) {
  const auto timings = find_timings(R"({"timings":{"prompt_n":12,"prompt_ms":3,"draft_n":null,"note":"x"}})");
  ASSERT_TRUE(timings);
  EXPECT_EQ(timings->cache_n, 0);
  EXPECT_EQ(timings->prompt_n, 12);
  EXPECT_EQ(timings->predicted_n, 0);
}

std::string with_chatter(std::size_t bytes) {
  std::string text;
  while (text.size() < bytes) text += R"(data: {"choices":[{"delta":{"content":"word"}}]})" "\n\n";
  return text;
}

TEST(TimingsTail, HoweverTheAnswerIsSplit) {
  const std::string text = with_chatter(100'000) + std::string(stream_end);
  for (const std::size_t piece : {std::size_t{1}, std::size_t{7}, std::size_t{1000}, std::size_t{16 * 1024}, std::size_t{40'000}, text.size()}) {
    TimingsTail tail;
    for (std::size_t at = 0; at < text.size(); at += piece) {
      const std::string part = text.substr(at, piece);
      tail.on_bytes(part);
    }
    expect_the_numbers(tail.timings());
    EXPECT_LE(tail.text().size(), 32u * 1024);
  }
  std::mt19937 random(5);
  TimingsTail tail;
  for (std::size_t at = 0; at < text.size();) {
    const std::string part = text.substr(at, random() % 30'000);
    tail.on_bytes(part);
    at += part.size();
  }
  expect_the_numbers(tail.timings());
}

TEST(TimingsTail, CutOffBeforeTheTimings) {
  TimingsTail tail;
  tail.on_bytes(with_chatter(50'000));
  EXPECT_FALSE(tail.timings());
  const std::string half{stream_end.substr(0, stream_end.find("prompt_ms"))};
  tail.on_bytes(half);
  EXPECT_FALSE(tail.timings());
}

// /completion with n_probs writes the probabilities of every token behind the timings.
TEST(TimingsTail, ProbabilitiesAfterTheTimings) {
  std::string text = R"({"content":"x","timings":{"cache_n":1290,"prompt_n":20,"prompt_ms":31.25,"predicted_n":7,"predicted_ms":80.5},)"
                     R"("completion_probabilities":[)";
  for (int i = 0; i < 1000; ++i) text += R"({"id":1,"token":"a","logprob":-0.5,"top_logprobs":[]},)";
  TimingsTail tail;
  tail.on_bytes(text);
  expect_the_numbers(tail.timings());
}

TEST(FindUsage, OfBothKinds) {
  const auto messages = find_usage(R"({"usage": {"cache_read_input_tokens": 690, "input_tokens":31,"output_tokens":3}})", std::nullopt);
  ASSERT_TRUE(messages);
  EXPECT_EQ(messages->cache_n, 690);
  EXPECT_EQ(messages->prompt_n, 31);
  EXPECT_EQ(messages->predicted_n, 3);
  EXPECT_EQ(messages->prompt_ms, 0);
  const auto response = find_usage(
      R"("usage":{"input_tokens":186,"output_tokens":3,"total_tokens":189,"input_tokens_details":{"cached_tokens":80}}})", std::nullopt);
  ASSERT_TRUE(response);
  EXPECT_EQ(response->cache_n, 80);
  EXPECT_EQ(response->prompt_n, 106);
  EXPECT_EQ(response->predicted_n, 3);
}

TEST(FindUsage, WhatSaysNothingOfThePrompt) {
  const Timings known{.cache_n = 5, .prompt_n = 6};
  for (const char* text : {"", "{}", R"("usage":{"input_tokens":3)", R"("usage":null)", R"("usage":{"input_tokens":x}})",
                           R"({"text":"\"usage\":{\"input_tokens\":9}"})", R"("usage":{"prompt_tokens":9,"completion_tokens":1})"}) {
    EXPECT_FALSE(find_usage(text, std::nullopt)) << text;
    const auto still = find_usage(text, known);
    ASSERT_TRUE(still) << text;
    EXPECT_EQ(still->prompt_n, 6) << text;
  }
  EXPECT_FALSE(find_usage(R"("usage":{"output_tokens":9})", std::nullopt));
}

TEST(TimingsTail, AnthropicsStreamCountsThePromptFirstAndTheAnswerLast) {
  const std::string stream =
      R"(data: {"type":"message_start","message":{"usage":{"cache_read_input_tokens":600,"input_tokens":7,"output_tokens":0}}})" "\n\n" +
      std::string(40'000, ' ') +
      R"(data: {"type":"content_block_delta","delta":{"text":"\"usage\":{\"input_tokens\":1}"}})" "\n\n"
      R"(data: {"type":"message_delta","usage":{"output_tokens":12}})" "\n\n";
  for (const std::size_t cut : {1UL, 7UL, 1000UL, 100'000UL}) {
    TimingsTail tail;
    for (std::size_t at = 0; at < stream.size(); at += cut) {
      const std::string piece = stream.substr(at, cut);
      tail.on_bytes(piece);
    }
    ASSERT_TRUE(tail.timings()) << cut;
    EXPECT_EQ(tail.timings()->cache_n, 600) << cut;
    EXPECT_EQ(tail.timings()->prompt_n, 7) << cut;
    EXPECT_EQ(tail.timings()->predicted_n, 12) << cut;
  }
}

}  // namespace
}  // namespace cairn

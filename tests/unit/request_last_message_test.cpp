#include "request/last_message.hpp"

#include <gtest/gtest.h>

#include <string>

namespace cairn {
namespace {

const std::string words = "Which tour operator in Maui offers sunset whale watching tours for fewer than twenty people?";

// What opens the last message of `before` + `opening` + words + `suffix` is found.
void expect_found(const std::string& before, const std::string& opening, const std::string& suffix) {
  const std::string prompt = before + opening + words + suffix;
  EXPECT_EQ(last_message_bytes(prompt, suffix.size()), before.size()) << prompt;
}

TEST(LastMessage, IsFoundInWhatTemplatesRender) {
  expect_found("<|im_start|>system\nBe kind.<|im_end|>\n", "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n");
  expect_found("<|begin_of_text|>x<|eot_id|>", "<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n");
  expect_found("<start_of_turn>model\nYes.<end_of_turn>\n", "<start_of_turn>user\n", "<end_of_turn>\n<start_of_turn>model\n");
  expect_found("<|start_of_role|>tool<|end_of_role|>1<|end_of_text|>\n", "<|start_of_role|>user<|end_of_role|>", "<|end_of_text|>\n");
  expect_found("<|system|>\nBe kind.<|end|>\n", "<|user|>\n", "<|end|>\n<|assistant|>\n");
  expect_found("<|start|>user<|message|>Hello<|end|>", "<|start|>user<|message|>", "<|end|><|start|>assistant");
  expect_found("<\xEF\xBD\x9C" "Assistant\xEF\xBD\x9C>Yes.", "<\xEF\xBD\x9C" "User\xEF\xBD\x9C>", "<\xEF\xBD\x9C" "Assistant\xEF\xBD\x9C>");
}

TEST(LastMessage, IsFoundInTranscripts) {
  for (const std::string opening : {"user: ", "Human: ", "### User: ", "**User**: ", "[user] ", "AI: ", "Observation: "}) {
    expect_found("Read this.\n\nassistant: yes\n\n", opening, "");
    expect_found("Read this.\n\nassistant: yes\n\n", opening, "\n\nassistant:");
  }
  // Nothing was told of the line that asks for the answer.
  const std::string before = "Read this.\n\n", asked = before + "Human: " + words + "\n\nAssistant:";
  EXPECT_EQ(last_message_bytes(asked, 0), before.size());
}

TEST(LastMessage, OfWhatBeginsThePromptOrIsNoConversationThereIsNone) {
  EXPECT_EQ(last_message_bytes("user: " + words, 0), 0u);
  EXPECT_EQ(last_message_bytes("<|im_start|>user\n" + words + "<|im_end|>\n<|im_start|>assistant\n", 34), 0u);
  EXPECT_EQ(last_message_bytes(words + "\nusers: " + words + "\nThe user: " + words + "\n<tool_call>" + words + "<b>" + words, 0), 0u);
  EXPECT_EQ(last_message_bytes("", 0), 0u);
  EXPECT_EQ(last_message_bytes("<", 5), 0u);
  EXPECT_EQ(last_message_bytes(std::string(100, '<'), 0), 0u);
  EXPECT_EQ(last_message_bytes(std::string(100, '\n') + "user:", 0), 0u);
}

}  // namespace
}  // namespace cairn

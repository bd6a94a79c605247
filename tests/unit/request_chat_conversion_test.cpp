#include "request/chat_conversion.hpp"

#include <gtest/gtest.h>

#include <boost/json.hpp>

#include <string>
#include <vector>

#include "request/json_fields.hpp"
#include "request/prompt_body.hpp"

namespace cairn {
namespace {

struct Row {
  const char* what;
  const char* body;
  const char* chat;  // what build 11669 showed for it in its log, less what says nothing about the prompt
};

boost::json::value json(std::string_view text) { return boost::json::parse(text); }

TEST(ChatOfMessages, IsWhatTheBackendMakesOfThem) {
  const std::vector<Row> rows{
      {"text", R"({"model":"m","max_tokens":9,"temperature":1,"messages":[{"role":"user","content":"x"}]})",
       R"({"messages":[{"role":"user","content":"x"}]})"},
      {"system text", R"({"system":"be","messages":[{"role":"user","content":"x"}]})",
       R"({"messages":[{"role":"system","content":"be"},{"role":"user","content":"x"}]})"},
      {"system blocks",
       R"({"system":[{"type":"text","text":"a ","cache_control":{"type":"ephemeral"}},{"type":"image"},{"type":"text"},{"type":"text","text":"b"}],"messages":[]})",
       R"({"messages":[{"role":"system","content":"a b"}]})"},
      {"no system", R"({"system":null,"messages":[]})", R"({"messages":[]})"},
      {"an empty system is one", R"({"system":[],"messages":[]})", R"({"messages":[{"role":"system","content":""}]})"},
      {"a stamp that differs each time",
       R"({"system":[{"type":"text","text":"x-anthropic-billing-header: v=2; cch=a5145;"},{"type":"text","text":"You, cch=a5145;"}],"messages":[]})",
       R"({"messages":[{"role":"system","content":"x-anthropic-billing-header: v=2; cch=fffff;You, cch=a5145;"}]})"},
      {"a stamp of another form", R"({"system":"x-anthropic-billing-header: cch=a51456;","messages":[]})",
       R"({"messages":[{"role":"system","content":"x-anthropic-billing-header: cch=a51456;"}]})"},
      {"thinking",
       R"({"messages":[{"role":"assistant","content":[{"type":"thinking","thinking":"a","signature":"s"},{"type":"redacted_thinking","data":"x"},{"type":"thinking","thinking":"b"}]}]})",
       R"({"messages":[{"role":"assistant","content":"","reasoning_content":"ab"}]})"},
      {"text blocks stay as they are",
       R"({"messages":[{"role":"user","content":["str",{"type":"text","text":"t","cache_control":{"type":"ephemeral"},"citations":null},{"type":"document"}]}]})",
       R"({"messages":[{"role":"user","content":[{"type":"text","text":"t","cache_control":{"type":"ephemeral"},"citations":null}]}]})"},
      {"a tool is called",
       R"({"messages":[{"role":"assistant","content":[{"type":"text","text":"I look"},{"type":"tool_use","id":"t1","name":"f","input":{"b":1,"a":[1.50,"x\u00e9\/"]}}]}]})",
       R"({"messages":[{"role":"assistant","content":[{"type":"text","text":"I look"}],"tool_calls":[{"id":"t1","type":"function","function":{"name":"f","arguments":"{\"b\":1,\"a\":[1.5,\"xé/\"]}"}}]}]})"},
      {"a call without anything", R"({"messages":[{"role":"assistant","content":[{"type":"tool_use"},{"type":"tool_use","input":"s"},{"type":"tool_use","input":null}]}]})",
       R"({"messages":[{"role":"assistant","content":"","tool_calls":[{"id":"","type":"function","function":{"name":"","arguments":"{}"}},{"id":"","type":"function","function":{"name":"","arguments":"\"s\""}},{"id":"","type":"function","function":{"name":"","arguments":"{}"}}]}]})"},
      {"results come behind the text",
       R"({"messages":[{"role":"user","content":[{"type":"tool_result","tool_use_id":"1","content":[{"type":"text","text":"A"},{"type":"document"},{"type":"text","text":"B"}]},{"type":"tool_result","tool_use_id":"2","content":"s","is_error":true},{"type":"tool_result"},{"type":"text","text":"go on"}]}]})",
       R"({"messages":[{"role":"user","content":[{"type":"text","text":"go on"}]},{"role":"tool","tool_call_id":"1","content":"AB"},{"role":"tool","tool_call_id":"2","content":"s"},{"role":"tool","tool_call_id":"","content":""}]})"},
      {"nothing is left out silently",
       R"({"messages":[{"role":"assistant"},{"role":"user","content":[]},{"role":"assistant","content":null},{"role":"user"},{"role":"user","content":5}]})",
       R"({"messages":[{"role":"assistant","content":null},{"role":"user"},{"role":"user","content":5}]})"},
      {"tools",
       R"({"messages":[],"tools":[{"name":"f","description":"d","input_schema":{"x":1.0},"cache_control":{}},{"type":"web_search_20250305","name":"web_search","max_uses":5}],"tool_choice":{"type":"tool","name":"f"}})",
       R"({"messages":[],"tools":[{"type":"function","function":{"name":"f","description":"d","parameters":{"x":1.0}}},{"type":"function","function":{"name":"web_search","description":"","parameters":{}}}],"tool_choice":"required"})"},
      {"a choice of none is no choice", R"({"messages":[],"tools":[],"tool_choice":{"type":"none"}})", R"({"messages":[],"tools":[]})"},
      {"any tool", R"({"messages":[],"tool_choice":{"type":"any"}})", R"({"messages":[],"tool_choice":"required"})"},
      {"what the template is given", R"({"messages":[],"chat_template_kwargs":{"enable_thinking":false},"thinking":{"type":"disabled"}})",
       R"({"messages":[],"chat_template_kwargs":{"enable_thinking":false}})"},
  };
  for (const Row& row : rows) {
    const Result<ConvertedChat> chat = chat_of_messages(row.body);
    ASSERT_TRUE(chat) << row.what;
    EXPECT_EQ(json(chat->body), json(row.chat)) << row.what << ": " << chat->body;
    EXPECT_FALSE(chat->has_media) << row.what;
  }
}

TEST(ChatOfMessages, ArgumentsAreWrittenAsTheBackendWritesThem) {
  const char* input =
      R"({"z":1.0,"y":1e10,"x":1e20,"w":1.5e-7,"v":0.001,"u":-0.0,"s":1e15,"r":123456.789,"q":1E+16,"p":0.0001,"o":0.00001,)"
      R"("nn":12345678901234567890,"m":-2.50,"l":123456789012345.0, "a" : "\u001f\u007f\b\t\"\\\/\u00e9","b":[ ],"c":{},"d":null,"e":true,"f":0.0})";
  const std::string arguments =
      R"({"z":1.0,"y":10000000000.0,"x":1e+20,"w":1.5e-07,"v":0.001,"u":-0.0,"s":1e+15,"r":123456.789,"q":1e+16,"p":0.0001,"o":1e-05,)"
      R"("nn":12345678901234567890,"m":-2.5,"l":123456789012345.0,"a":"\u001f)" "\x7f" R"(\b\t\"\\/é","b":[],"c":{},"d":null,"e":true,"f":0.0})";
  const auto chat = chat_of_messages(std::string(R"({"messages":[{"role":"assistant","content":[{"type":"tool_use","input":)") + input + "}]}]}");
  ASSERT_TRUE(chat);
  const auto made = json(chat->body);
  EXPECT_EQ(std::string_view{made.at_pointer("/messages/0/tool_calls/0/function/arguments").as_string()}, arguments);
}

TEST(ChatOfMessages, ImagesAreNotOurs) {
  for (const char* content : {R"([{"type":"image","source":{"type":"base64","data":"xx"}},{"type":"text","text":"a"}])",
                              R"([{"type":"tool_result","content":[{"type":"image","source":{"type":"url","url":"u"}}]}])"}) {
    const auto body = parse_prompt_body(PromptForm::messages, std::string(R"({"messages":[{"role":"user","content":)") + content + "}]}");
    ASSERT_TRUE(body) << content;
    EXPECT_TRUE(body->has_media) << content;
  }
  const auto body = parse_prompt_body(PromptForm::messages, R"({"messages":[{"role":"user","content":"{\"type\":\"image\"}"}]})");
  ASSERT_TRUE(body);
  EXPECT_FALSE(body->has_media);
}

TEST(ChatOfMessages, WhatCannotBeReadIsLeftToTheBackend) {
  for (const char* text : {"", "[]", "{}", R"({"messages":"x"})", R"({"messages":null})", R"({"messages":[})", R"({"prompt":"x"})"}) {
    const auto chat = chat_of_messages(text);
    ASSERT_FALSE(chat) << text;
    EXPECT_EQ(chat.error().code, ErrorCode::malformed) << text;
  }
  const std::string deep = R"({"messages":)" + std::string(100'000, '[') + std::string(100'000, ']') + "}";
  EXPECT_FALSE(chat_of_messages(deep));
  const std::string schema = R"({"messages":[],"tools":[{"input_schema":)" + std::string(100, '[') + std::string(100, ']') + "}]}";
  EXPECT_TRUE(chat_of_messages(schema)) << "schemas nest deeper than parsers allow by default";
}

TEST(ChatOfResponses, IsWhatTheBackendMakesOfThem) {
  const std::vector<Row> rows{
      {"text", R"({"input":"hi","max_output_tokens":3})", R"({"messages":[{"role":"user","content":"hi"}]})"},
      {"instructions", R"({"input":"hi","instructions":"be"})",
       R"({"messages":[{"role":"system","content":"be"},{"role":"user","content":"hi"}]})"},
      {"null instructions are some", R"({"input":[],"instructions":null})", R"({"messages":[{"role":"system","content":""}]})"},
      {"items of text",
       R"({"input":[{"role":"developer","content":"dev"},{"role":"user","content":[{"type":"input_text","text":"a","foo":1},{"type":"input_text","text":"b"}],"type":"message","status":"completed","id":"x"}]})",
       R"({"messages":[{"role":"developer","content":[{"text":"dev","type":"text"}]},{"role":"user","content":[{"text":"a","type":"text"},{"text":"b","type":"text"}],"id":"x"}]})"},
      {"answers in a row are one",
       R"({"input":[{"type":"message","role":"assistant","content":[{"type":"output_text","text":"A","annotations":[]}],"id":"1","status":"completed"},{"type":"message","role":"assistant","content":"B"}]})",
       R"({"messages":[{"role":"assistant","content":[{"text":"A","type":"text"},{"text":"B","type":"text"}],"id":"1"}]})"},
      {"a thought, an answer and its calls are one",
       R"({"input":[{"type":"reasoning","id":"rs","summary":[],"content":[{"type":"reasoning_text","text":"R"},{"type":"reasoning_text","text":"S"}]},{"type":"message","role":"assistant","content":[{"type":"output_text","text":"A"}],"id":"1"},{"type":"function_call","call_id":"c","name":"f","arguments":"{\"a\":1.50}","id":"fc"},{"type":"function_call","call_id":"d","name":"g","arguments":""},{"type":"function_call_output","call_id":"c","output":"o"},{"type":"function_call_output","call_id":"d","output":[{"type":"input_text","text":"p","z":1}]}]})",
       R"({"messages":[{"role":"assistant","content":[{"text":"A","type":"text"}],"reasoning_content":"R","tool_calls":[{"function":{"arguments":"{\"a\":1.50}","name":"f"},"id":"c","type":"function"},{"function":{"arguments":"","name":"g"},"id":"d","type":"function"}]},{"content":"o","role":"tool","tool_call_id":"c"},{"content":[{"type":"text","text":"p","z":1}],"role":"tool","tool_call_id":"d"}]})"},
      {"a call before the answer",
       R"({"input":[{"type":"function_call","call_id":"c","name":"f","arguments":"{}"},{"type":"reasoning","summary":[],"content":[{"text":"R"}]},{"type":"message","role":"assistant","content":[{"type":"output_text","text":"A"}]}]})",
       R"({"messages":[{"role":"assistant","tool_calls":[{"function":{"arguments":"{}","name":"f"},"id":"c","type":"function"}],"reasoning_content":"R","content":[{"text":"A","type":"text"}]}]})"},
      {"a lone thought", R"({"input":[{"type":"reasoning","summary":[],"content":[{"text":"R"}]}]})",
       R"({"messages":[{"role":"assistant","content":[],"reasoning_content":"R"}]})"},
      {"tools",
       R"({"input":"x","tools":[{"type":"function","name":"f","description":"d","parameters":{"x":1.0},"strict":null},{"type":"web_search"},{"type":"function","name":"g"}],"tool_choice":{"type":"function","name":"f"}})",
       R"({"tool_choice":{"type":"function","name":"f"},"messages":[{"role":"user","content":"x"}],"tools":[{"type":"function","function":{"name":"f","description":"d","parameters":{"x":1.0},"strict":null}},{"type":"function","function":{"name":"g","strict":true}}]})"},
      {"no function among them", R"({"input":"x","tools":[{"type":"web_search"}]})", R"({"messages":[{"role":"user","content":"x"}]})"},
      {"the rest is handed on",
       R"({"input":"x","messages":[1],"text":{"format":{}},"reasoning":{"effort":"high","summary":"auto"},"previous_response_id":null,"chat_template_kwargs":{"enable_thinking":false}})",
       R"({"text":{"format":{}},"previous_response_id":null,"chat_template_kwargs":{"enable_thinking":false},"messages":[{"role":"user","content":"x"}],"reasoning_effort":"high"})"},
  };
  for (const Row& row : rows) {
    const Result<ConvertedChat> chat = chat_of_responses(row.body);
    ASSERT_TRUE(chat) << row.what;
    EXPECT_EQ(json(chat->body), json(row.chat)) << row.what << ": " << chat->body;
    EXPECT_FALSE(chat->has_media) << row.what;
  }
}

TEST(ChatOfResponses, WhatTheBackendRefusesIsLeftToIt) {
  for (const char* text :
       {"", "{}", R"({"input":{"a":1}})", R"({"input":5})", R"({"input":"x","previous_response_id":"r"})", R"({"input":"x","tools":{}})",
        R"({"input":["x"]})", R"({"input":[{"role":"assistant","content":"no type"}]})", R"({"input":[{"type":"item_reference","id":"x"}]})",
        R"({"input":[{"role":"user"}]})", R"({"input":[{"role":"user","content":[{"type":"text","text":"a"}]}]})",
        R"({"input":[{"role":"user","content":[{"type":"input_file","file_id":"x"}]}]})",
        R"({"input":[{"type":"message","role":"assistant","content":[{"type":"refusal","refusal":"no"}]}]})",
        R"({"input":[{"type":"reasoning","summary":[{"type":"summary_text","text":"S"}]}]})",
        R"({"input":[{"type":"reasoning","summary":[],"content":[]}]})", R"({"input":[{"type":"reasoning","content":[{"text":"R"}]}]})",
        R"({"input":[{"type":"function_call","call_id":"c","name":"f"}]})", R"({"input":[{"type":"function_call_output","call_id":"c"}]})",
        R"({"input":[{"type":"function_call_output","call_id":"c","output":[{"type":"output_text","text":"a"}]}]})",
        R"({"input":[{"type":"custom_tool_call","call_id":"c","name":"f","input":"q"}]})"}) {
    const auto chat = chat_of_responses(text);
    ASSERT_FALSE(chat) << text;
    EXPECT_EQ(chat.error().code, ErrorCode::malformed) << text;
  }
}

TEST(ChatOfResponses, ImagesAreNotOurs) {
  for (const char* item : {R"({"role":"user","content":[{"type":"input_text","text":"a"},{"type":"input_image","image_url":"u"}]})",
                           R"({"type":"function_call_output","call_id":"c","output":[{"type":"input_image","image_url":"u"}]})"}) {
    const auto body = parse_prompt_body(PromptForm::responses, std::string(R"({"input":[)") + item + "]}");
    ASSERT_TRUE(body) << item;
    EXPECT_TRUE(body->has_media) << item;
    EXPECT_TRUE(body->takes_slot);
  }
}

// The backend drops what it does not take over into the chat: an id_slot, a number of answers, adapters.
TEST(PromptBody, OfMessagesOnlyStreamAndCachePromptAreRead) {
  const auto body = parse_prompt_body(
      PromptForm::messages, R"({"messages":[],"stream":true,"cache_prompt":false,"id_slot":-1,"n":3,"lora":[{"id":0}],"return_progress":true})");
  ASSERT_TRUE(body);
  EXPECT_TRUE(body->stream);
  EXPECT_EQ(body->cache_prompt, false);
  EXPECT_FALSE(body->takes_slot || body->id_slot || body->several || !body->lora.empty() || body->return_progress);
  EXPECT_FALSE(body->chat.empty());
}

}  // namespace
}  // namespace cairn

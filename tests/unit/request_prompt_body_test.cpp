#include "request/prompt_body.hpp"

#include <gtest/gtest.h>

#include <boost/json.hpp>

#include <chrono>
#include <string>

namespace cairn {
namespace {

using Part = std::variant<std::string, Token>;
using Parts = std::vector<Part>;

Result<PromptBody> completion(std::string_view text) { return parse_prompt_body(PromptForm::completion, text); }
Result<PromptBody> chat(std::string_view text) { return parse_prompt_body(PromptForm::chat, text); }

TEST(PromptBody, PromptsOfCompletions) {
  struct Row {
    const char* body;
    Parts prompt;
    bool several;
    bool media;
  };
  const std::vector<Row> rows{
      {R"({"prompt":"hello"})", {"hello"}, false, false},
      {R"({"prompt":""})", {""}, false, false},
      {R"({"prompt":"a\"b\\\n\u00e9\ud83d\ude00\u0000c"})", {std::string("a\"b\\\n\xc3\xa9\xf0\x9f\x98\x80\0c", 13)}, false, false},
      {"{\"prompt\":\"gr\xc3\xbc\xc3\x9f\"}", {"gr\xc3\xbc\xc3\x9f"}, false, false},
      {R"({"prompt":[1,2,3]})", {Token{1}, Token{2}, Token{3}}, false, false},
      {R"({"prompt":[0]})", {Token{0}}, false, false},
      {R"({"prompt":["hello"]})", {"hello"}, false, false},
      {R"({"prompt":[12,"hello",34]})", {Token{12}, "hello", Token{34}}, false, false},
      {R"({"prompt":["hello",34,"you"]})", {"hello", Token{34}, "you"}, false, false},
      {R"({"prompt":["a","b"]})", {"a", "b"}, true, false},
      {R"({"prompt":[[1,2],[3]]})", {}, true, false},
      {R"({"prompt":[[1,2]]})", {}, true, false},
      {R"({"prompt":["a",[1]]})", {"a"}, true, false},
      {R"({"prompt":{"prompt_string":"<x>","multimodal_data":["…"]}})", {}, false, true},
      {R"({"prompt":[{"prompt_string":"<x>"}]})", {}, true, false},
      {R"({"\u0070rompt":"escaped key"})", {"escaped key"}, false, false},
      {" \n\t{ \"prompt\" : \"spaces\" , \"x\" : [ { } ] } \n", {"spaces"}, false, false},
      {R"({"x":{"prompt":"not this"},"prompt":"this","y":["prompt","nor this"]})", {"this"}, false, false},
      {R"({"messages":"whatever","prompt":"a"})", {"a"}, false, false},
  };
  for (const Row& row : rows) {
    const auto body = completion(row.body);
    ASSERT_TRUE(body) << row.body << ": " << to_string(body.error());
    EXPECT_EQ(body->several, row.several) << row.body;
    EXPECT_EQ(body->has_media, row.media) << row.body;
    if (!row.several) EXPECT_EQ(body->prompt, row.prompt) << row.body;
    EXPECT_EQ(body->form, PromptForm::completion);
  }
}

TEST(PromptBody, WhatCannotBeReadIsLeftToTheBackend) {
  for (const char* text : {"", " ", "null", "[]", "3", "\"x\"", "{", "{}", R"({"prompt"})", R"({"prompt":})", R"({"prompt":null})",
                           R"({"prompt":true})", R"({"prompt":3})", R"({"prompt":[]})", R"({"prompt":[1.5]})", R"({"prompt":[true]})",
                           R"({"prompt":[null]})", R"({"prompt":["a)", R"({"prompt":"a)", R"({"prompt":"a",)", R"({"prompt":"a" "b":1})",
                           R"({"prompt":"\ud800"})", "{\"prompt\":\"\xff\"}", "{\"prompt\":\"\x01\"}", "not json", R"({'prompt':'a'})"}) {
    const auto body = completion(text);
    ASSERT_FALSE(body) << text;
    EXPECT_EQ(body.error().code, ErrorCode::malformed) << text;
    EXPECT_EQ(body.error().source, ErrorSource::downstream);
  }
  for (const char* text : {"{}", R"({"prompt":"a"})", R"({"messages":"a"})", R"({"messages":{}})", R"({"messages":null})", R"({"messages":[})"}) {
    EXPECT_FALSE(chat(text)) << text;
  }
}

TEST(PromptBody, Chat) {
  const auto body = chat(R"({"model":"m","messages":[{"role":"user","content":"hi"}],"stream":true,"return_progress":true,"prompt":7})");
  ASSERT_TRUE(body);
  EXPECT_TRUE(body->has_messages && body->stream && body->return_progress);
  EXPECT_FALSE(body->several || !body->lora.empty() || body->has_media);
  EXPECT_TRUE(body->prompt.empty());
  EXPECT_FALSE(body->id_slot || body->cache_prompt);
  EXPECT_TRUE(chat(R"({"messages":[]})"));
}

TEST(PromptBody, Media) {
  for (const char* content : {R"([{"type":"image_url","image_url":{"url":"data:"}}])", R"([ { "type" : "input_audio" } ])",
                              R"([{"type":"input_video","input_video":{"data":""}}])",
                              R"([{"type":"text","text":"a"},{"type":"input_image"}])"}) {
    const auto body = chat(std::string(R"({"messages":[{"role":"user","content":)") + content + "}]}");
    ASSERT_TRUE(body);
    EXPECT_TRUE(body->has_media) << content;
  }
  // Somebody who talks about it.
  const auto body = chat(R"({"messages":[{"role":"user","content":"use {\"type\":\"image_url\"} or image_url"}],"note":"image_url"})");
  ASSERT_TRUE(body);
  EXPECT_FALSE(body->has_media);
}

TEST(PromptBody, OtherMembers) {
  const auto with = [](std::string_view members) {
    auto body = completion(R"({"prompt":"a",)" + std::string(members) + "}");
    EXPECT_TRUE(body) << members;
    return body ? *body : PromptBody{};
  };
  EXPECT_TRUE(with(R"("stream":true)").stream);
  EXPECT_FALSE(with(R"("stream":false)").stream);
  EXPECT_FALSE(with(R"("stream":null)").stream);
  EXPECT_FALSE(with(R"("stream":"true")").stream);
  EXPECT_EQ(with(R"("id_slot":2)").id_slot, 2);
  EXPECT_FALSE(with(R"("id_slot":-1)").id_slot) << "clients that spell out defaults were taken to refuse the cache";
  EXPECT_FALSE(with(R"("id_slot":1,"id_slot":-1)").id_slot);
  EXPECT_EQ(with(R"("id_slot":-1,"id_slot":1)").id_slot, 1);
  EXPECT_FALSE(with(R"("id_slot":null)").id_slot);
  EXPECT_FALSE(with(R"("id_slot":1,"id_slot":null)").id_slot);
  for (const char* other : {R"("id_slot":-2)", R"("id_slot":"x")", R"("id_slot":4294967295)", R"("id_slot":4294967296)"}) {
    EXPECT_LT(with(other).id_slot.value_or(0), 0) << other;
  }
  EXPECT_EQ(with(R"("cache_prompt":true)").cache_prompt, true);
  EXPECT_EQ(with(R"("cache_prompt":false)").cache_prompt, false);
  EXPECT_TRUE(with(R"("cache_prompt":null)").cache_prompt.has_value());
  EXPECT_FALSE(with(R"("n":1)").several);
  EXPECT_TRUE(with(R"("n":2)").several);
  EXPECT_TRUE(with(R"("n_cmpl":4)").several);
  EXPECT_TRUE(with(R"("best_of":3)").several);
  EXPECT_FALSE(with(R"("n":null)").several);
  EXPECT_FALSE(with(R"("n_predict":100)").several);
  EXPECT_EQ(with(R"("lora":[{"id":0,"scale":0.5}])").lora, R"([{"id":0,"scale":0.5}])");
  EXPECT_EQ(with(R"("lora":[])").lora, "");
  EXPECT_EQ(with(R"("lora":null)").lora, "");
}

TEST(PromptBody, Infill) {
  const auto infill = [](std::string_view text) { return parse_prompt_body(PromptForm::infill, text); };
  const auto body = infill(
      R"({"input_prefix":"a\n","input_suffix":"b","prompt":" c","input_extra":[{"filename":"x.h","text":"one"},{"text":"two","time":3}],"id_slot":1,"stream":true})");
  ASSERT_TRUE(body);
  EXPECT_EQ(body->infill.prefix, "a\n");
  EXPECT_EQ(body->infill.suffix, "b");
  EXPECT_EQ(body->infill.prompt, " c");
  ASSERT_EQ(body->infill.files.size(), 2u);
  EXPECT_EQ(body->infill.files[0].name, "x.h");
  EXPECT_EQ(body->infill.files[0].text, "one");
  EXPECT_EQ(body->infill.files[1].name, "tmp") << "as the backend calls what has no name";
  EXPECT_TRUE(body->stream && body->takes_slot);
  EXPECT_EQ(body->id_slot, 1);
  EXPECT_TRUE(infill(R"({"input_prefix":"","input_suffix":"","prompt":null,"input_extra":null})"));
  EXPECT_TRUE(infill(R"({"input_prefix":"","input_suffix":"","input_extra":[]})"));
  for (const char* text : {"", "[]", "{}", R"({"input_prefix":"a"})", R"({"input_suffix":"a"})", R"({"input_prefix":null,"input_suffix":"a"})",
                           R"({"input_prefix":[5,"a"],"input_suffix":"a"})", R"({"input_prefix":"a","input_suffix":"a","prompt":[1]})",
                           R"({"input_prefix":"a","input_suffix":"a","input_extra":"x"})", R"({"input_prefix":"a","input_suffix":"a","input_extra":[{}]})",
                           R"({"input_prefix":"a","input_suffix":"a","input_extra":[{"text":5}]})",
                           R"({"input_prefix":"a","input_suffix":"a","input_extra":[{"text":"a","filename":5}]})"}) {
    const auto refused = infill(text);
    ASSERT_FALSE(refused) << text;
    EXPECT_EQ(refused.error().code, ErrorCode::malformed) << text;
  }
}

// The backend's parser keeps the last of several members with one name.
TEST(PromptBody, OfDuplicatesTheLastCounts) {
  EXPECT_FALSE(completion(R"({"stream":true,"prompt":"a","stream":false})")->stream);
  EXPECT_EQ(completion(R"({"id_slot":1,"prompt":"a","id_slot":2})")->id_slot, 2);
  EXPECT_EQ(completion(R"({"prompt":"a","prompt":"b"})")->prompt, Parts{"b"});
  EXPECT_EQ(completion(R"({"prompt":[1,2],"prompt":[3]})")->prompt, Parts{Token{3}});
}

TEST(PromptBody, DeepAndLongBodies) {
  std::string deep = R"({"prompt":"a","x":)" + std::string(900, '[') + std::string(900, ']') + "}";
  const auto nested = completion(deep);
  ASSERT_TRUE(nested);
  EXPECT_EQ(nested->prompt, Parts{"a"});
  // Deeper than any parser goes: either way, but not a crash.
  deep = R"({"x":)" + std::string(200'000, '[') + std::string(200'000, ']') + R"(,"prompt":"a"})";
  (void)completion(deep);
  for (const char* more : {"}", ",", "1", " {}", "\n]"}) EXPECT_FALSE(completion(R"({"prompt":"a"})" + std::string(more))) << more;
  (void)completion(R"({"prompt":)" + std::string(100'000, '['));
  (void)chat(R"({"messages":)" + std::string(100'000, '[') + std::string(100'000, ']') + "}");

  const std::string megabyte(1 << 20, 'x');
  const auto big = completion(R"({"prompt":")" + megabyte + R"(","stream":true})");
  ASSERT_TRUE(big);
  EXPECT_EQ(std::get<std::string>(big->prompt.at(0)), megabyte);
  EXPECT_TRUE(big->stream);
  std::string ids = R"({"prompt":[0)";
  for (int i = 1; i < 200'000; ++i) ids += "," + std::to_string(i);
  const auto many = completion(ids + "]}");
  ASSERT_TRUE(many);
  ASSERT_EQ(many->prompt.size(), 200'000u);
  EXPECT_EQ(std::get<Token>(many->prompt.back()), 199'999);
}

TEST(SpliceSlot, EveryOtherByteStays) {
  struct Row {
    const char* body;
    const char* spliced;
  };
  for (const Row& row : std::initializer_list<Row>{
           {R"({"prompt":"a"})", R"({"prompt":"a","id_slot":3,"cache_prompt":true})"},
           {"  \r\n{ \"prompt\" : \"}\" }\n ", "  \r\n{ \"prompt\" : \"}\" ,\"id_slot\":3,\"cache_prompt\":true}\n "},
           {"{}", R"({"id_slot":3,"cache_prompt":true})"},
           {"{ \n }", "{ \n \"id_slot\":3,\"cache_prompt\":true}"},
           {R"({"a":{}})", R"({"a":{},"id_slot":3,"cache_prompt":true})"},
           {R"({"n":1.0,"x":1e+05,"\u0061":"\/"})", R"({"n":1.0,"x":1e+05,"\u0061":"\/","id_slot":3,"cache_prompt":true})"}}) {
    EXPECT_EQ(splice_slot(row.body, 3, true), row.spliced);
    boost::system::error_code error;
    const auto parsed = boost::json::parse(row.spliced, error);
    EXPECT_FALSE(error) << row.spliced;
    EXPECT_EQ(parsed.at("id_slot").as_int64(), 3);
  }
  EXPECT_EQ(splice_slot(R"({"prompt":"a"})", 0, std::nullopt), R"({"prompt":"a","id_slot":0})");
  EXPECT_EQ(splice_slot("{}", 12, std::nullopt), R"({"id_slot":12})");
}

TEST(SpliceSlot, TheResultIsReadLikeTheOriginal) {
  for (const char* text : {R"({"prompt":"a","stream":true})", R"({"prompt":[1,"x"],"n":2})", R"({"prompt":"a","cache_prompt":false})"}) {
    const auto before = completion(text);
    const auto after = completion(splice_slot(text, 1, before->cache_prompt ? std::nullopt : std::optional(true)));
    ASSERT_TRUE(before && after);
    EXPECT_EQ(after->prompt, before->prompt);
    EXPECT_EQ(after->stream, before->stream);
    EXPECT_EQ(after->several, before->several);
    EXPECT_EQ(after->id_slot, 1);
    EXPECT_EQ(after->cache_prompt, before->cache_prompt.value_or(true));
  }
}

}  // namespace
}  // namespace cairn

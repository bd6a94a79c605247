#include "backend/llama_api.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <boost/json.hpp>

#include "unit/run_to_end.hpp"
#include "unit/scripted_upstream.hpp"
#include "unit/wire.hpp"

namespace cairn {
namespace {

using test::run_to_end;
using test::ScriptedUpstream;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
namespace json = boost::json;

// Answers without sockets.
class LlamaApiTest : public ::testing::Test {
 protected:
  LlamaApiTest() {
    upstream_.answer_with([this](const RequestHead& head, std::string_view body) -> Result<ScriptedUpstream::Reply> {
      method_ = head.method;
      target_ = head.target;
      sent_ = std::string(body);
      authorization_ = std::string(head.fields.get("Authorization").value_or(""));
      content_type_ = std::string(head.fields.get("Content-Type").value_or(""));
      if (trouble_) return *trouble_;
      return ScriptedUpstream::Reply{status_, answer_};
    });
  }
  void answers(std::string body, int status = 200) {
    answer_ = std::move(body);
    status_ = status;
    trouble_.reset();
  }
  json::value sent() const { return json::parse(sent_); }

  // All calls, as functions that give their error.
  std::vector<std::pair<std::string, std::function<std::optional<Error>()>>> all_calls() {
    const auto error_of = [](auto result) { return result ? std::nullopt : std::optional<Error>(result.error()); };
    static const Tokens tokens{1, 2};
    return {{"props", [=, this] { return error_of(run_to_end(api_.props(cancel_))); }},
            {"models", [=, this] { return error_of(run_to_end(api_.model_meta(cancel_))); }},
            {"slots", [=, this] { return error_of(run_to_end(api_.slots(cancel_))); }},
            {"template", [=, this] { return error_of(run_to_end(api_.apply_template("{}", cancel_))); }},
            {"tokenize", [=, this] { return error_of(run_to_end(api_.tokenize("x", false, cancel_))); }},
            {"save", [=, this] { return error_of(run_to_end(api_.save(0, "f", cancel_))); }},
            {"restore", [=, this] { return error_of(run_to_end(api_.restore(0, "f", cancel_))); }},
            {"logprobs", [=, this] { return error_of(run_to_end(api_.top_logprobs(0, tokens, 5, cancel_))); }}};
  }

  ScriptedUpstream upstream_;
  LlamaApi api_{upstream_, "secret"};
  CancelSource cancel_;
  std::string answer_, method_, target_, sent_, authorization_, content_type_;
  int status_ = 200;
  std::optional<Error> trouble_;
};

TEST_F(LlamaApiTest, Health) {
  answers(R"({"status":"ok"})");
  EXPECT_TRUE(*run_to_end(api_.healthy(cancel_)));
  EXPECT_EQ(method_ + " " + target_, "GET /health");
  EXPECT_EQ(authorization_, "Bearer secret");
  answers(R"({"error":{"message":"Loading model","code":503}})", 503);
  EXPECT_FALSE(*run_to_end(api_.healthy(cancel_)));
  answers("", 500);
  EXPECT_EQ(run_to_end(api_.healthy(cancel_)).error().status, 500);
  trouble_ = upstream_error(ErrorCode::refused, "nobody");
  EXPECT_EQ(run_to_end(api_.healthy(cancel_)).error().code, ErrorCode::refused);
}

TEST_F(LlamaApiTest, WithoutAKeyNoneIsSent) {
  LlamaApi api(upstream_, "");
  answers("[]");
  ASSERT_TRUE(run_to_end(api.slots(cancel_)));
  EXPECT_EQ(authorization_, "");
}

TEST_F(LlamaApiTest, Props) {
  answers(R"({"default_generation_settings":{"params":{"seed":-1},"n_ctx":4096},"total_slots":4,"model_path":"/m/x.gguf",)"
          R"("modalities":{"vision":false},"endpoint_metrics":true,"media_marker":"<__m_1__>",)"
          R"("is_sleeping":true,"chat_template":"{{x}}","build_info":"b11669-abc"})");
  const auto props = run_to_end(api_.props(cancel_));
  ASSERT_TRUE(props);
  EXPECT_EQ(props->total_slots, 4);
  EXPECT_EQ(props->model_path, "/m/x.gguf");
  EXPECT_EQ(props->build_info, "b11669-abc");
  EXPECT_EQ(props->media_marker, "<__m_1__>");
  EXPECT_TRUE(props->endpoint_metrics && props->sleeping);
  answers("{}");
  const auto bare = run_to_end(api_.props(cancel_));
  ASSERT_TRUE(bare);
  EXPECT_EQ(bare->total_slots, 0);
  EXPECT_FALSE(bare->endpoint_metrics || bare->sleeping);
  answers(R"({"total_slots":"four","model_path":7,"endpoint_metrics":1,"build_info":null})");
  EXPECT_TRUE(run_to_end(api_.props(cancel_)));
}

TEST_F(LlamaApiTest, ModelMeta) {
  answers(R"({"models":[{}],"object":"list","data":[{"id":"m","meta":{"vocab_type":2,"n_vocab":151936,"n_ctx":8192,"n_ctx_train":32768,)"
          R"("n_embd":1024,"n_params":751632384,"size":18446744073709551615,"ftype":"Q8_0"}},{"id":"other"}]})");
  const auto meta = run_to_end(api_.model_meta(cancel_));
  ASSERT_TRUE(meta);
  EXPECT_EQ(meta->id, "m");
  EXPECT_EQ(meta->n_vocab, 151936);
  EXPECT_EQ(meta->n_ctx, 8192);
  EXPECT_EQ(meta->n_params, 751632384);
  EXPECT_EQ(meta->ftype, "Q8_0");
  for (const char* bare : {R"({"data":[{"id":"m"}]})", R"({"data":[{"id":"m","meta":null}]})"}) {
    answers(bare);
    const auto without = run_to_end(api_.model_meta(cancel_));
    ASSERT_TRUE(without) << bare;
    EXPECT_EQ(without->n_vocab, 0);
  }
  for (const char* wrong : {R"({"data":[]})", R"({"data":[1]})", R"({"data":{}})", R"({})"}) {
    answers(wrong);
    EXPECT_EQ(run_to_end(api_.model_meta(cancel_)).error().code, ErrorCode::malformed) << wrong;
  }
}

TEST_F(LlamaApiTest, Slots) {
  answers(R"([{"id":0,"n_ctx":512,"is_processing":true,"n_prompt_tokens":17402,"params":{"stop":[]}},{"id":1,"is_processing":false},{}])");
  const auto slots = run_to_end(api_.slots(cancel_));
  ASSERT_TRUE(slots);
  ASSERT_EQ(slots->size(), 3u);
  EXPECT_TRUE(slots->at(0).processing);
  EXPECT_EQ(slots->at(0).n_prompt_tokens, 17402);
  EXPECT_EQ(slots->at(1).n_prompt_tokens, std::nullopt);
  EXPECT_EQ(slots->at(2).id, 2);
  answers("[]");
  EXPECT_TRUE(run_to_end(api_.slots(cancel_))->empty());
  answers("[3]");
  EXPECT_EQ(run_to_end(api_.slots(cancel_)).error().code, ErrorCode::malformed);
  answers(R"({"error":{"code":501,"message":"This server does not support slots endpoint."}})", 501);
  EXPECT_EQ(run_to_end(api_.slots(cancel_)).error().code, ErrorCode::rejected);
}

TEST_F(LlamaApiTest, LoraAdapters) {
  answers(R"([{"id":0}])");
  EXPECT_EQ(*run_to_end(api_.lora_adapters(cancel_)), R"([{"id":0}])");
  answers("no", 404);
  EXPECT_EQ(*run_to_end(api_.lora_adapters(cancel_)), "[]");
  trouble_ = upstream_error(ErrorCode::closed, "gone");
  EXPECT_FALSE(run_to_end(api_.lora_adapters(cancel_)));
}

TEST_F(LlamaApiTest, ApplyTemplate) {
  answers(R"({"prompt":"<|im_start|>user\n\u00e4 \"x\"<|im_end|>\n"})");
  EXPECT_EQ(*run_to_end(api_.apply_template(R"({"messages":[ 1 ]})", cancel_)), "<|im_start|>user\n\xc3\xa4 \"x\"<|im_end|>\n");
  EXPECT_EQ(method_ + " " + target_, "POST /apply-template");
  EXPECT_EQ(sent_, R"({"messages":[ 1 ]})");
  EXPECT_EQ(content_type_, "application/json");
}

TEST_F(LlamaApiTest, Tokenize) {
  answers(R"({"tokens":[{"id":1,"piece":""},{"piece":" h\u00e4\n","id":450},{"id":7,"piece":[195,164,32]},{"id":8,"piece":[255]}]})");
  const auto pieces = run_to_end(api_.tokenize("a \"quote\" \n \xf0\x9f\x98\x80 \x01", true, cancel_));
  ASSERT_TRUE(pieces);
  EXPECT_THAT(pieces->tokens, ElementsAre(1, 450, 7, 8));
  EXPECT_THAT(pieces->piece_bytes, ElementsAre(0, 5, 3, 1));
  EXPECT_EQ(sent().at("content").as_string(), "a \"quote\" \n \xf0\x9f\x98\x80 \x01");
  EXPECT_TRUE(sent().at("add_special").as_bool() && sent().at("parse_special").as_bool() && sent().at("with_pieces").as_bool());
  answers(R"({"tokens":[]})");
  EXPECT_THAT(run_to_end(api_.tokenize("", false, cancel_))->tokens, IsEmpty());
  for (const char* wrong : {R"({"tokens":[1,2]})", R"({"tokens":[{"id":1}]})", R"({"tokens":[{"piece":"a"}]})", R"({"tokens":[{"id":"a","piece":"a"}]})",
                            R"({"tokens":[{"id":1,"piece":7}]})", R"({"tokens":{}})", R"({"tokens":[{"id":1,"piece":"a"})"}) {
    answers(wrong);
    const auto refused = run_to_end(api_.tokenize("x", false, cancel_));
    ASSERT_FALSE(refused) << wrong;
    EXPECT_EQ(refused.error().code, ErrorCode::malformed) << wrong;
  }
}

TEST_F(LlamaApiTest, SaveAndRestore) {
  answers(R"({"id_slot":2,"filename":"f.bin","n_saved":1745,"n_written":14309796,"timings":{"save_ms":49.865}})");
  const auto saved = run_to_end(api_.save(2, "f.bin", cancel_));
  ASSERT_TRUE(saved);
  EXPECT_EQ(method_ + " " + target_, "POST /slots/2?action=save");
  EXPECT_EQ(sent().at("filename").as_string(), "f.bin");
  EXPECT_EQ(saved->n_tokens, 1745);
  EXPECT_EQ(saved->bytes, 14309796);
  EXPECT_DOUBLE_EQ(saved->seconds, 0.049865);
  answers(R"({"id_slot":2,"filename":"f.bin","n_restored":1745,"n_read":14309796,"timings":{"restore_ms":42.937}})");
  const auto restored = run_to_end(api_.restore(2, "f.bin", cancel_));
  ASSERT_TRUE(restored);
  EXPECT_EQ(target_, "/slots/2?action=restore");
  EXPECT_EQ(restored->n_tokens, 1745);
  EXPECT_DOUBLE_EQ(restored->seconds, 0.042937);
  answers("{}");
  EXPECT_EQ(run_to_end(api_.save(0, "f", cancel_))->n_tokens, 0);
  answers("[]");
  EXPECT_EQ(run_to_end(api_.save(0, "f", cancel_)).error().code, ErrorCode::malformed);
}

TEST_F(LlamaApiTest, SlotActionsThatAreOff) {
  answers(R"({"error":{"code":501,"message":"This server does not support slots action. Start it with `--slot-save-path`","type":"not_supported_error"}})", 501);
  EXPECT_EQ(run_to_end(api_.save(0, "f", cancel_)).error().code, ErrorCode::unsupported);
  answers(R"({"error":{"code":400,"message":"start it with --slot-save-path"}})", 400);
  EXPECT_EQ(run_to_end(api_.restore(0, "f", cancel_)).error().code, ErrorCode::unsupported);
  answers(R"({"error":{"code":400,"message":"Unable to restore slot"}})", 400);
  const auto refused = run_to_end(api_.restore(0, "f", cancel_));
  EXPECT_EQ(refused.error().code, ErrorCode::rejected);
  EXPECT_EQ(refused.error().status, 400);
  EXPECT_THAT(refused.error().context, HasSubstr("Unable to restore"));
}

// On a busy machine a router answered a save so, and Cairn said that the disk was full.
TEST_F(LlamaApiTest, WhatARouterCouldNotPassOnIsSentOnceMoreAndIsNoRefusal) {
  const std::string unreachable = R"({"error":{"code":500,"message":"proxy error: Could not establish connection","type":"server_error"}})";
  LlamaApi routed(upstream_, "", ModelRoute{"", "granite"});
  int replies = 0;
  upstream_.answer_with([&](const RequestHead&, std::string_view) -> Result<ScriptedUpstream::Reply> {
    if (replies++ == 0) return ScriptedUpstream::Reply{500, unreachable};
    return ScriptedUpstream::Reply{200, R"({"n_saved":7,"n_written":300})"};
  });
  const auto saved = run_to_end(routed.save(0, "f", cancel_));
  ASSERT_TRUE(saved);
  EXPECT_EQ(saved->n_tokens, 7);
  upstream_.answer_with([&](const RequestHead&, std::string_view) -> Result<ScriptedUpstream::Reply> {
    return ScriptedUpstream::Reply{500, unreachable};
  });
  upstream_.calls = 0;
  const auto failed = run_to_end(routed.save(0, "f", cancel_));
  ASSERT_FALSE(failed);
  EXPECT_EQ(failed.error().code, ErrorCode::refused);
  EXPECT_EQ(upstream_.calls, 2);
  // A server of one model has nobody to pass anything on to: it quotes somebody.
  EXPECT_EQ(run_to_end(api_.save(0, "f", cancel_)).error().code, ErrorCode::rejected);
  EXPECT_EQ(upstream_.calls, 3);
}

TEST_F(LlamaApiTest, Wash) {
  answers(R"({"timings":{"prompt_n":1}})");
  ASSERT_TRUE(run_to_end(api_.wash(3, cancel_)));
  EXPECT_EQ(sent().at("id_slot").as_int64(), 3);
  EXPECT_FALSE(sent().at("cache_prompt").as_bool());
  answers("", 500);
  EXPECT_FALSE(run_to_end(api_.wash(3, cancel_)));
}

TEST_F(LlamaApiTest, TopLogprobs) {
  answers(R"({"timings":{"prompt_n":4},"completion_probabilities":[{"id":9,"logprob":-0.1,"top_logprobs":[{"id":9,"token":"a","logprob":-0.125},)"
          R"({"id":4,"logprob":-2}]}]})");
  const Tokens prompt{5, 6, 7};
  const auto top = run_to_end(api_.top_logprobs(1, prompt, 2, cancel_));
  ASSERT_TRUE(top);
  ASSERT_EQ(top->size(), 2u);
  EXPECT_EQ(top->at(0).token, 9);
  EXPECT_DOUBLE_EQ(top->at(0).logprob, -0.125);
  EXPECT_DOUBLE_EQ(top->at(1).logprob, -2);
  EXPECT_EQ(json::serialize(sent().at("prompt")), "[5,6,7]");
  EXPECT_EQ(sent().at("n_probs").as_int64(), 2);
  for (const char* wrong : {R"({})", R"({"completion_probabilities":[]})", R"({"completion_probabilities":[{}]})",
                            R"({"completion_probabilities":[{"top_logprobs":[]}]})", R"({"completion_probabilities":[{"top_logprobs":{}}]})"}) {
    answers(wrong);
    EXPECT_EQ(run_to_end(api_.top_logprobs(1, prompt, 2, cancel_)).error().code, ErrorCode::malformed) << wrong;
  }
}

TEST_F(LlamaApiTest, AnswersThatAreNoneAreErrorsEverywhere) {
  for (const auto& [name, call] : all_calls()) {
    for (const char* body : {"", "<html>", "null", "7", "{\"tokens\"", "\"x\""}) {
      answers(body);
      const auto error = call();
      ASSERT_TRUE(error) << name << ": " << body;
      EXPECT_EQ(error->code, ErrorCode::malformed) << name << ": " << body;
      EXPECT_EQ(error->source, ErrorSource::upstream);
    }
    answers(R"({"error":{"code":401,"message":"Invalid API Key"}})" + std::string(10'000, 'x'), 401);
    const auto refused = call();
    ASSERT_TRUE(refused) << name;
    EXPECT_EQ(refused->code, ErrorCode::rejected) << name;
    EXPECT_EQ(refused->status, 401) << name;
    EXPECT_THAT(refused->context, HasSubstr("Invalid API Key")) << name;
    EXPECT_LT(refused->context.size(), 400u) << name;
    trouble_ = upstream_error(ErrorCode::timeout, "slow");
    EXPECT_EQ(call()->code, ErrorCode::timeout) << name;
  }
}

// Over a real connection: prefill() is a stream.
class PrefillTest : public ::testing::Test {
 protected:
  PrefillTest() {
    const UpstreamAddress address{"127.0.0.1", std::to_string(backend_.port())};
    io_.on([&] { upstream_ = make_upstream(io_.executor(), address, {}); });
    api_ = std::make_unique<LlamaApi>(*upstream_, "");
  }
  ~PrefillTest() override {
    io_.on([this] { upstream_.reset(); });
  }
  std::future<Result<Timings>> prefill() {
    return io_.begin(run());
  }
  Task<Result<Timings>> run() {
    const Tokens tokens{4, 5, 6, 7};
    co_return co_await api_->prefill(2, tokens, cancel_);
  }
  static std::string request_of(wire::Peer& peer) {
    const std::string head = peer.read_head();
    const auto at = head.find("Content-Length: ");
    if (at == std::string::npos) throw std::runtime_error("no request came");
    return peer.read_exactly(static_cast<std::size_t>(std::atoi(head.c_str() + at + 16)));
  }
  static std::string event(int processed) {
    return "data: {\"index\":0,\"content\":\"\",\"prompt_progress\":{\"total\":4,\"cache\":1,\"processed\":" + std::to_string(processed) + ",\"time_ms\":5}}\n\n";
  }
  static constexpr std::string_view stream_head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
  static constexpr std::string_view last_event = "data: {\"timings\":{\"cache_n\":1,\"prompt_n\":3,\"prompt_ms\":12.5}}\n\n";

  wire::PeerListener backend_;
  wire::IoThread io_;
  std::unique_ptr<Upstream> upstream_;
  std::unique_ptr<LlamaApi> api_;
  CancelSource cancel_;
};

TEST_F(PrefillTest, TheTimingsBehindTheReportsOfProgress) {
  auto timings = prefill();
  wire::Peer peer = backend_.accept();
  const json::value body = json::parse(request_of(peer));
  EXPECT_EQ(json::serialize(body.at("prompt")), "[4,5,6,7]");
  EXPECT_EQ(body.at("id_slot").as_int64(), 2);
  EXPECT_EQ(body.at("n_predict").as_int64(), 0);
  EXPECT_TRUE(body.at("cache_prompt").as_bool() && body.at("stream").as_bool() && body.at("return_progress").as_bool());
  peer.send(stream_head);
  for (const int processed : {1, 3, 3, 4}) peer.send(wire::chunk(event(processed)));
  peer.send(wire::chunk(last_event) + "0\r\n\r\n");
  const auto got = timings.get();
  ASSERT_TRUE(got) << to_string(got.error());
  EXPECT_EQ(got->cache_n, 1);
  EXPECT_EQ(got->prompt_n, 3);
}

TEST_F(PrefillTest, HoweverItIsSplit) {
  auto timings = prefill();
  wire::Peer peer = backend_.accept();
  request_of(peer);
  peer.send_bytewise(std::string(stream_head) + wire::chunk(event(2)) + wire::chunk(last_event) + "0\r\n\r\n");
  EXPECT_TRUE(timings.get());
}

TEST_F(PrefillTest, Refused) {
  auto timings = prefill();
  wire::Peer peer = backend_.accept();
  request_of(peer);
  peer.send("HTTP/1.1 400 Bad\r\nContent-Length: 12\r\n\r\n{\"error\":400}");
  const auto got = timings.get();
  ASSERT_FALSE(got);
  EXPECT_EQ(got.error().code, ErrorCode::rejected);
  EXPECT_EQ(got.error().status, 400);
}

TEST_F(PrefillTest, AnErrorInTheStream) {
  auto timings = prefill();
  wire::Peer peer = backend_.accept();
  request_of(peer);
  peer.send(std::string(stream_head) + wire::chunk("error: {\"code\":500,\"message\":\"context is full\"}\n\n") + "0\r\n\r\n");
  const auto got = timings.get();
  ASSERT_FALSE(got);
  EXPECT_EQ(got.error().code, ErrorCode::rejected);
  EXPECT_THAT(got.error().context, HasSubstr("context is full"));
}

TEST_F(PrefillTest, TheBackendDiesOnTheWay) {
  auto timings = prefill();
  {
    wire::Peer peer = backend_.accept();
    request_of(peer);
    peer.send(std::string(stream_head) + wire::chunk(event(2)));
  }
  EXPECT_EQ(timings.get().error().code, ErrorCode::closed);
}

TEST_F(PrefillTest, LeavingClosesTheConnection) {
  auto timings = prefill();
  wire::Peer peer = backend_.accept();
  request_of(peer);
  // More than the sockets hold unread: once it is sent, the stream is being read.
  constexpr std::size_t many = 8u << 20;
  std::string events;
  while (events.size() < many) events += event(2);
  peer.send(std::string(stream_head) + wire::chunk(events));
  io_.on([this] { cancel_.cancel(); });
  EXPECT_EQ(timings.get().error().code, ErrorCode::cancelled);
  EXPECT_TRUE(peer.at_end());
}

TEST_F(PrefillTest, AKeptConnectionThatTheBackendClosedIsReplaced) {
  auto first = prefill();
  wire::Peer peer = backend_.accept();
  request_of(peer);
  // Behind what says that it is a stream of events it would not be kept.
  peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + wire::chunk(last_event) + "0\r\n\r\n");
  ASSERT_TRUE(first.get());
  auto second = prefill();
  request_of(peer);  // on the same connection
  peer.close();
  wire::Peer other = backend_.accept();
  request_of(other);
  other.send(std::string(stream_head) + wire::chunk(last_event) + "0\r\n\r\n");
  EXPECT_TRUE(second.get());
}

// A router: every call names the model where llama-server looks for it, and loads none.
TEST_F(LlamaApiTest, OneModelOfARouter) {
  ModelRoute route;
  route.model = "org/a b";
  LlamaApi api(upstream_, "secret", route);
  answers("{}");
  (void)run_to_end(api.props(cancel_));
  EXPECT_EQ(target_, "/props?model=org%2Fa%20b&autoload=false");
  (void)run_to_end(api.load(cancel_));
  EXPECT_EQ(target_, "/props?model=org%2Fa%20b");
  (void)run_to_end(api.save(1, "f", cancel_));
  EXPECT_EQ(target_, "/slots/1?action=save&model=org%2Fa%20b&autoload=false");
  EXPECT_EQ(sent(), json::parse(R"({"model":"org/a b","filename":"f"})"));
  (void)run_to_end(api.apply_template("{}", cancel_));
  EXPECT_EQ(sent_, R"({"model":"org/a b"})");
  (void)run_to_end(api.apply_template(R"( { "model":"alias"})", cancel_));
  EXPECT_EQ(sent_, R"( {"model":"org/a b", "model":"alias"})");
}

TEST_F(LlamaApiTest, OneModelBehindLlamaSwap) {
  ModelRoute route;
  route.prefix = "/upstream/a";
  LlamaApi api(upstream_, "", route);
  answers("{}");
  (void)run_to_end(api.props(cancel_));
  EXPECT_EQ(target_, "/upstream/a/props");
  (void)run_to_end(api.erase(0, cancel_));
  EXPECT_EQ(target_, "/upstream/a/slots/0?action=erase");
  EXPECT_EQ(sent_, R"({"filename":""})");
}

TEST_F(LlamaApiTest, TheModelOfARouterIsFoundByItsName) {
  ModelRoute route;
  route.model = "b";
  LlamaApi api(upstream_, "", route);
  answers(R"({"data":[{"id":"a","status":{},"meta":{"n_ctx":1}},{"id":"b","status":{},"meta":{"n_ctx":2}}]})");
  EXPECT_EQ(run_to_end(api.model_meta(cancel_))->n_ctx, 2);
  // It is gone, or the server has one model now, whatever its name.
  for (const char* answer : {R"({"data":[{"id":"a","status":{}}]})", R"({"data":[{"id":"b"}]})"}) {
    answers(answer);
    EXPECT_EQ(run_to_end(api.model_meta(cancel_)).error().code, ErrorCode::not_found) << answer;
  }
}

TEST_F(LlamaApiTest, ListingsOfServersOfSeveralModels) {
  upstream_.answer_with([](const RequestHead& head, std::string_view) -> Result<ScriptedUpstream::Reply> {
    if (head.target == "/props") return ScriptedUpstream::Reply{200, R"({"role":"router","max_instances":3})"};
    if (head.target == "/running") {
      return ScriptedUpstream::Reply{200, R"({"running":[{"model":"a","state":"ready"},{"model":"b","state":"starting"}]})"};
    }
    return ScriptedUpstream::Reply{200, R"({"data":[{"id":"a","aliases":["x","y"],"status":{"value":"sleeping"}},{"id":"b","status":{"value":"unloaded"}}, 7]})"};
  });
  EXPECT_TRUE(run_to_end(api_.props(cancel_))->router);
  const auto router = run_to_end(api_.router_listing(cancel_));
  ASSERT_TRUE(router);
  EXPECT_EQ(router->most_running, 3);
  ASSERT_EQ(router->models.size(), 2u);
  EXPECT_THAT(router->models[0].aliases, ElementsAre("x", "y"));
  EXPECT_TRUE(router->models[0].running);
  EXPECT_FALSE(router->models[1].running);
  EXPECT_TRUE(*run_to_end(api_.is_llama_swap(cancel_)));
  EXPECT_THAT(*run_to_end(api_.swap_running(cancel_)), ElementsAre("a"));
  const auto swap = run_to_end(api_.swap_listing(cancel_));
  ASSERT_TRUE(swap);
  EXPECT_TRUE(swap->models[0].running);
  EXPECT_FALSE(swap->models[1].running);
  for (const char* answer : {"", "[]", "{}", R"({"data":7})", R"({"running":{}})"}) {
    upstream_.answer_with([answer](const RequestHead&, std::string_view) -> Result<ScriptedUpstream::Reply> {
      return ScriptedUpstream::Reply{200, answer};
    });
    EXPECT_FALSE(run_to_end(api_.router_listing(cancel_))) << answer;
    EXPECT_FALSE(run_to_end(api_.swap_listing(cancel_))) << answer;
    EXPECT_FALSE(*run_to_end(api_.is_llama_swap(cancel_))) << answer;
  }
}

}  // namespace
}  // namespace cairn

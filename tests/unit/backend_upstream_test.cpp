#include <gtest/gtest.h>

#include <memory>
#include <optional>

#include "backend/upstream.hpp"
#include "wire.hpp"

namespace cairn {
namespace {

using Kind = BodyFraming::Kind;
using wire::Peer;

RequestHead get(std::string target = "/") {
  RequestHead head;
  head.method = "GET";
  head.target = std::move(target);
  head.fields.add("Accept", "*/*");
  return head;
}

class UpstreamTest : public ::testing::Test {
 protected:
  UpstreamTest() { make(UpstreamOptions{}); }
  ~UpstreamTest() override {
    io_.on([this] { upstream_.reset(); });
  }

  void make(UpstreamOptions options) {
    UpstreamAddress address{"127.0.0.1", std::to_string(backend_.port())};
    io_.on([&] { upstream_ = make_upstream(io_.executor(), address, options); });
  }
  std::future<Result<Upstream::Answer>> call(const RequestHead& head, std::string_view body = {},
                                             Upstream::CallOptions options = {}) {
    return io_.begin(upstream_->call(head, body, options, cancel_));
  }
  Result<std::unique_ptr<Exchange>> start(const RequestHead& head, BodyFraming framing = {}) {
    return io_.run(upstream_->start(head, framing, cancel_));
  }
  std::size_t open() {
    return io_.on([this] { return upstream_->open_connections(); });
  }
  // An exchange must end on the I/O thread.
  void drop(Result<std::unique_ptr<Exchange>>& exchange) {
    io_.on([&] { exchange->reset(); });
  }
  Result<std::size_t> read_some(Exchange& exchange, std::span<char> into) { return io_.run(exchange.read_some(into)); }

  wire::PeerListener backend_;
  wire::IoThread io_;
  CancelSource cancel_;
  std::unique_ptr<Upstream> upstream_;
  RequestHead head_ = get();
};

constexpr std::string_view ok_answer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

TEST_F(UpstreamTest, ACallGoesOutAndItsAnswerComesBackWhateverTheSplitting) {
  for (const bool bytewise : {false, true}) {
    RequestHead post = get("/tokenize?a=b");
    post.method = "POST";
    auto answer = call(post, "{}");
    Peer peer = backend_.accept();
    EXPECT_EQ(peer.read_until("\r\n\r\n{}"), "POST /tokenize?a=b HTTP/1.1\r\nHost: 127.0.0.1:" + std::to_string(backend_.port()) +
                                                 "\r\nAccept: */*\r\nContent-Length: 2\r\n\r\n{}");
    const std::string text = "HTTP/1.1 503 Loading\r\nX-A: b\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n" +
                             wire::chunk("abc") + wire::chunk("d") + "0\r\n\r\n";
    bytewise ? peer.send_bytewise(text) : static_cast<void>(peer.send(text));
    const auto got = answer.get();
    ASSERT_TRUE(got);
    EXPECT_EQ(got->head.status, 503);
    EXPECT_EQ(got->head.reason, "Loading");
    EXPECT_EQ(got->head.fields.get("x-a"), "b");
    EXPECT_EQ(got->body, "abcd");
    EXPECT_TRUE(peer.at_end());
  }
  EXPECT_EQ(open(), 0u);
}

TEST_F(UpstreamTest, AConnectionIsUsedAgain) {
  auto first = call(head_);
  Peer peer = backend_.accept();
  for (int i = 0; i < 3; ++i) {
    if (i > 0) first = call(head_);
    peer.read_head();
    peer.send(ok_answer);
    ASSERT_TRUE(first.get());
  }
  EXPECT_EQ(open(), 1u);
  io_.on([this] { upstream_->close_idle(); });
  EXPECT_TRUE(peer.at_end());
  EXPECT_EQ(open(), 0u);
}

// llama-server closes it; a request whose body had been relayed was sent on it a moment before, and answered 502.
TEST_F(UpstreamTest, AConnectionThatHasStreamedIsNotUsedAgain) {
  auto first = call(head_);
  Peer peer = backend_.accept();
  peer.read_head();
  peer.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n");
  EXPECT_EQ(first.get()->body, "ok");
  EXPECT_TRUE(peer.at_end());
  EXPECT_EQ(open(), 0u);
}

TEST_F(UpstreamTest, ADeadPooledConnectionIsReplaced) {
  auto first = call(head_);
  {
    Peer peer = backend_.accept();
    peer.read_head();
    peer.send(ok_answer);
    ASSERT_TRUE(first.get());
  }  // closed while idle
  auto second = call(head_);
  Peer peer = backend_.accept();
  peer.read_head();
  peer.send(ok_answer);
  EXPECT_TRUE(second.get());
  EXPECT_EQ(open(), 1u);
}

TEST_F(UpstreamTest, AConnectionThatSpokeUnaskedIsNotUsedAgain) {
  auto first = call(head_);
  Peer peer = backend_.accept();
  peer.read_head();
  peer.send(ok_answer);
  ASSERT_TRUE(first.get());
  peer.send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwrong");
  auto second = call(head_);
  Peer other = backend_.accept();
  other.read_head();
  other.send(ok_answer);
  EXPECT_EQ(second.get()->body, "ok");
}

TEST_F(UpstreamTest, AReusedConnectionThatDiesBeforeTheAnswerIsRetriedOnce) {
  auto first = call(head_);
  Peer peer = backend_.accept();
  peer.read_head();
  peer.send(ok_answer);
  ASSERT_TRUE(first.get());
  auto second = call(head_);
  peer.read_head();
  peer.close();
  Peer other = backend_.accept();
  other.read_head();
  other.send(ok_answer);
  EXPECT_TRUE(second.get());
}

TEST_F(UpstreamTest, AFreshConnectionThatDiesIsNotRetried) {
  auto answer = call(head_);
  Peer peer = backend_.accept();
  peer.read_head();
  peer.close();
  const auto got = answer.get();
  ASSERT_FALSE(got);
  EXPECT_EQ(got.error().code, ErrorCode::closed);
  EXPECT_FALSE(got.error().may_retry);
  EXPECT_EQ(open(), 0u);
}

TEST_F(UpstreamTest, NobodyListening) {
  backend_.close();
  const auto got = call(head_).get();
  ASSERT_FALSE(got);
  EXPECT_EQ(got.error().code, ErrorCode::refused);
  EXPECT_EQ(got.error().source, ErrorSource::upstream);
  EXPECT_EQ(open(), 0u);
}

TEST_F(UpstreamTest, AnUnknownNameIsRefused) {
  io_.on([&] { upstream_ = make_upstream(io_.executor(), UpstreamAddress{"no-such-host.invalid", "1"}, {}); });
  Upstream::CallOptions options;
  const auto got = call(head_, {}, options).get();
  ASSERT_FALSE(got);
  EXPECT_TRUE(got.error().code == ErrorCode::refused || got.error().code == ErrorCode::unreachable);
}

TEST_F(UpstreamTest, ACallHasATimeLimit) {
  Upstream::CallOptions options;
  options.timeout = std::chrono::milliseconds(20);
  auto answer = call(head_, {}, options);
  Peer peer = backend_.accept();
  peer.read_head();
  const auto got = answer.get();
  ASSERT_FALSE(got);
  EXPECT_EQ(got.error().code, ErrorCode::timeout);
  EXPECT_TRUE(peer.at_end());
  EXPECT_EQ(open(), 0u);
}

TEST_F(UpstreamTest, AnAnswerOverTheLimitIsAnError) {
  Upstream::CallOptions options;
  options.max_body_bytes = 3;
  for (const std::string text : {"Content-Length: 4\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n"}) {
    auto answer = call(head_, {}, options);
    Peer peer = backend_.accept();
    peer.read_head();
    peer.send("HTTP/1.1 200 OK\r\n" + text);
    EXPECT_EQ(answer.get().error().code, ErrorCode::body_too_large);
    EXPECT_TRUE(peer.at_end());
  }
}

TEST_F(UpstreamTest, CancelClosesTheConnectionWhileWaitingForTheHead) {
  auto exchange = start(head_);
  ASSERT_TRUE(exchange);
  Peer peer = backend_.accept();
  peer.read_head();
  auto head = io_.begin((*exchange)->read_head());
  io_.on([this] { cancel_.cancel(); });
  EXPECT_EQ(head.get().error().code, ErrorCode::cancelled);
  EXPECT_TRUE(peer.at_end());
  EXPECT_EQ(io_.run((*exchange)->read_head()).error().code, ErrorCode::cancelled);
  drop(exchange);
  EXPECT_EQ(open(), 0u);
  EXPECT_EQ(start(head_).error().code, ErrorCode::cancelled);
}

TEST_F(UpstreamTest, AHalfReadAnswerIsNeverPooled) {
  auto exchange = start(head_);
  Peer peer = backend_.accept();
  peer.read_head();
  peer.send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc");
  ASSERT_TRUE(io_.run((*exchange)->read_head()));
  drop(exchange);
  EXPECT_TRUE(peer.at_end());
  EXPECT_EQ(open(), 0u);
}

TEST_F(UpstreamTest, ClosingAfterTheEndLeavesThePooledConnectionAlone) {
  auto exchange = start(head_);
  Peer peer = backend_.accept();
  peer.read_head();
  peer.send(ok_answer);
  ASSERT_TRUE(io_.run((*exchange)->read_head()));
  char bytes[10];
  EXPECT_EQ(*read_some(**exchange, bytes), 2u);
  EXPECT_EQ(*read_some(**exchange, bytes), 0u);
  io_.on([&] {
    (*exchange)->close();
    cancel_.cancel();
  });
  drop(exchange);
  EXPECT_EQ(open(), 1u);
}

TEST_F(UpstreamTest, PiecesComeAsTheyArrive) {
  auto exchange = start(head_);
  Peer peer = backend_.accept();
  peer.read_head();
  peer.send("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
  const auto head = io_.run((*exchange)->read_head());
  ASSERT_TRUE(head);
  EXPECT_EQ(head->status, 200);
  EXPECT_EQ((*exchange)->answer_framing().kind, Kind::chunked);
  char bytes[4096];
  for (const std::string_view piece : {"data: 1\n\n", "x", "data: 2\n\n"}) {
    peer.send(wire::chunk(piece));  // the next is sent only after this one was read
    const auto count = read_some(**exchange, bytes);
    ASSERT_TRUE(count);
    EXPECT_EQ(std::string_view(bytes, *count), piece);
  }
  peer.send(wire::chunk("last") + wire::chunk("data: [DONE]\n\n") + "0\r\n\r\n");
  std::string rest;
  for (;;) {
    const auto count = read_some(**exchange, bytes);
    ASSERT_TRUE(count);
    if (*count == 0) break;
    rest.append(bytes, *count);
  }
  EXPECT_EQ(rest, "lastdata: [DONE]\n\n");
  drop(exchange);
  EXPECT_EQ(open(), 1u);
}

TEST_F(UpstreamTest, ABodyGoesUpInChunksAndEmptyPiecesDoNotEndIt) {
  RequestHead post = get();
  post.method = "POST";
  auto exchange = start(post, BodyFraming{Kind::chunked, 0});
  Peer peer = backend_.accept();
  peer.read_head();
  ASSERT_TRUE(io_.run((*exchange)->write_body(std::string_view("ab"))));
  ASSERT_TRUE(io_.run((*exchange)->write_body(std::string_view(""))));
  ASSERT_TRUE(io_.run((*exchange)->write_body(std::string_view("c"))));
  ASSERT_TRUE(io_.run((*exchange)->finish_body()));
  EXPECT_EQ(peer.read_until("0\r\n\r\n"), "2\r\nab\r\n1\r\nc\r\n0\r\n\r\n");
  drop(exchange);
}

TEST_F(UpstreamTest, AnEarlyAnswerIsReadAlthoughTheBodyIsNotWritten) {
  RequestHead post = get();
  post.method = "POST";
  auto exchange = start(post, BodyFraming{Kind::length, 1000});
  Peer peer = backend_.accept();
  peer.read_head();
  peer.send("HTTP/1.1 413 No\r\nContent-Length: 0\r\n\r\n");
  const auto head = io_.run((*exchange)->read_head());
  ASSERT_TRUE(head);
  EXPECT_EQ(head->status, 413);
  EXPECT_TRUE(peer.at_end());  // half a request was sent: not to be used again
  EXPECT_FALSE(io_.run((*exchange)->write_body(std::string_view("x"))));
  drop(exchange);
  EXPECT_EQ(open(), 0u);
}

TEST_F(UpstreamTest, TheBackendDiesInTheBody) {
  for (const bool by_reset : {false, true}) {
    auto exchange = start(head_);
    Peer peer = backend_.accept();
    peer.read_head();
    peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + wire::chunk("abc"));
    ASSERT_TRUE(io_.run((*exchange)->read_head()));
    char bytes[10];
    EXPECT_EQ(*read_some(**exchange, bytes), 3u);
    by_reset ? peer.reset() : peer.close();
    const auto count = read_some(**exchange, bytes);
    ASSERT_FALSE(count);
    EXPECT_EQ(count.error().code, ErrorCode::closed);
    EXPECT_FALSE(count.error().may_retry);
    drop(exchange);
    EXPECT_EQ(open(), 0u);
  }
}

TEST_F(UpstreamTest, HeadHasNoBodyAndKeepsTheConnection) {
  RequestHead head = get();
  head.method = "HEAD";
  auto exchange = start(head);
  Peer peer = backend_.accept();
  peer.read_head();
  peer.send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n");
  ASSERT_TRUE(io_.run((*exchange)->read_head()));
  char bytes[10];
  EXPECT_EQ(*read_some(**exchange, bytes), 0u);
  drop(exchange);
  EXPECT_EQ(open(), 1u);
}

TEST_F(UpstreamTest, IdleConnectionsAreFewAndShortLived) {
  UpstreamOptions options;
  options.max_idle = std::chrono::milliseconds(30);
  options.max_idle_connections = 2;
  make(options);
  std::vector<std::future<Result<Upstream::Answer>>> answers;
  std::vector<Peer> peers;
  for (int i = 0; i < 4; ++i) answers.push_back(call(head_));
  for (int i = 0; i < 4; ++i) peers.push_back(backend_.accept());
  for (auto& peer : peers) {
    peer.read_head();
    peer.send(ok_answer);
  }
  for (auto& answer : answers) EXPECT_TRUE(answer.get());
  EXPECT_LE(open(), 2u);
  EXPECT_TRUE(io_.wait_for([this] { return upstream_->open_connections() == 0; }));  // without another request
}

TEST_F(UpstreamTest, DescriptorsDoNotLeak) {
  const auto before = wire::open_descriptors();
  for (int i = 0; i < 50; ++i) {
    auto exchange = start(head_);
    Peer peer = backend_.accept();
    peer.read_head();
    peer.send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc");
    if (i % 2 == 0) {
      ASSERT_TRUE(io_.run((*exchange)->read_head()));
    }
    drop(exchange);
  }
  EXPECT_EQ(wire::open_descriptors(), before);
}

}  // namespace
}  // namespace cairn

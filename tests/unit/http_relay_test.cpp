#include "http_proxy_fixture.hpp"

#include <algorithm>

namespace cairn {
namespace {

using wire::Peer;

class RelayTest : public ProxyTest {
 protected:
  const std::string get_ = "GET /v1/models?x=1 HTTP/1.1\r\nHost: a\r\nX-Mine: 1\r\n\r\n";
};

TEST_F(RelayTest, HeadsAndBodiesPassUnchanged) {
  Peer peer = client();
  for (const bool bytewise : {false, true}) {
    peer.send(get_);
    Peer server = backend_.accept();
    EXPECT_EQ(server.read_head(), "GET /v1/models?x=1 HTTP/1.1\r\nHost: 127.0.0.1:" + std::to_string(backend_.port()) + "\r\nX-Mine: 1\r\n\r\n");
    const std::string head = "HTTP/1.1 203 Fine By Me\r\nServer: llama.cpp\r\nAccess-Control-Allow-Origin: \r\nset-cookie: a\r\n"
                             "Content-Length: 5\r\nDate: now\r\nSet-Cookie: b\r\n";
    const std::string answer = head + "Connection: close\r\nKeep-Alive: timeout=5, max=100\r\n\r\nhello";
    bytewise ? server.send_bytewise(answer) : static_cast<void>(server.send(answer));
    EXPECT_EQ(peer.read_exactly(head.size() + 7), head + "\r\nhello");
  }
  const auto first = outcome();
  ASSERT_TRUE(first);
  EXPECT_EQ(first->status, 203);
  EXPECT_EQ(first->body_bytes, 5u);
  EXPECT_FALSE(first->broken);
}

TEST_F(RelayTest, AStreamComesPieceByPieceAndItsEndWithTheLastPiece) {
  Peer peer = client();
  peer.send(get_);
  Peer server = backend_.accept();
  server.read_head();
  server.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n");
  EXPECT_EQ(peer.read_head(), "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n");
  for (const std::string piece : {"data: 1\n\n", "d", "ata: 2\n\n"}) {
    server.send(wire::chunk(piece));
    EXPECT_EQ(peer.read_exactly(wire::chunk(piece).size()), wire::chunk(piece));
  }
  server.send(wire::chunk("data: {\"usage\":1}\n\n") + wire::chunk("data: [DONE]\n\n") + "0\r\n\r\n");
  EXPECT_EQ(peer.read_until("0\r\n\r\n"), wire::chunk("data: {\"usage\":1}\n\ndata: [DONE]\n\n") + "0\r\n\r\n");
  EXPECT_EQ(outcome()->body_bytes, 9u + 1 + 8 + 33);
  EXPECT_EQ(upstream_connections(), 0u);  // llama-server closes it behind a stream
}

TEST_F(RelayTest, AnAnswerUntilCloseStaysOne) {
  Peer peer = client();
  peer.send(get_);
  Peer server = backend_.accept();
  server.read_head();
  server.send("HTTP/1.0 200 OK\r\n\r\nhello");
  server.close();
  EXPECT_EQ(peer.read_all(), "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello");
}

TEST_F(RelayTest, BodilessAnswersKeepTheirFields) {
  Peer peer = client();
  peer.send("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n");
  Peer server = backend_.accept();
  server.read_head();
  server.send("HTTP/1.1 200 OK\r\nContent-Length: 15\r\nX: y\r\n\r\n");
  EXPECT_EQ(peer.read_head(), "HTTP/1.1 200 OK\r\nContent-Length: 15\r\nX: y\r\n\r\n");
  peer.send(get_);
  server.read_head();
  server.send("HTTP/1.1 204 No Content\r\n\r\n");
  EXPECT_EQ(peer.read_head(), "HTTP/1.1 204 No Content\r\n\r\n");
  peer.send("OPTIONS * HTTP/1.1\r\nHost: a\r\nOrigin: http://p\r\n\r\n");
  EXPECT_TRUE(server.read_head().starts_with("OPTIONS * HTTP/1.1\r\n"));
  server.send("HTTP/1.1 304 Not Modified\r\nETag: x\r\n\r\n");
  EXPECT_EQ(peer.read_head(), "HTTP/1.1 304 Not Modified\r\nETag: x\r\n\r\n");
}

TEST_F(RelayTest, BodiesGoUpAsTheyCome) {
  Peer peer = client();
  peer.send("POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
  Peer server = backend_.accept();
  EXPECT_NE(server.read_head().find("Transfer-Encoding: chunked\r\n"), std::string::npos);
  for (const std::string piece : {"one", "two"}) {
    peer.send(wire::chunk(piece));
    EXPECT_EQ(server.read_exactly(wire::chunk(piece).size()), wire::chunk(piece));
  }
  // The answer may begin before the request has ended.
  server.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + wire::chunk("early"));
  peer.read_head();
  EXPECT_EQ(peer.read_exactly(10), wire::chunk("early"));
  peer.send("0\r\n\r\n");
  EXPECT_EQ(server.read_exactly(5), "0\r\n\r\n");
  server.send("0\r\n\r\n");
  EXPECT_EQ(peer.read_exactly(5), "0\r\n\r\n");
  peer.send(get_);  // both connections live on
  server.read_head();
  server.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
  EXPECT_TRUE(peer.read_head().starts_with("HTTP/1.1 200 OK"));
}

TEST_F(RelayTest, ALargeUploadArrivesWhole) {
  std::string body(64 << 20, 'x');
  for (std::size_t i = 0; i < body.size(); i += 4093) body[i] = static_cast<char>('a' + i % 26);
  Peer peer = client();
  Peer server;
  std::thread sender([&] { peer.send("POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body); });
  server = backend_.accept();
  server.read_head();
  EXPECT_TRUE(server.read_exactly(body.size()) == body);
  sender.join();
  server.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
  EXPECT_TRUE(peer.read_until("ok").ends_with("ok"));
}

TEST_F(RelayTest, AnEarlyRefusalReachesAClientThatStillSends) {
  Peer peer = client();
  peer.send("POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\nsome");
  Peer server = backend_.accept();
  server.read_until("some");
  server.send("HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno");
  server.close();
  EXPECT_TRUE(peer.read_all().ends_with("\r\n\r\nno"));
  EXPECT_FALSE(peer.was_reset());
  EXPECT_TRUE(no_sessions_left());
  EXPECT_EQ(upstream_connections(), 0u);
}

TEST_F(RelayTest, ClientsThatLeaveBeforeTheAnswerCloseTheUpstream) {
  for (const bool by_reset : {false, true}) {
    Peer peer = client();
    peer.send(get_);
    Peer server = backend_.accept();
    server.read_head();
    by_reset ? peer.reset() : peer.close();
    EXPECT_TRUE(server.at_end());
    EXPECT_TRUE(no_sessions_left());
    EXPECT_EQ(upstream_connections(), 0u);
  }
  EXPECT_FALSE(outcome());
  EXPECT_EQ(error_status(outcome().error()), 499);
}

TEST_F(RelayTest, ClientsThatLeaveMidStreamCloseTheUpstream) {
  for (const bool by_reset : {false, true}) {
    Peer peer = client();
    peer.send(get_);
    Peer server = backend_.accept();
    server.read_head();
    server.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + wire::chunk("a"));
    peer.read_until("a\r\n");
    by_reset ? peer.reset() : peer.close();
    EXPECT_TRUE(server.at_end());
    EXPECT_TRUE(no_sessions_left());
    EXPECT_EQ(upstream_connections(), 0u);
  }
  ASSERT_TRUE(outcome()->broken);
  EXPECT_EQ(error_status(*outcome()->broken), 499);
}

TEST_F(RelayTest, ClientsThatLeaveInTheirUploadCloseTheUpstream) {
  Peer peer = client();
  peer.send("POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc");
  Peer server = backend_.accept();
  server.read_until("abc");
  peer.close();
  EXPECT_TRUE(server.at_end());
  EXPECT_TRUE(no_sessions_left());
  EXPECT_EQ(upstream_connections(), 0u);
}

TEST_F(RelayTest, AClientThatLeavesWithoutReadingEndsABlockedWrite) {
  Peer peer = Peer::connect(port_, 4096);
  peer.send(get_);
  Peer server = backend_.accept();
  server.read_head();
  server.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
  std::thread flood([&] {
    const std::string piece = wire::chunk(std::string(60000, 'x'));
    while (server.send(piece)) {
    }
  });
  peer.read_head();
  peer.end_writing();
  flood.join();  // the proxy hung up on the backend
  EXPECT_TRUE(no_sessions_left());
  EXPECT_EQ(upstream_connections(), 0u);
}

TEST_F(RelayTest, ABackendThatDiesMidBodyLeavesAVisibleCut) {
  const std::string chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n";
  const std::string length = "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc";
  for (const std::string& answer : {chunked, length}) {
    Peer peer = client();
    peer.send(get_);
    Peer server = backend_.accept();
    server.read_head();
    server.send(answer);
    peer.read_until("abc");
    server.close();
    EXPECT_EQ(peer.read_all().find("0\r\n\r\n"), std::string::npos);
    EXPECT_TRUE(no_sessions_left());
  }
  EXPECT_EQ(outcome()->broken->source, ErrorSource::upstream);
  Peer peer = client();
  peer.send(get_);
  Peer server = backend_.accept();
  server.read_head();
  server.send("HTTP/1.1 200 OK\r\n\r\nabc");
  peer.read_until("abc");
  server.reset();
  EXPECT_TRUE(peer.at_end());
  EXPECT_TRUE(peer.was_reset());
}

TEST_F(RelayTest, TroubleBeforeTheAnswerIs502) {
  Peer peer = client();
  peer.send(get_);
  backend_.accept().read_head();  // and closes
  EXPECT_TRUE(peer.read_until("}}").starts_with("HTTP/1.1 502 Bad Gateway\r\n"));
  peer.send(get_);
  {
    Peer server = backend_.accept();
    server.read_head();
    server.send("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n");
    EXPECT_TRUE(peer.read_until("}}").starts_with("HTTP/1.1 502 Bad Gateway\r\n"));
  }
  backend_.close();
  peer.send("POST /x HTTP/1.1\r\nHost: a\r\nOrigin: null\r\nContent-Length: 3\r\n\r\nabc");
  const std::string answer = peer.read_until("}}");
  EXPECT_TRUE(answer.starts_with("HTTP/1.1 502 Bad Gateway\r\nAccess-Control-Allow-Origin: null\r\n")) << answer;
  EXPECT_NE(answer.find("\"type\":\"server_error\",\"code\":502"), std::string::npos) << answer;
}

TEST_F(RelayTest, ADeadReusedConnectionIsRetriedForRequestsWithoutBody) {
  Peer peer = client();
  peer.send(get_);
  Peer server = backend_.accept();
  server.read_head();
  server.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
  peer.read_until("ok");
  peer.send(get_);
  server.read_head();
  server.close();
  Peer second = backend_.accept();
  second.read_head();
  second.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
  EXPECT_TRUE(peer.read_until("ok").starts_with("HTTP/1.1 200 OK"));
}

TEST_F(RelayTest, ASlowReaderGetsEveryByteAndHoldsUpNobody) {
  Peer slow = Peer::connect(port_, 4096);
  slow.send(get_);
  Peer server = backend_.accept();
  server.read_head();
  constexpr int pieces = 2000;
  std::atomic<int> sent{0};
  std::thread backend([&] {
    server.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
    for (; sent < pieces; ++sent) server.send(wire::chunk(std::string(10000, static_cast<char>('a' + sent % 26))));
    server.send("0\r\n\r\n");
  });
  // While it reads nothing, others are served.
  for (int i = 0; i < 20; ++i) {
    Peer other = client();
    other.send(get_);
    Peer other_server = backend_.accept();
    other_server.read_head();
    other_server.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok");
    EXPECT_TRUE(other.read_until("ok").ends_with("ok"));
  }
  EXPECT_LT(sent, pieces);  // 20 MB do not fit in any buffer on the way
  slow.read_head();
  std::string body;
  for (;;) {
    const std::size_t size = std::stoul(slow.read_until("\r\n"), nullptr, 16);
    body += slow.read_exactly(size);
    slow.read_exactly(2);
    if (size == 0) break;
  }
  backend.join();
  ASSERT_EQ(body.size(), pieces * 10000u);
  bool right = true;
  for (std::size_t i = 0; i < body.size(); ++i) right = right && body[i] == static_cast<char>('a' + (i / 10000) % 26);
  EXPECT_TRUE(right);
}

TEST_F(RelayTest, TheTapSeesEachPieceBeforeTheClient) {
  struct Tap final : AnswerTap {
    void on_bytes(std::span<const char> bytes) override { seen.append(bytes.data(), bytes.size()); }
    void on_end(bool whole) override { ended_whole = whole; }
    bool ended_whole = false;
    std::string seen;
  } tap;
  handler_.script = [&](Downstream& downstream) -> Task<void> {
    auto exchange = co_await upstream_->start(downstream.head(), downstream.request_framing(), downstream.cancel());
    auto head = co_await (*exchange)->read_head();
    auto outcome = co_await relay_answer(**exchange, downstream, *head, &tap);
    EXPECT_FALSE(outcome->broken);
  };
  Peer peer = client();
  peer.send(get_);
  Peer server = backend_.accept();
  server.read_head();
  server.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + wire::chunk("one"));
  peer.read_until("one");
  EXPECT_EQ(io_.on([&] { return tap.seen; }), "one");
  server.send(wire::chunk("two") + "0\r\n\r\n");
  peer.read_until("0\r\n\r\n");
  EXPECT_EQ(io_.on([&] { return tap.seen; }), "onetwo");
  EXPECT_TRUE(handled(1));
  EXPECT_TRUE(tap.ended_whole);
}

class CommentTest : public RelayTest {
 protected:
  CommentTest() {
    handler_.script = [this](Downstream& downstream) -> Task<void> {
      EventStreamOptions events;
      events.silence = silence_;
      auto outcome = co_await pass_through(*upstream_, downstream, std::nullopt, events);
      if (!outcome) co_await write_error(downstream, outcome.error());
      handler_.outcomes.push_back(std::move(outcome));
    };
  }
  // Silences of some length pass: the comments of another stream are counted.
  void let_time_pass(int silences = 4) {
    Peer peer = client();
    peer.send(get_);
    Peer server = backend_.accept();
    server.read_head();
    server.send(stream_head_);
    for (int i = 0; i < silences; ++i) peer.read_until(comment_);
  }
  // The body of the stream up to what ends it.
  static std::string dechunk(const std::string& text) {
    std::string body;
    std::size_t at = 0;
    for (;;) {
      const std::size_t size = std::stoul(text.substr(at), nullptr, 16);
      if (size == 0) return body;
      at = text.find("\r\n", at) + 2;
      body += text.substr(at, size);
      at += size + 2;
    }
  }
  // Of those inside an event nothing is taken away.
  static std::string without_comments(const std::string& body) {
    const std::string comment = ": waiting\n\n";
    std::string rest;
    for (std::size_t at = 0; at < body.size();) {
      const std::size_t end = std::min(body.find("\n\n", at), body.size() - 2) + 2;
      if (body.compare(at, end - at, comment) != 0) rest += body.substr(at, end - at);
      at = end;
    }
    return rest;
  }

  const std::string stream_head_ = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
  std::chrono::milliseconds silence_{20};
  const std::string comment_ = wire::chunk(": waiting\n\n");
};

TEST_F(CommentTest, InLongSilencesAgainAndAgain) {
  Peer peer = client();
  peer.send(get_);
  Peer server = backend_.accept();
  server.read_head();
  server.send(stream_head_);
  EXPECT_EQ(peer.read_head(), stream_head_);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(peer.read_exactly(comment_.size()), comment_);
  server.send(wire::chunk("data: 1\n\n"));
  EXPECT_TRUE(peer.read_until(wire::chunk("data: 1\n\n")).ends_with(wire::chunk("data: 1\n\n")));
  for (int i = 0; i < 3; ++i) EXPECT_EQ(peer.read_exactly(comment_.size()), comment_);
  server.send(wire::chunk("data: [DONE]\n\n") + "0\r\n\r\n");
  EXPECT_TRUE(peer.read_until("0\r\n\r\n").ends_with(wire::chunk("data: [DONE]\n\n") + "0\r\n\r\n"));
  EXPECT_FALSE(outcome()->broken);
  EXPECT_EQ(outcome()->body_bytes, 9u + 14);
  peer.send(get_);  // the client's connection lives on
  Peer next = backend_.accept();
  next.read_head();
  next.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
  EXPECT_TRUE(peer.read_until("ok").starts_with("HTTP/1.1 200 OK"));
}

TEST_F(CommentTest, NoneBeforeTheHeadSoThatAnErrorKeepsItsStatus) {
  Peer peer = client();
  peer.send(get_);
  Peer server = backend_.accept();
  server.read_head();
  let_time_pass();
  server.send("HTTP/1.1 400 Bad Request\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n");
  EXPECT_TRUE(peer.read_head().starts_with("HTTP/1.1 400 Bad Request\r\n"));
  let_time_pass();  // nor in an error
  server.send(wire::chunk("no") + "0\r\n\r\n");
  EXPECT_EQ(peer.read_until("0\r\n\r\n"), wire::chunk("no") + "0\r\n\r\n");
}

TEST_F(CommentTest, NoneInsideAnEvent) {
  Peer peer = client();
  peer.send(get_);
  Peer server = backend_.accept();
  server.read_head();
  server.send(stream_head_ + wire::chunk("data: 1\n\nda"));
  peer.read_head();
  peer.read_until("\nda\r\n");
  for (const std::string piece : {"ta: 2", "\n", "data: 3\n", "data: 4"}) {
    let_time_pass();
    server.send(wire::chunk(piece));
    EXPECT_EQ(peer.read_exactly(wire::chunk(piece).size()), wire::chunk(piece));
  }
  server.send(wire::chunk("\n"));
  EXPECT_EQ(peer.read_exactly(6), wire::chunk("\n"));
  let_time_pass();
  server.send(wire::chunk("\n"));  // its end came in two
  EXPECT_EQ(peer.read_exactly(6), wire::chunk("\n"));
  EXPECT_EQ(peer.read_exactly(comment_.size()), comment_);
}

TEST_F(CommentTest, NoneInOtherAnswers) {
  const std::vector<std::string> heads{
      "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 2\r\n\r\n",
      "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n",
      "HTTP/1.1 200 OK\r\nContent-Type: text/event-streams\r\nTransfer-Encoding: chunked\r\n\r\n",
      "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n",
      "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
  };
  for (const std::string& head : heads) {
    Peer peer = client();
    peer.send(get_);
    Peer server = backend_.accept();
    server.read_head();
    server.send(head);
    EXPECT_EQ(peer.read_head(), head);
    let_time_pass();
    const std::string body = head.find("chunked") == std::string::npos ? "ok" : wire::chunk("ok") + "0\r\n\r\n";
    server.send(body);
    EXPECT_EQ(peer.read_exactly(body.size()), body);
  }
  Peer old = client();
  old.send("GET /v1/models HTTP/1.0\r\nHost: a\r\n\r\n");
  Peer server = backend_.accept();
  server.read_head();
  server.send(stream_head_);
  old.read_head();
  let_time_pass();
  server.send(wire::chunk("data: 1\n\n") + "0\r\n\r\n");
  EXPECT_EQ(old.read_all(), "data: 1\n\n");
}

TEST_F(CommentTest, TheTypeMayHaveParameters) {
  Peer peer = client();
  peer.send(get_);
  Peer server = backend_.accept();
  server.read_head();
  server.send("HTTP/1.1 200 OK\r\nContent-Type: Text/Event-Stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n");
  peer.read_head();
  EXPECT_EQ(peer.read_exactly(comment_.size()), comment_);
}

TEST_F(CommentTest, NoByteIsLostAroundThem) {
  silence_ = std::chrono::milliseconds(1);
  Peer peer = client();
  peer.send(get_);
  Peer server = backend_.accept();
  server.read_head();
  server.send(stream_head_);
  peer.read_head();
  std::string sent;
  std::string received;
  for (int i = 0; i < 400; ++i) {
    const std::string event = "data: " + std::to_string(i) + std::string(static_cast<std::size_t>(i * 7), 'x') + "\n\n";
    sent += event;
    const std::string bytes = wire::chunk(event);
    // The next comment is due about when the second half arrives.
    if (i % 2 == 0) received += peer.read_until(comment_);
    server.send(std::string_view(bytes).substr(0, bytes.size() / 2));
    if (i % 4 == 1) let_time_pass(1);
    server.send(std::string_view(bytes).substr(bytes.size() / 2));
  }
  server.send("0\r\n\r\n");
  received += peer.read_until("\r\n0\r\n\r\n");
  EXPECT_TRUE(without_comments(dechunk(received)) == sent);
}

TEST_F(CommentTest, NoneWhileAWriteIsBlocked) {
  Peer slow = Peer::connect(port_, 4096);
  slow.send(get_);
  Peer server = backend_.accept();
  server.read_head();
  std::string sent;
  std::thread flood([&] {
    server.send(stream_head_);
    for (int i = 0; i < 300; ++i) {
      const std::string event = "data: " + std::string(60000, static_cast<char>('a' + i % 26)) + "\n\n";
      sent += event;
      server.send(wire::chunk(event));
    }
    server.send("0\r\n\r\n");
  });
  let_time_pass();
  slow.read_head();
  const std::string body = dechunk(slow.read_until("\r\n0\r\n\r\n"));
  flood.join();
  EXPECT_TRUE(without_comments(body) == sent);
}

TEST_F(CommentTest, EndsWithEitherSide) {
  for (const bool by_client : {true, false}) {
    Peer peer = client();
    peer.send(get_);
    Peer server = backend_.accept();
    server.read_head();
    server.send(stream_head_ + wire::chunk("data: 1\n\n"));
    peer.read_until(comment_);
    if (by_client) {
      peer.reset();
      EXPECT_TRUE(server.at_end());
    } else {
      server.close();
      EXPECT_EQ(peer.read_all().find("0\r\n\r\n"), std::string::npos);
    }
    EXPECT_TRUE(no_sessions_left());
    EXPECT_EQ(upstream_connections(), 0u);
  }
  EXPECT_EQ(error_status(*outcome(0)->broken), 499);
  EXPECT_EQ(outcome(1)->broken->source, ErrorSource::upstream);
}

TEST_F(CommentTest, ProgressIsRewrittenInEventStreamsOnly) {
  const std::string report = "data: {\"prompt_progress\":{\"total\":9,\"cache\":8,\"processed\":8,\"time_ms\":0}}\n\n";
  const std::string continued = "data: {\"prompt_progress\":{\"total\":9,\"cache\":2,\"processed\":8,\"time_ms\":50}}\n\n";
  handler_.script = [this](Downstream& downstream) -> Task<void> {
    ContinuedProgress progress(2, 50);
    EventStreamOptions events;
    events.progress = &progress;
    handler_.outcomes.push_back(co_await pass_through(*upstream_, downstream, std::nullopt, events));
  };
  Peer peer = client();
  peer.send(get_);
  Peer server = backend_.accept();
  server.read_head();
  server.send(stream_head_ + wire::chunk(report.substr(0, 40)) + wire::chunk(report.substr(40) + "data: cut") + "0\r\n\r\n");
  peer.read_head();
  EXPECT_EQ(dechunk(peer.read_until("\r\n0\r\n\r\n")), continued + "data: cut");
  EXPECT_EQ(outcome()->body_bytes, continued.size() + 9);
  peer.send(get_);
  Peer next = backend_.accept();
  next.read_head();
  next.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + wire::chunk(report) + "0\r\n\r\n");
  peer.read_head();
  EXPECT_EQ(dechunk(peer.read_until("\r\n0\r\n\r\n")), report);
  // What came before the backend died is not kept from the client.
  peer.send(get_);
  next.read_head();
  next.send(stream_head_ + wire::chunk(report) + wire::chunk("data: cut"));
  next.reset();
  EXPECT_TRUE(peer.read_until("data: cut").ends_with("data: cut"));
}

TEST_F(RelayTest, DescriptorsDoNotLeak) {
  const auto before = wire::open_descriptors();
  for (int i = 0; i < 60; ++i) {
    Peer peer = client();
    peer.send(get_);
    Peer server = backend_.accept();
    server.read_head();
    if (i % 4 > 0) server.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n" + wire::chunk("a"));
    if (i % 4 > 0) peer.read_until("a\r\n");
    if (i % 4 == 2) server.send("0\r\n\r\n");
    if (i % 4 == 3) server.reset();
  }
  EXPECT_TRUE(no_sessions_left());
  EXPECT_EQ(upstream_connections(), 0u);
  // A connection may still sit in the accept queue: wait for the count instead of looking once.
  EXPECT_TRUE(io_.wait_for([&] { return listener_->open_sessions() == 0 && wire::open_descriptors() <= before; }));
}

TEST(ErrorAnswer, EachErrorHasItsStatus) {
  EXPECT_EQ(error_status(upstream_error(ErrorCode::refused, "")), 502);
  EXPECT_EQ(error_status(upstream_error(ErrorCode::closed, "")), 502);
  EXPECT_EQ(error_status(upstream_error(ErrorCode::malformed, "")), 502);
  EXPECT_EQ(error_status(upstream_error(ErrorCode::timeout, "")), 504);
  EXPECT_EQ(error_status(upstream_error(ErrorCode::unreachable, "")), 504);
  EXPECT_EQ(error_status(upstream_error(ErrorCode::cancelled, "")), 499);
  EXPECT_EQ(error_status(downstream_error(ErrorCode::closed, "")), 499);
  EXPECT_EQ(error_status(downstream_error(ErrorCode::timeout, "")), 408);
  EXPECT_EQ(error_status(downstream_error(ErrorCode::malformed, "")), 400);
  EXPECT_EQ(error_status(downstream_error(ErrorCode::body_too_large, "")), 413);
  EXPECT_EQ(error_status(downstream_error(ErrorCode::header_too_large, "")), 431);
  EXPECT_EQ(error_status(internal_error("")), 500);
  Error queue = internal_error("");
  queue.code = ErrorCode::timeout;
  EXPECT_EQ(error_status(queue), 503);
  Error rejected = upstream_error(ErrorCode::rejected, "");
  rejected.status = 404;
  EXPECT_EQ(error_status(rejected), 404);
  EXPECT_EQ(error_body(400, "a \"b\"\n\\\xff"), "{\"error\":{\"message\":\"a \\\"b\\\"\\u000a\\\\?\",\"type\":\"invalid_request_error\",\"code\":400}}");
}

}  // namespace
}  // namespace cairn

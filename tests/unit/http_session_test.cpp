#include "http_proxy_fixture.hpp"

namespace cairn {
namespace {

using wire::Peer;

class SessionTest : public ProxyTest {};

std::string answer_of(std::string_view body) {
  return "HTTP/1.1 200 OK\r\nContent-Length: " + std::to_string(body.size()) + "\r\n\r\n" + std::string(body);
}
std::string post(std::string_view body, const std::string& fields = "") {
  return "POST /echo HTTP/1.1\r\nHost: a\r\n" + fields + "Content-Length: " + std::to_string(body.size()) + "\r\n\r\n" +
         std::string(body);
}

TEST_F(SessionTest, RequestsAreReadWhateverTheSplitting) {
  handler_.script = echo;
  const std::string chunked = "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + wire::chunk("hel") +
                              "2;ext=1\r\nlo\r\n0\r\nTrailer: x\r\n\r\n";
  for (const std::string& request : {post("hello"), chunked}) {
    Peer peer = client();
    for (std::size_t cut = 1; cut < request.size(); ++cut) {
      peer.send(request.substr(0, cut));
      peer.send(request.substr(cut));
      ASSERT_EQ(peer.read_exactly(answer_of("hello").size()), answer_of("hello")) << cut;
    }
    peer.send_bytewise(request + request);
    EXPECT_EQ(peer.read_exactly(2 * answer_of("hello").size()), answer_of("hello") + answer_of("hello"));
  }
  EXPECT_TRUE(no_sessions_left());
}

TEST_F(SessionTest, PipelinedRequestsAreAnsweredInOrder) {
  handler_.script = echo;
  Peer peer = client();
  std::string requests;
  std::string answers;
  for (int i = 0; i < 50; ++i) {
    const std::string body = "request " + std::to_string(i);
    requests += post(body) + (i % 7 == 0 ? "\r\n" : "");  // an empty line in between is allowed
    answers += answer_of(body);
  }
  peer.send(requests);
  EXPECT_EQ(peer.read_exactly(answers.size()), answers);
}

TEST_F(SessionTest, MorePipelinedThanTheWatchReadsAheadIsNoDisconnect) {
  handler_.script = echo;
  Peer peer = client();
  const std::string body(100 * 1024, 'b');
  std::string requests;
  std::string answers;
  for (int i = 0; i < 20; ++i) {
    requests += post(body);
    answers += answer_of(body);
  }
  std::thread sender([&] { peer.send(requests); });
  EXPECT_TRUE(peer.read_exactly(answers.size()) == answers);
  sender.join();
}

TEST_F(SessionTest, AClientThatLeavesBehindPipelinedRequestsIsNoticed) {
  for (const std::size_t ahead : {std::size_t{100}, std::size_t{100 * 1024}}) {
    std::promise<void> cancelled;
    handler_.script = [&](Downstream& downstream) -> Task<void> {
      Condition left(io_.executor());
      auto registration = downstream.cancel().on_cancel([&left] { left.notify_all(); });
      while (!downstream.cancel().cancelled()) co_await left.wait();
      cancelled.set_value();
    };
    Peer peer = client();
    peer.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    ASSERT_TRUE(io_.wait_for([&] { return handler_.running == 1; }));
    std::thread sender([&] { peer.send(std::string(ahead, 'x')); });
    sender.join();
    peer.end_writing();
    EXPECT_EQ(cancelled.get_future().wait_for(std::chrono::seconds(wire::patience_s)), std::future_status::ready);
    EXPECT_TRUE(no_sessions_left());
  }
}

TEST_F(SessionTest, Http10ClosesUnlessAskedToStay) {
  handler_.script = echo;
  Peer peer = client();
  peer.send("GET / HTTP/1.0\r\n\r\n");
  EXPECT_EQ(peer.read_all(), "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
  peer = client();
  peer.send("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
  EXPECT_EQ(peer.read_head(), "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: keep-alive\r\n\r\n");
  peer.send("GET / HTTP/1.0\r\n\r\n");
  EXPECT_NE(peer.read_all(), "");
}

TEST_F(SessionTest, ConnectionCloseIsHonoured) {
  handler_.script = echo;
  Peer peer = client();
  peer.send(post("a", "Connection: close\r\n"));
  EXPECT_EQ(peer.read_all(), "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nConnection: close\r\n\r\na");
}

TEST_F(SessionTest, HeadGetsTheLengthAndNoBody) {
  handler_.script = [](Downstream& downstream) { return say(downstream, "hello"); };
  Peer peer = client();
  for (int i = 0; i < 2; ++i) {
    peer.send("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n");
    peer.read_head();
  }
  peer.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
  EXPECT_EQ(peer.read_exactly(answer_of("hello").size()), answer_of("hello"));
}

TEST_F(SessionTest, ContinueIsSentWhenTheBodyIsFirstRead) {
  handler_.script = echo;
  Peer peer = client();
  peer.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n");
  EXPECT_EQ(peer.read_head(), "HTTP/1.1 100 Continue\r\n\r\n");
  peer.send("hello");
  EXPECT_EQ(peer.read_exactly(answer_of("hello").size()), answer_of("hello"));
  // A client that did not wait gets none.
  peer.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\nhello");
  EXPECT_EQ(peer.read_exactly(answer_of("hello").size()), answer_of("hello"));
}

TEST_F(SessionTest, WithoutContinueTheConnectionEnds) {
  handler_.script = [](Downstream& downstream) { return say(downstream, "no"); };
  Peer peer = client();
  peer.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n");
  EXPECT_EQ(peer.read_all(), "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno");
}

TEST_F(SessionTest, ASmallUnreadBodyIsDrainedALargeOneEndsTheConnection) {
  handler_.script = [](Downstream& downstream) { return say(downstream, "no"); };
  Peer peer = client();
  peer.send(post(std::string(60 * 1024, 'x')) + post("y"));
  EXPECT_EQ(peer.read_exactly(2 * answer_of("no").size()), answer_of("no") + answer_of("no"));
  peer.send(post(std::string(65 * 1024, 'x')));
  EXPECT_EQ(peer.read_all(), answer_of("no"));
  EXPECT_FALSE(peer.was_reset());
}

TEST_F(SessionTest, AmbiguousHeadsAreRefusedAndTheConnectionEnds) {
  for (const std::string head : {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled",
                                 "GET / HTTP/1.1\r\nHost: a\r\nX : b\r\n\r\n", "GET / HTTP/1.1\n\n", "nonsense\r\n\r\n"}) {
    Peer peer = client();
    peer.send(head);
    const std::string answer = peer.read_all();
    EXPECT_TRUE(answer.starts_with("HTTP/1.1 400 Bad Request\r\n")) << answer;
    EXPECT_NE(answer.find("\"type\":\"invalid_request_error\",\"code\":400}}"), std::string::npos) << answer;
    EXPECT_FALSE(peer.was_reset());
  }
  Peer peer = client();
  peer.send("GET / HTTP/2.0\r\nHost: a\r\n\r\n");
  EXPECT_TRUE(peer.read_all().starts_with("HTTP/1.1 505 "));
  EXPECT_EQ(handler_.handled, 0);
  EXPECT_TRUE(no_sessions_left());
}

TEST_F(SessionTest, AHeadOverTheLimitIs431) {
  Peer peer = client();
  peer.send("GET / HTTP/1.1\r\nHost: a\r\nX: " + std::string(70 * 1024, 'x'));
  EXPECT_TRUE(peer.read_all().starts_with("HTTP/1.1 431 "));
  peer = client();
  handler_.script = echo;
  const std::string rest = "\r\n\r\n";
  std::string head = "GET / HTTP/1.1\r\nHost: a\r\nX: ";
  head += std::string(64 * 1024 - head.size() - rest.size(), 'x') + rest;  // exactly the limit
  peer.send(head);
  EXPECT_EQ(peer.read_exactly(answer_of("").size()), answer_of(""));
}

TEST_F(SessionTest, ABodyOverTheLimitIs413) {
  ListenerOptions options;
  options.session.request.max_body_bytes = 1000;
  listen(options);
  handler_.script = echo;
  Peer peer = client();
  peer.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1001\r\n\r\n");  // at once, before the body
  EXPECT_TRUE(peer.read_all().starts_with("HTTP/1.1 413 "));
  peer = client();
  peer.send("POST / HTTP/1.1\r\nHost: a\r\nOrigin: http://page\r\nTransfer-Encoding: chunked\r\n\r\n" + wire::chunk(std::string(1001, 'x')));
  const std::string answer = peer.read_all();
  EXPECT_TRUE(answer.starts_with("HTTP/1.1 413 ")) << answer;
  EXPECT_NE(answer.find("Access-Control-Allow-Origin: http://page\r\n"), std::string::npos) << answer;
  peer = client();
  peer.send(post(std::string(1000, 'x')));
  EXPECT_TRUE(peer.read_head().starts_with("HTTP/1.1 200 "));
}

TEST_F(SessionTest, BrokenChunksAre400) {
  handler_.script = echo;
  Peer peer = client();
  peer.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n");
  EXPECT_TRUE(peer.read_all().starts_with("HTTP/1.1 400 "));
}

TEST_F(SessionTest, SlowHeadsAndBodiesTimeOut) {
  ListenerOptions options;
  options.session.idle_timeout = std::chrono::milliseconds(10);
  options.session.head_timeout = std::chrono::milliseconds(10);
  options.session.request.body_timeout = std::chrono::milliseconds(10);
  listen(options);
  handler_.script = echo;
  Peer peer = client();
  EXPECT_TRUE(peer.at_end());
  options.session.idle_timeout = std::chrono::seconds(10);  // the others may be slow to begin
  listen(options);
  peer = client();
  peer.send("GET / HT");
  EXPECT_TRUE(peer.read_all().starts_with("HTTP/1.1 408 "));
  peer = client();
  peer.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nab");
  EXPECT_TRUE(peer.read_all().starts_with("HTTP/1.1 408 "));
  EXPECT_TRUE(no_sessions_left());
}

TEST_F(SessionTest, AClientThatLeavesInItsHeadOrBodyLeavesNothingBehind) {
  handler_.script = echo;
  const auto before = wire::open_descriptors();
  const std::string request = post("hello");
  for (std::size_t cut = 0; cut < request.size(); ++cut) {
    Peer peer = client();
    peer.send(request.substr(0, cut));
    cut % 2 == 0 ? peer.close() : peer.reset();
  }
  EXPECT_TRUE(no_sessions_left());
  // A connection may still sit in the accept queue: wait for the count instead of looking once.
  EXPECT_TRUE(io_.wait_for([&] { return listener_->open_sessions() == 0 && wire::open_descriptors() <= before; }));
}

TEST_F(SessionTest, ChunksForANewClientUntilCloseForAnOldOne) {
  handler_.script = [](Downstream& downstream) -> Task<void> {
    ResponseHead head;
    head.status = 200;
    head.reason = "OK";
    BodyFraming framing;
    framing.kind = BodyFraming::Kind::chunked;
    co_await downstream.write_head(head, framing);
    for (const std::string_view piece : {"a", "", "bc"}) co_await downstream.write_body(piece);
    co_await downstream.finish();
  };
  Peer peer = client();
  for (int i = 0; i < 2; ++i) {
    peer.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    EXPECT_EQ(peer.read_until("0\r\n\r\n"), "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n2\r\nbc\r\n0\r\n\r\n");
  }
  peer = client();
  peer.send("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
  EXPECT_EQ(peer.read_all(), "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nabc");
}

TEST_F(SessionTest, AnUnfinishedAnswerIsCutAndAnUncaughtExceptionIs500) {
  handler_.script = [](Downstream& downstream) -> Task<void> {
    ResponseHead head;
    head.status = 200;
    head.reason = "OK";
    co_await downstream.write_head(head, BodyFraming{BodyFraming::Kind::chunked, 0});
    co_await downstream.write_body(std::string_view("a"));
  };
  Peer peer = client();
  peer.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
  EXPECT_EQ(peer.read_all(), "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n");
  handler_.script = [](Downstream&) -> Task<void> {
    throw std::runtime_error("a bug");
    co_return;
  };
  peer = client();
  peer.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
  EXPECT_TRUE(peer.read_head().starts_with("HTTP/1.1 500 "));
  handler_.running = 0;
}

TEST_F(SessionTest, MoreConnectionsThanTheLimitWait) {
  ListenerOptions options;
  options.max_connections = 2;
  listen(options);
  handler_.script = echo;
  std::vector<Peer> peers;
  for (int i = 0; i < 4; ++i) {
    peers.push_back(client());
    peers.back().send(post("x", "Connection: close\r\n"));
  }
  for (auto& peer : peers) EXPECT_TRUE(peer.read_all().ends_with("x"));
  EXPECT_TRUE(no_sessions_left());
}

TEST_F(SessionTest, DrainingClosesIdleConnectionsAndLetsRequestsEnd) {
  Condition gate(io_.executor());
  bool is_open = false;
  handler_.script = [&](Downstream& downstream) -> Task<void> {
    while (!is_open) co_await gate.wait();
    co_await say(downstream, "done");
  };
  Peer idle = client();
  Peer busy = client();
  busy.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
  ASSERT_TRUE(io_.wait_for([&] { return handler_.running == 1 && listener_->open_sessions() == 2; }));
  auto drained = io_.begin(listener_->drain(std::chrono::seconds(wire::patience_s)));
  EXPECT_TRUE(idle.at_end());
  EXPECT_THROW(client(), std::runtime_error);
  io_.on([&] {
    is_open = true;
    gate.notify_all();
  });
  EXPECT_EQ(busy.read_all(), "HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\ndone");
  EXPECT_EQ(drained.get(), 0u);
}

TEST_F(SessionTest, DrainingCancelsWhatDoesNotEndInTime) {
  handler_.script = [&](Downstream& downstream) -> Task<void> {
    Condition left(io_.executor());
    auto registration = downstream.cancel().on_cancel([&left] { left.notify_all(); });
    while (!downstream.cancel().cancelled()) co_await left.wait();
  };
  Peer busy = client();
  busy.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
  ASSERT_TRUE(io_.wait_for([&] { return handler_.running == 1; }));
  EXPECT_EQ(io_.run(listener_->drain(std::chrono::milliseconds(5))), 1u);
  EXPECT_TRUE(busy.at_end());
}

TEST_F(SessionTest, AnAddressInUseIsAnError) {
  ListenerOptions options;
  options.port = port_;
  const auto second = io_.on([&] { return Listener::open(io_.executor(), options, handler_).has_error(); });
  EXPECT_TRUE(second);
  options.host = "no-such-host.invalid";
  EXPECT_TRUE(io_.on([&] { return Listener::open(io_.executor(), options, handler_).has_error(); }));
}

TEST_F(SessionTest, ANameIsListenedOn) {
  ListenerOptions options;
  options.host = "localhost";
  listen(options);
  handler_.script = echo;
  Peer peer = client();
  peer.send(post("x"));
  EXPECT_EQ(peer.read_exactly(answer_of("x").size()), answer_of("x"));
}

}  // namespace
}  // namespace cairn

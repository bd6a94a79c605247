#include <gtest/gtest.h>

#include "backend/http_message.hpp"
#include "backend/http_parser.hpp"
#include "backend/http_text.hpp"
#include "backend/upstream.hpp"

namespace cairn {
namespace {

using Kind = BodyFraming::Kind;

// Feeds `wire` in steps of `step` bytes, as a reader with a buffer would.
struct Fed {
  std::string body;
  std::vector<std::string> pieces;
  std::optional<Error> error;
  std::size_t left = 0;  // bytes behind the message
};

Fed feed(MessageParser& parser, std::string_view wire, std::size_t step, std::size_t out_bytes = 4096) {
  Fed fed;
  std::string buffer;
  std::vector<char> out(out_bytes);
  while (!parser.done()) {
    if (wire.empty()) {
      if (auto ended = parser.end_of_input(); !ended) fed.error = ended.error();
      break;
    }
    buffer += wire.substr(0, step);
    wire.remove_prefix(std::min(step, wire.size()));
    for (bool again = true; again && !parser.done();) {
      if (!parser.head_done()) {
        auto consumed = parser.parse_head(buffer);
        if (!consumed) {
          fed.error = consumed.error();
          return fed;
        }
        buffer.erase(0, *consumed);
        again = parser.head_done();
        continue;
      }
      auto piece = parser.parse_body(buffer, out);
      if (!piece) {
        fed.error = piece.error();
        return fed;
      }
      buffer.erase(0, piece->consumed);
      fed.body.append(out.data(), piece->produced);
      if (piece->produced > 0) fed.pieces.emplace_back(out.data(), piece->produced);
      again = piece->consumed > 0 && !buffer.empty();
    }
  }
  fed.left = buffer.size() + wire.size();
  return fed;
}

MessageParser answer_parser() { return MessageParser(MessageParser::Kind::response, 64 * 1024); }

TEST(HeaderFields, AreFoundWithoutCaseAndKeepTheirOrder) {
  HeaderFields fields;
  fields.add("X-A", "1");
  fields.add("Set-Cookie", "a");
  fields.add("x-a", "2");
  fields.add("set-cookie", "b");
  EXPECT_EQ(fields.get("x-A"), "1");
  EXPECT_FALSE(fields.get("X-B"));
  fields.set("X-A", "3");
  ASSERT_EQ(fields.fields.size(), 3u);
  EXPECT_EQ(fields.fields[0].name, "X-A");
  EXPECT_EQ(fields.fields[0].value, "3");
  EXPECT_EQ(fields.fields[2].name, "set-cookie");
  fields.erase("SET-COOKIE");
  EXPECT_EQ(fields.fields.size(), 1u);
}

TEST(HeaderFields, TokensAreFoundInListsOverSeveralFields) {
  HeaderFields fields;
  fields.add("Connection", "Upgrade ,\tX-Mine");
  fields.add("connection", "Close");
  EXPECT_TRUE(fields.has_token("Connection", "close"));
  EXPECT_TRUE(fields.has_token("Connection", "x-mine"));
  EXPECT_FALSE(fields.has_token("Connection", "keep-alive"));
  EXPECT_FALSE(fields.has_token("Connection", "x"));
}

TEST(HeaderFields, HopByHopAndNamedFieldsAreErased) {
  HeaderFields fields;
  for (const char* name : {"Host", "Keep-Alive", "TE", "Trailer", "Transfer-Encoding", "Upgrade", "Content-Length", "X-Mine"}) {
    fields.add(name, "v");
  }
  fields.add("Connection", "x-mine, , close");
  erase_hop_by_hop(fields);
  ASSERT_EQ(fields.fields.size(), 1u);
  EXPECT_EQ(fields.fields[0].name, "Host");
}

TEST(HttpText, FramingStandsWhereTheMessageHadItsOwn) {
  HeaderFields fields;
  fields.add("Server", "x");
  fields.add("content-length", "3");
  fields.add("Keep-Alive", "timeout=5");
  fields.add("Empty", "");
  std::string out;
  append_fields(out, fields, BodyFraming{Kind::length, 3});
  EXPECT_EQ(out, "Server: x\r\nContent-Length: 3\r\nEmpty: \r\n");
  out.clear();
  fields.erase("content-length");
  append_fields(out, fields, BodyFraming{Kind::chunked, 0});
  EXPECT_EQ(out, "Server: x\r\nEmpty: \r\nTransfer-Encoding: chunked\r\n");
}

TEST(HttpText, ARequestGetsTheBackendsHostAndNoExpect) {
  RequestHead head;
  head.method = "POST";
  head.target = "/x?y=1";
  head.fields.add("Accept", "*/*");
  head.fields.add("host", "client.example");
  head.fields.add("Expect", "100-continue");
  EXPECT_EQ(request_head_text(head, BodyFraming{Kind::length, 0}, "h:1"),
            "POST /x?y=1 HTTP/1.1\r\nAccept: */*\r\nhost: h:1\r\nContent-Length: 0\r\n\r\n");
  EXPECT_EQ(head.path(), "/x");
}

TEST(UpstreamUrl, IsTakenApart) {
  EXPECT_EQ(parse_upstream_url("http://127.0.0.1:8080")->host_header(), "127.0.0.1:8080");
  EXPECT_EQ(parse_upstream_url("http://localhost/")->host_header(), "localhost:80");
  EXPECT_FALSE(parse_upstream_url("http://localhost")->tls);
  EXPECT_EQ(parse_upstream_url("https://localhost/")->host_header(), "localhost:443");
  EXPECT_TRUE(parse_upstream_url("HTTPS://localhost:8443")->tls);
  EXPECT_EQ(parse_upstream_url("http://[::1]:9")->host, "::1");
  EXPECT_EQ(parse_upstream_url("http://[::1]:9")->host_header(), "[::1]:9");
  for (const char* bad : {"", "127.0.0.1:80", "ftp://x:1", "httpss://x:1", "http://", "https://", "http://:80", "http://x:", "http://x:0", "http://x:65536",
                          "http://x:8a", "http://x:80/path", "http://u@x:80", "http://[::1", "http://[::1]9"}) {
    const auto parsed = parse_upstream_url(bad);
    ASSERT_FALSE(parsed) << bad;
    EXPECT_EQ(parsed.error().code, ErrorCode::invalid) << bad;
  }
}

TEST(MessageParser, ReadsEveryBodyKindInStepsOfAnySize) {
  const std::string long_text(5000, 'x');
  const std::string chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n1;x=y\r\nd\r\n" + std::string("1388\r\n") +
                              long_text + "\r\n0\r\nTrail: er\r\n\r\n";
  const std::string length = "HTTP/1.1 200 OK\r\nContent-Length: 5004\r\n\r\nabcd" + long_text;
  const std::string until_close = "HTTP/1.0 200 OK\r\nX: y\r\n\r\nabcd" + long_text;
  for (const std::size_t step : {1, 2, 3, 7, 100, 100000}) {
    for (const std::size_t out : {1, 3, 4096, 100000}) {
      for (const auto& wire : {chunked, length, until_close}) {
        auto parser = answer_parser();
        const Fed fed = feed(parser, wire, step, out);
        EXPECT_FALSE(fed.error) << to_string(*fed.error);
        EXPECT_EQ(fed.body, "abcd" + long_text) << step << " " << out;
        EXPECT_TRUE(parser.done());
        EXPECT_EQ(parser.response().status, 200);
      }
    }
  }
}

TEST(MessageParser, TheEndIsSeenTogetherWithTheLastBytes) {
  auto parser = answer_parser();
  const Fed fed = feed(parser,
                       "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n6\r\ndata: \r\ne\r\ndata: [DONE]\n\n\r\n0\r\n\r\n", 100000);
  EXPECT_EQ(fed.body, "data: data: [DONE]\n\n");
  EXPECT_EQ(fed.pieces.size(), 1u);
  EXPECT_TRUE(parser.done());
  EXPECT_TRUE(parser.keep_alive());
}

TEST(MessageParser, AnswersWithoutBody) {
  for (const char* wire : {"HTTP/1.1 204 No Content\r\n\r\n", "HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n",
                           "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"}) {
    auto parser = answer_parser();
    const Fed fed = feed(parser, wire, 1);
    EXPECT_FALSE(fed.error);
    EXPECT_TRUE(parser.done()) << wire;
  }
  auto parser = answer_parser();
  parser.skip_body();
  const Fed fed = feed(parser, "HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n", 5);
  EXPECT_TRUE(parser.done());
  EXPECT_EQ(parser.framing().kind, Kind::none);
  EXPECT_EQ(parser.response().fields.get("Content-Length"), "7");
}

TEST(MessageParser, RepeatedFieldsKeepTheirPlace) {
  auto parser = answer_parser();
  feed(parser, "HTTP/1.1 200 OK\r\nSet-Cookie: a\r\nX-Y:  z \r\nSET-COOKIE: b\r\nEmpty:\r\nContent-Length: 0\r\n\r\n", 3);
  const auto& fields = parser.response().fields.fields;
  ASSERT_EQ(fields.size(), 5u);
  EXPECT_EQ(fields[1].value, "z");
  EXPECT_EQ(fields[2].name, "SET-COOKIE");
  EXPECT_EQ(fields[3].value, "");
}

TEST(MessageParser, AmbiguousOrBrokenAnswersAreMalformed) {
  for (const char* wire : {
           "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
           "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
           "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc",
           "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
           "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
           "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
           "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
           "HTTP/1.1 200 OK\r\nContent-Length: -3\r\n\r\nabc",
           "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
           "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n",
           "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
           "SSH-2.0-OpenSSH\r\n\r\n",
       }) {
    for (const std::size_t step : {1, 1000}) {
      auto parser = answer_parser();
      const Fed fed = feed(parser, wire, step);
      ASSERT_TRUE(fed.error) << wire;
      EXPECT_EQ(fed.error->code, ErrorCode::malformed) << wire;
      EXPECT_EQ(fed.error->source, ErrorSource::upstream);
    }
  }
}

TEST(MessageParser, AnEndInTheMiddleIsClosed) {
  for (const char* wire : {"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
                           "HTTP/1.1 200 OK\r\nContent-Le", ""}) {
    auto parser = answer_parser();
    const Fed fed = feed(parser, wire, 4);
    ASSERT_TRUE(fed.error) << wire;
    EXPECT_EQ(fed.error->code, ErrorCode::closed) << wire;
  }
}

TEST(MessageParser, AHeadOverTheLimitIsTooLarge) {
  MessageParser parser(MessageParser::Kind::response, 1000);
  const Fed fed = feed(parser, "HTTP/1.1 200 OK\r\nX: " + std::string(2000, 'x') + "\r\n\r\n", 10);
  ASSERT_TRUE(fed.error);
  EXPECT_EQ(fed.error->code, ErrorCode::header_too_large);
}

}  // namespace
}  // namespace cairn

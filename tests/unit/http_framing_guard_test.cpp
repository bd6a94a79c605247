#include "http/framing_guard.hpp"

#include <gtest/gtest.h>

namespace cairn {
namespace {

int status_of(std::string_view head) {
  const auto rejection = check_head(head);
  return rejection ? rejection->status : 0;
}
std::string post(const std::string& fields, const std::string& version = "1.1") {
  return "POST /v1/completions HTTP/" + version + "\r\nHost: a\r\n" + fields + "\r\n";
}

TEST(FramingGuard, OrdinaryHeadsPass) {
  for (const std::string& head : {
           post("Content-Length: 5\r\n"), post("Content-Length: 0\r\nX:\r\n"), post("Transfer-Encoding: chunked\r\n"),
           post("transfer-encoding:  Chunked \r\n"), post("Content-Length: 5\r\nContent-Length: 5\r\n"),
           post("Content-Length: 5\r\n", "1.0"), post("X-Note: caf\xc3\xa9\tok\r\n"),
           // Without a Host too: the backend does not mind, and gets ours.
           std::string("GET / HTTP/1.0\r\n\r\n"), std::string("GET / HTTP/1.1\r\n\r\n"), std::string("OPTIONS * HTTP/1.1\r\nHost: a:8080\r\n\r\n"),
           std::string("GET http://a/b HTTP/1.1\r\nHost: [::1]:80\r\n\r\n"),
           std::string("GET /a?b=c&d=%20 HTTP/1.1\r\nHost:\r\n\r\n"),
       }) {
    EXPECT_EQ(status_of(head), 0) << head;
  }
}

TEST(FramingGuard, AmbiguousHeadsAre400) {
  const std::string nul("X: a\0b\r\n", 8);
  for (const std::string& fields : {
           std::string("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"),
           std::string("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n"),
           std::string("Content-Length: 5\r\nContent-Length: 6\r\n"), std::string("Content-Length: 5, 5\r\n"),
           std::string("Content-Length: +5\r\n"), std::string("Content-Length: -5\r\n"), std::string("Content-Length: 5 5\r\n"),
           std::string("Content-Length: 0x5\r\n"), std::string("Content-Length:\r\n"),
           std::string("Content-Length: 99999999999999999999\r\n"), std::string("Transfer-Encoding: gzip\r\n"),
           std::string("Transfer-Encoding: gzip, chunked\r\n"), std::string("Transfer-Encoding: chunked, gzip\r\n"),
           std::string("Transfer-Encoding: chunked, chunked\r\n"), std::string("Transfer-Encoding: xchunked\r\n"),
           std::string("Transfer-Encoding:\r\n"), std::string("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"),
           std::string("Transfer-Encoding : chunked\r\n"), std::string("Content-Length\t: 5\r\n"), std::string("X: a\r\n b\r\n"),
           std::string("X: a\r\n\tb\r\n"), std::string("Host: b\r\n"), std::string("no colon here\r\n"), std::string(": v\r\n"),
           std::string("X: a\rb\r\n"), std::string("X: a\n"), std::string("X: a\x01\r\n"), std::string("X(: a\r\n"), nul,
       }) {
    EXPECT_EQ(status_of(post(fields)), 400) << fields;
  }
  EXPECT_EQ(status_of(post("Transfer-Encoding: chunked\r\n", "1.0")), 400);
  EXPECT_EQ(status_of("GET / HTTP/1.1\r\nHost: a b\r\n\r\n"), 400);
  EXPECT_EQ(status_of("GET / HTTP/1.1\r\n Host: a\r\n\r\n"), 400);
  EXPECT_EQ(status_of("GET / HTTP/1.1\nHost: a\n\n"), 400);
}

TEST(FramingGuard, BadRequestLines) {
  for (const char* line : {"GET", "GET /", "GET  /", "GET / HTTP/1.1 ", "GET /a b HTTP/1.1", " GET / HTTP/1.1", "GET\t/ HTTP/1.1",
                           "G\x80T / HTTP/1.1", "GET / http/1.1", "GET / HTTP/11", "GET / HTTP/1.10", "GET / FTP/1.1", "GET x HTTP/1.1",
                           "CONNECT a:1 HTTP/1.1", "\x16\x03\x01"}) {
    EXPECT_EQ(status_of(std::string(line) + "\r\nHost: a\r\n\r\n"), 400) << line;
  }
  for (const char* version : {"2.0", "0.9", "1.2", "3.0"}) EXPECT_EQ(status_of(post("", version)), 505) << version;
}

TEST(FramingGuard, TheEndIsFoundAtAnySplitting) {
  for (const std::string end : {"\r\n\r\n", "\n\n", "\n\r\n"}) {
    const std::string head = "GET / HTTP/1.1\r\nHost: a" + end;
    const std::string bytes = head + "GET /next";
    std::size_t scanned = 0;
    for (std::size_t size = 1; size < head.size(); ++size) {
      EXPECT_FALSE(find_head_end(std::string_view(bytes).substr(0, size), scanned)) << size;
    }
    EXPECT_EQ(find_head_end(bytes, scanned), head.size());
    scanned = 0;
    EXPECT_EQ(find_head_end(bytes, scanned), head.size());
  }
}

}  // namespace
}  // namespace cairn

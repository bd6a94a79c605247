#include "backend/byte_stream.hpp"

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/error.hpp>
#include <boost/asio/experimental/awaitable_operators.hpp>
#include <boost/asio/ssl/error.hpp>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <random>
#include <string>
#include <utility>

#include "backend/async.hpp"
#include "unit/certificate.hpp"
#include "unit/run_to_end.hpp"

namespace cairn {
namespace {

namespace asio = boost::asio;
using boost::system::error_code;
using tcp = asio::ip::tcp;

struct Ends {
  std::unique_ptr<ByteStream> client;
  std::unique_ptr<ByteStream> server;
};

std::string pattern(std::size_t size, unsigned seed) {
  std::mt19937 source(seed);
  std::string bytes(size, '\0');
  std::generate(bytes.begin(), bytes.end(), [&] { return static_cast<char>(source()); });
  return bytes;
}

Task<error_code> send(ByteStream& stream, std::string_view bytes) {
  std::vector<asio::const_buffer> buffers;
  buffers.push_back(asio::buffer(bytes));
  co_return co_await stream.write(std::move(buffers));
}

// Up to an error, or `most` bytes.
Task<std::pair<std::string, error_code>> receive(ByteStream& stream, std::size_t most, std::size_t at_once = 16 * 1024) {
  std::string got;
  std::vector<char> room(at_once);
  while (got.size() < most) {
    const ByteStream::Moved moved = co_await stream.read_some(room);
    if (moved.error) co_return std::pair{got, moved.error};
    got.append(room.data(), moved.count);
  }
  co_return std::pair{got, error_code{}};
}

// Both kinds, each pair connected over loopback.
class ByteStreams : public ::testing::TestWithParam<bool> {
 protected:
  static Task<Ends> connected_plainly() {
    const auto executor = co_await asio::this_coro::executor;
    tcp::acceptor acceptor(executor, tcp::endpoint(asio::ip::address_v4::loopback(), 0));
    tcp::socket near(executor);
    near.connect(acceptor.local_endpoint());
    tcp::socket far = acceptor.accept();
    Ends ends{std::make_unique<ByteStream>(std::move(near)), std::make_unique<ByteStream>(std::move(far))};
    co_return ends;
  }

  Task<Ends> connected() {
    Ends ends = co_await connected_plainly();
    if (!GetParam()) co_return ends;
    const auto server_side = *TlsContext::for_server(certificate_.file(), certificate_.file());
    TlsContext::Trust trust;
    trust.ca = certificate_.file();
    const auto client_side = *TlsContext::for_client(trust);
    using namespace asio::experimental::awaitable_operators;
    Task<error_code> accepting = ends.server->start_tls(*server_side, {});
    Task<error_code> connecting = ends.client->start_tls(*client_side, "127.0.0.1");
    auto both = std::move(accepting) && std::move(connecting);
    const auto [accepted, error] = co_await std::move(both);
    EXPECT_FALSE(error) << ends.client->handshake_trouble(*client_side, error);
    EXPECT_FALSE(accepted);
    co_return ends;
  }

  // `test` is a coroutine function of the two ends.
  template <class Test>
  void run(Test test) {
    const bool done = test::run_to_end(with_ends(std::move(test)));
    EXPECT_TRUE(done);
  }

  template <class Test>
  Task<bool> with_ends(Test test) {
    Ends ends = co_await connected();
    co_await test(ends);
    co_return true;
  }

  test::Certificate certificate_;
};

INSTANTIATE_TEST_SUITE_P(PlainAndTls, ByteStreams, ::testing::Values(false, true),
                         [](const auto& info) { return info.param ? "Tls" : "Plain"; });

TEST_P(ByteStreams, CarriesBothWaysAtOnce) {
  run([](Ends& ends) -> Task<void> {
    const auto executor = co_await asio::this_coro::executor;
    const std::string up = pattern(3'000'000, 1);
    const std::string down = pattern(2'000'000, 2);
    int running = 2;
    const auto sent = [&](std::exception_ptr, error_code error) {
      EXPECT_FALSE(error);
      --running;
    };
    asio::co_spawn(executor, send(*ends.client, up), sent);
    asio::co_spawn(executor, send(*ends.server, down), sent);
    std::string at_client;
    asio::co_spawn(executor, receive(*ends.client, down.size(), 777),
                   [&](std::exception_ptr, std::pair<std::string, error_code> got) { at_client = std::move(got.first); });
    const auto [at_server, error] = co_await receive(*ends.server, up.size());
    EXPECT_EQ(at_server, up);
    asio::steady_timer tick(executor);
    while (running > 0 || at_client.empty()) {
      tick.expires_after(std::chrono::milliseconds(1));
      co_await tick.async_wait(use_tuple);
    }
    EXPECT_EQ(at_client, down);
  });
}

TEST_P(ByteStreams, SmallBuffersAndLargeOnesKeepTheirOrder) {
  run([](Ends& ends) -> Task<void> {
    const std::string large = pattern(100'000, 3);
    std::vector<asio::const_buffer> buffers;
    for (const std::string_view piece : {std::string_view("a"), std::string_view(""), std::string_view(large), std::string_view("b"),
                                         std::string_view("c"), std::string_view(large), std::string_view("d")}) {
      buffers.push_back(asio::buffer(piece));
    }
    const auto executor = co_await asio::this_coro::executor;
    asio::co_spawn(executor, ends.client->write(std::move(buffers)), [](std::exception_ptr, error_code error) { EXPECT_FALSE(error); });
    const std::string expected = "a" + large + "bc" + large + "d";
    const auto [got, error] = co_await receive(*ends.server, expected.size());
    EXPECT_EQ(got, expected);
  });
}

TEST_P(ByteStreams, ACancelledReadLosesNothing) {
  run([](Ends& ends) -> Task<void> {
    const auto executor = co_await asio::this_coro::executor;
    const std::string bytes = pattern(200'000, 4);
    asio::co_spawn(executor, send(*ends.client, bytes), asio::detached);
    asio::cancellation_signal stop;
    std::string got;
    std::mt19937 source(5);
    std::vector<char> room(997);
    int cancelled = 0;
    asio::steady_timer timer(executor);
    while (got.size() < bytes.size()) {
      timer.expires_after(std::chrono::microseconds(source() % 30));
      timer.async_wait([&stop](const error_code& error) {
        if (!error) stop.emit(asio::cancellation_type::terminal);
      });
      const ByteStream::Moved moved = co_await ends.server->read_some(room, stop.slot());
      cancelled += moved.error == asio::error::operation_aborted;
      got.append(room.data(), moved.count);
    }
    EXPECT_EQ(got, bytes);
    timer.expires_after(std::chrono::milliseconds(1));
    timer.async_wait([&stop](const error_code& error) {
      if (!error) stop.emit(asio::cancellation_type::terminal);
    });
    const ByteStream::Moved last = co_await ends.server->read_some(room, stop.slot());
    EXPECT_EQ(last.error, asio::error::operation_aborted);
  });
}

TEST_P(ByteStreams, AnEndIsToldFromACut) {
  run([](Ends& ends) -> Task<void> {
    co_await send(*ends.client, "last words");
    ends.client->end_sending();
    const auto [words, ended] = co_await receive(*ends.server, 1000);
    EXPECT_EQ(words, "last words");
    EXPECT_EQ(ended, asio::error::eof);
    // The other direction goes on.
    co_await send(*ends.server, "an answer");
    const auto [answer, none] = co_await receive(*ends.client, 9);
    EXPECT_EQ(answer, "an answer");
    ends.server->close();
    const auto [nothing, cut] = co_await receive(*ends.client, 1);
    if (GetParam()) {
      EXPECT_EQ(cut, asio::ssl::error::stream_truncated);
    } else {
      EXPECT_EQ(cut, asio::error::eof);
    }
  });
}

TEST_P(ByteStreams, ACloseEndsWhatWaits) {
  run([](Ends& ends) -> Task<void> {
    const auto executor = co_await asio::this_coro::executor;
    asio::steady_timer timer(executor, std::chrono::milliseconds(5));
    timer.async_wait([&](const error_code&) { ends.server->close(); });
    const auto [nothing, error] = co_await receive(*ends.server, 1);
    EXPECT_EQ(error, asio::error::operation_aborted);
    EXPECT_TRUE(co_await send(*ends.server, "too late"));
  });
}

TEST_P(ByteStreams, NothingToReadIsNoEnd) {
  run([](Ends& ends) -> Task<void> {
    std::array<char, 10> room{};
    EXPECT_EQ(ends.client->try_read(room).error, asio::error::would_block);
    co_await send(*ends.server, "x");
    const auto [got, error] = co_await receive(*ends.client, 1);
    EXPECT_EQ(got, "x");
    EXPECT_EQ(ends.client->try_read(room).error, asio::error::would_block);
  });
}

TEST_P(ByteStreams, AWriteToWhoHasLeftFailsWithoutASignal) {
  run([](Ends& ends) -> Task<void> {
    ends.client->close();
    error_code error;
    const std::string bytes = pattern(1'000'000, 6);
    for (int i = 0; i < 20 && !error; ++i) error = co_await send(*ends.server, bytes);
    EXPECT_TRUE(error);
  });
}

TEST(TlsContextTest, MistakesNameTheFile) {
  const test::Certificate one;
  const test::Certificate other;
  const auto context = TlsContext::for_server(one.file(), "/nowhere/key.pem");
  ASSERT_FALSE(context);
  EXPECT_EQ(context.error().context, "tls_key /nowhere/key.pem: No such file or directory");
  const auto mismatch = TlsContext::for_server(one.file(), other.file());
  ASSERT_FALSE(mismatch);
  EXPECT_EQ(mismatch.error().context, "tls_key " + other.file() + ": is not the key of tls_certificate " + one.file());
  EXPECT_EQ(mismatch.error().code, ErrorCode::invalid);
}

TEST(TlsContextTest, AStrangerIsNotTrusted) {
  const bool done = test::run_to_end([]() -> Task<bool> {
    const test::Certificate server;
    const test::Certificate stranger;
    const auto executor = co_await asio::this_coro::executor;
    tcp::acceptor acceptor(executor, tcp::endpoint(asio::ip::address_v4::loopback(), 0));
    tcp::socket near(executor);
    near.connect(acceptor.local_endpoint());
    ByteStream client(std::move(near));
    ByteStream accepted(acceptor.accept());
    const auto server_side = *TlsContext::for_server(server.file(), server.file());
    TlsContext::Trust trust;
    trust.ca = stranger.file();
    const auto client_side = *TlsContext::for_client(trust);
    bool ended = false;
    asio::co_spawn(executor, accepted.start_tls(*server_side, {}), [&](std::exception_ptr, error_code error) {
      EXPECT_TRUE(error);
      ended = true;
    });
    const error_code error = co_await client.start_tls(*client_side, "127.0.0.1");
    EXPECT_TRUE(error);
    const std::string trouble = client.handshake_trouble(*client_side, error);
    EXPECT_NE(trouble.find("not trusted by backend_ca " + stranger.file()), std::string::npos) << trouble;
    client.close();
    asio::steady_timer tick(executor);
    while (!ended) {
      tick.expires_after(std::chrono::milliseconds(1));
      co_await tick.async_wait(use_tuple);
    }
    co_return true;
  }());
  EXPECT_TRUE(done);
}

}  // namespace
}  // namespace cairn

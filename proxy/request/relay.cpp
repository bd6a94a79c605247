#include "request/relay.hpp"

#include <boost/asio/experimental/awaitable_operators.hpp>

#include <boost/asio/this_coro.hpp>

#include <string_view>
#include <utility>
#include <vector>

#include "backend/async.hpp"
#include "backend/http_text.hpp"
#include "base/wakeup.hpp"
#include "request/answer_spool.hpp"

namespace cairn {

namespace {

using Clock = std::chrono::steady_clock;

constexpr std::size_t piece_bytes = 16 * 1024;

// How the two halves of a passed-on request tell each other that there is no more to do.
struct PassState {
  Exchange& exchange;
  Downstream& downstream;
  EventStreamOptions events;
  bool upload_done = false;
  std::optional<Error> upload_broken;  // by the client
};

// A body that was read before.
Task<void> send_body(PassState& state, const std::string& body) {
  const std::span<const char> bytes(body.data(), body.size());
  auto sent = co_await state.exchange.write_body(bytes);
  if (sent) co_await state.exchange.finish_body();
  state.upload_done = true;
}

Task<void> upload(PassState& state) {
  std::vector<char> piece(piece_bytes);
  for (;;) {
    auto count = co_await state.downstream.read_some(piece);
    if (!count) {
      state.upload_broken = count.error();
      state.exchange.close();  // wakes the half that waits for the answer
      break;
    }
    // A failed write is no reason to hang up: the backend may have refused early, and its answer can be read still.
    const std::span<const char> bytes(piece.data(), *count);
    if (bytes.empty()) {
      co_await state.exchange.finish_body();
      break;
    }
    auto sent = co_await state.exchange.write_body(bytes);
    if (!sent) break;
  }
  state.upload_done = true;
}

Task<Result<RelayOutcome>> answer(PassState& state) {
  auto head = co_await state.exchange.read_head();
  if (!head) {
    // The upload ends with its next piece or time limit; the connection is kept, for the client is owed an error answer.
    state.exchange.close();
    if (state.upload_broken) co_return *state.upload_broken;
    co_return head.error();
  }
  auto outcome = co_await relay_answer(state.exchange, state.downstream, *head, nullptr, state.events);
  state.exchange.close();
  // The answer is whole and the backend wants no more of the request: stop waiting for it.
  if (!state.upload_done) state.downstream.abort();
  co_return outcome;
}

ResultTask<RelayOutcome> pass_once(Upstream& upstream, Downstream& downstream, const std::optional<std::string>& body,
                                   EventStreamOptions events) {
  using namespace boost::asio::experimental::awaitable_operators;
  BodyFraming framing = downstream.request_framing();
  if (body && framing.kind != BodyFraming::Kind::none) {
    framing.kind = BodyFraming::Kind::length;
    framing.length = body->size();
  }
  auto started = co_await upstream.start(downstream.head(), framing, downstream.cancel());
  if (!started) co_return started.error();
  const std::unique_ptr<Exchange> exchange = std::move(*started);
  PassState state{*exchange, downstream, events};
  if (framing.kind == BodyFraming::Kind::none) {
    state.upload_done = true;
    co_return co_await answer(state);
  }
  Task<void> up = body ? send_body(state, *body) : upload(state);
  Task<Result<RelayOutcome>> down = answer(state);
  auto both = std::move(up) && std::move(down);
  co_return co_await std::move(both);
}

// Whether what is written between two events cannot harm: HTTP/1.0 clients and encoded bodies get none of it.
bool may_be_commented(const RequestHead& request, const ResponseHead& head, const BodyFraming& framing) {
  if (head.status != 200 || framing.kind != BodyFraming::Kind::chunked) return false;
  if (request.version < 11 || request.method == "HEAD" || head.fields.get("Content-Encoding")) return false;
  return is_event_stream(head.fields);
}

// The body of an answer on its way, and what those know of each other who write it.
struct BodyState {
  BodyState(Exchange& from, Downstream& to, AnswerTap* watcher, ContinuedProgress* rewriter, BlockingPool* pool,
            const boost::asio::any_io_executor& executor)
      : exchange(from),
        downstream(to),
        tap(watcher),
        progress(rewriter),
        spool(pool),
        moved(executor),
        ended(executor),
        comment_written(executor) {}

  Exchange& exchange;
  Downstream& downstream;
  AnswerTap* tap;
  ContinuedProgress* progress;
  RelayOutcome outcome;

  AnswerSpool spool;
  Condition moved;  // something was put into the spool, or taken from it
  bool all_taken = false;
  bool client_lost = false;
  std::optional<Error> backend_lost;

  Clock::time_point quiet_since = Clock::now();
  char last_sent = '\n';
  bool between_events = true;  // of what was sent
  bool sending = false;        // the backend's bytes, or the end
  bool commenting = false;
  Wakeup ended;
  Condition comment_written;
};

ResultTask<void> send(BodyState& state, std::span<const char> bytes) {
  if (bytes.empty()) co_return Result<void>{};
  while (state.commenting) co_await state.comment_written.wait();
  state.sending = true;
  auto written = co_await state.downstream.write_body(bytes);
  state.sending = false;
  if (!written) co_return written;
  state.outcome.body_bytes += bytes.size();
  const char before = bytes.size() > 1 ? bytes[bytes.size() - 2] : state.last_sent;
  state.last_sent = bytes.back();
  state.between_events = before == '\n' && state.last_sent == '\n';
  co_return written;
}

ResultTask<void> finish(BodyState& state) {
  while (state.commenting) co_await state.comment_written.wait();
  state.sending = true;
  co_return co_await state.downstream.finish();
}

// From the backend into the spool.
Task<void> take_body(BodyState& state) {
  std::vector<char> piece(piece_bytes);
  while (!state.client_lost) {
    if (state.spool.full()) {
      co_await state.moved.wait();
      continue;
    }
    auto count = co_await state.exchange.read_some(piece);
    state.quiet_since = Clock::now();
    std::span<const char> bytes;
    if (count) bytes = std::span<const char>(piece.data(), *count);
    if (state.tap != nullptr && !bytes.empty()) state.tap->on_bytes(bytes);
    if (state.progress != nullptr) bytes = bytes.empty() ? state.progress->rest() : state.progress->on_bytes(bytes);
    if (!bytes.empty()) co_await state.spool.put(bytes);
    if (!count) state.backend_lost = count.error();
    state.all_taken = !count || *count == 0;
    if (state.all_taken) break;
    state.moved.notify_all();
  }
  if (state.tap != nullptr) state.tap->on_end(state.all_taken && !state.backend_lost);
  state.moved.notify_all();
}

// From the spool to the client.
Task<void> give_body(BodyState& state) {
  std::vector<char> piece(piece_bytes);
  Result<void> written;
  while (written) {
    auto count = co_await state.spool.take(piece);
    if (!count) {
      written = count.error();
      state.downstream.abort();
    } else if (*count > 0) {
      state.moved.notify_all();
      const std::span<const char> bytes(piece.data(), *count);
      written = co_await send(state, bytes);
    } else if (!state.all_taken) {
      co_await state.moved.wait();
    } else {
      break;
    }
  }
  if (written && state.backend_lost) {
    state.outcome.broken = state.backend_lost;
    state.downstream.abort();
  } else if (written) {
    written = co_await finish(state);
  }
  if (!written) {
    state.outcome.broken = written.error();
    state.client_lost = true;
    state.exchange.close();
    state.moved.notify_all();
  }
  state.ended.notify();
}

// Beside take_body(), whose pending read is left alone. The timer is set anew once in `silence`, not at each piece.
Task<void> comment_in_silence(BodyState& state, std::chrono::milliseconds silence) {
  constexpr std::string_view comment = ": waiting\n\n";
  while (!state.ended.notified()) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(state.quiet_since + silence - Clock::now());
    if (left.count() > 0) {
      (void)co_await state.ended.wait_for(left);
      continue;
    }
    state.quiet_since = Clock::now();
    // While bytes are still on their way out, the client is what is slow.
    if (state.sending || !state.between_events) continue;
    const std::span<const char> bytes{comment};
    state.commenting = true;
    auto written = co_await state.downstream.write_body(bytes);
    state.commenting = false;
    state.comment_written.notify_all();
    if (!written) co_return;  // the client has left: the other half finds out by itself
  }
}

}  // namespace

ResultTask<RelayOutcome> relay_answer(Exchange& exchange, Downstream& downstream, const ResponseHead& head,
                                      AnswerTap* tap, EventStreamOptions events, BlockingPool* spool) {
  using namespace boost::asio::experimental::awaitable_operators;
  const BodyFraming framing = exchange.answer_framing();
  auto written = co_await downstream.write_head(head, framing);
  if (!written) {
    exchange.close();
    if (tap != nullptr) tap->on_end(false);
    co_return written.error();
  }
  if (!may_be_commented(downstream.head(), head, framing)) events = {};
  auto executor = co_await boost::asio::this_coro::executor;
  BodyState state(exchange, downstream, tap, events.progress, spool, executor);
  state.outcome.status = head.status;
  Task<void> taking = take_body(state);
  Task<void> giving = give_body(state);
  if (events.silence.count() == 0) {
    auto both = std::move(taking) && std::move(giving);
    co_await std::move(both);
    co_return state.outcome;
  }
  Task<void> comments = comment_in_silence(state, events.silence);
  auto all = std::move(taking) && std::move(giving) && std::move(comments);
  co_await std::move(all);
  co_return state.outcome;
}

ResultTask<RelayOutcome> pass_through(Upstream& upstream, Downstream& downstream, const std::optional<std::string>& body,
                                      EventStreamOptions events) {
  auto outcome = co_await pass_once(upstream, downstream, body, events);
  // A body that went up as it came has been consumed: such a request cannot be sent again.
  const bool again = !outcome && outcome.error().may_retry && !downstream.cancel().cancelled() &&
                     (body || downstream.request_framing().kind == BodyFraming::Kind::none);
  if (again) {
    upstream.close_idle();  // another kept connection may have died, too
    outcome = co_await pass_once(upstream, downstream, body, events);
  }
  co_return outcome;
}

}  // namespace cairn

#include "request/relay.hpp"

#include <boost/asio/experimental/awaitable_operators.hpp>

#include <utility>
#include <vector>

namespace cairn {

namespace {

constexpr std::size_t piece_bytes = 16 * 1024;

// How the two halves of a passed-on request tell each other that there is no more to do.
struct PassState {
  Exchange& exchange;
  Downstream& downstream;
  bool upload_done = false;
  std::optional<Error> upload_broken;  // by the client
};

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
  auto outcome = co_await relay_answer(state.exchange, state.downstream, *head, nullptr);
  state.exchange.close();
  // The answer is whole and the backend wants no more of the request: stop waiting for it.
  if (!state.upload_done) state.downstream.abort();
  co_return outcome;
}

ResultTask<RelayOutcome> pass_once(Upstream& upstream, Downstream& downstream) {
  using namespace boost::asio::experimental::awaitable_operators;
  const BodyFraming framing = downstream.request_framing();
  auto started = co_await upstream.start(downstream.head(), framing, downstream.cancel());
  if (!started) co_return started.error();
  const std::unique_ptr<Exchange> exchange = std::move(*started);
  PassState state{*exchange, downstream};
  if (framing.kind == BodyFraming::Kind::none) {
    state.upload_done = true;
    co_return co_await answer(state);
  }
  Task<void> up = upload(state);
  Task<Result<RelayOutcome>> down = answer(state);
  auto both = std::move(up) && std::move(down);
  co_return co_await std::move(both);
}

}  // namespace

ResultTask<RelayOutcome> relay_answer(Exchange& exchange, Downstream& downstream, const ResponseHead& head,
                                      AnswerTap* tap) {
  RelayOutcome outcome;
  outcome.status = head.status;
  const BodyFraming framing = exchange.answer_framing();
  auto written = co_await downstream.write_head(head, framing);
  if (!written) {
    exchange.close();
    co_return written.error();
  }
  std::vector<char> piece(piece_bytes);
  for (;;) {
    auto count = co_await exchange.read_some(piece);
    if (!count) {
      outcome.broken = count.error();
      downstream.abort();
      co_return outcome;
    }
    if (*count == 0) break;
    const std::span<const char> bytes(piece.data(), *count);
    if (tap != nullptr) tap->on_bytes(bytes);
    written = co_await downstream.write_body(bytes);
    if (!written) break;
    outcome.body_bytes += *count;
  }
  if (written) written = co_await downstream.finish();
  outcome.complete = written.has_value();
  if (!written) {
    outcome.broken = written.error();
    exchange.close();
  }
  co_return outcome;
}

ResultTask<RelayOutcome> pass_through(Upstream& upstream, Downstream& downstream) {
  auto outcome = co_await pass_once(upstream, downstream);
  // Only a request without a body can be sent again: the other's has been consumed.
  const bool again = !outcome && outcome.error().may_retry && !downstream.cancel().cancelled() &&
                     downstream.request_framing().kind == BodyFraming::Kind::none;
  if (again) outcome = co_await pass_once(upstream, downstream);
  co_return outcome;
}

}  // namespace cairn

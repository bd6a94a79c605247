// The last steps of a CachedRequest: sending the body, relaying the answer, and what the answer proves.
#include <spdlog/spdlog.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>

#include <algorithm>
#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <utility>

#include "request/cached_request.hpp"
#include "request/error_answer.hpp"

namespace cairn {

namespace {

class TapForTimings final : public AnswerTap {
 public:
  using OnEnd = std::function<void(const TapForTimings&, bool whole)>;
  explicit TapForTimings(OnEnd on_end) : on_end_(std::move(on_end)) {}
  void on_bytes(std::span<const char> bytes) override {
    // A comment in a silence, by which a stream is kept alive, is no answer.
    constexpr std::string_view event = "data:";
    saw_event_ = saw_event_ || std::string_view{bytes.data(), bytes.size()}.find(event) != std::string_view::npos;
    seen_bytes_ += bytes.size();
    tail_.on_bytes(bytes);
  }
  void on_end(bool whole) override { on_end_(*this, whole); }
  const TimingsTail& tail() const { return tail_; }
  bool saw_event() const { return saw_event_; }
  std::uint64_t seen_bytes() const { return seen_bytes_; }

 private:
  OnEnd on_end_;
  TimingsTail tail_;
  std::uint64_t seen_bytes_ = 0;
  bool saw_event_ = false;
};

// The start gate while a request waits for its task to begin. Shared with the coroutine that watches for that, which ends by
// itself soon after end().
struct GateWatch {
  GateWatch(CachedBackend& owner, StartGate held) : backend(owner), gate(std::move(held)), ended(owner.executor()) {}
  void end() {
    gate.release();
    ended.notify();
    polling.cancel();
  }
  CachedBackend& backend;
  StartGate gate;
  Wakeup ended;
  CancelSource polling;
};

// `slot`: where it should run. `anywhere`: or in any that none of ours runs in.
Task<void> release_when_started(std::shared_ptr<GateWatch> watch, int slot, bool anywhere) {
  constexpr std::chrono::milliseconds pause{20};
  while (watch->gate && !co_await watch->ended.wait_for(pause)) {
    // Asked only while somebody waits: polling puts off the backend's notice of a client that left.
    if (!watch->backend.scheduler().gate_wanted()) continue;
    Result<std::vector<SlotInfo>> infos = co_await watch->backend.api().slots(watch->polling);
    if (!infos || watch->ended.notified()) continue;
    const auto& known = watch->backend.slots().slots();
    for (const SlotInfo& info : *infos) {
      const bool ours = info.id >= 0 && info.id < static_cast<int>(known.size()) && known[static_cast<std::size_t>(info.id)].running;
      if (info.processing && (info.id == slot || (anywhere && !ours))) watch->gate.release();
    }
  }
}

}  // namespace

Task<void> CachedRequest::forward(const std::string& body, StartGate& gate) {
  const bool leased = slot_ >= 0;
  BodyFraming framing;
  framing.kind = BodyFraming::Kind::length;
  framing.length = body.size();
  const std::span<const char> bytes{body.data(), body.size()};
  std::unique_ptr<Exchange> exchange;
  Result<ResponseHead> head = upstream_error(ErrorCode::internal, "not sent");

  if (!leased || !parsed_.takes_slot) backend_.find_taken();
  auto watch = std::make_shared<GateWatch>(backend_, std::move(gate));
  if (watch->gate) {
    boost::asio::co_spawn(backend_.executor(), release_when_started(watch, slot_, !leased || !parsed_.takes_slot), boost::asio::detached);
  }

  for (int attempt = 0; attempt < 2; ++attempt) {
    Result<std::unique_ptr<Exchange>> started =
        co_await backend_.upstream().start(downstream_.head(), framing, downstream_.cancel());
    if (!started) {
      head = started.error();
    } else {
      exchange = std::move(*started);
      Result<void> written = co_await exchange->write_body(bytes);
      if (written) written = co_await exchange->finish_body();
      turn_.end();
      // The backend may have answered (413, say) without reading all of it: look before giving up.
      head = co_await exchange->read_head();
      if (!head && !written && written.error().may_retry) head = written.error();
    }
    if (head || !head.error().may_retry || downstream_.cancel().cancelled()) break;
    // A kept connection that had died: the next attempt gets a fresh one.
    backend_.upstream().close_idle();
  }
  watch->end();
  turn_.end();

  if (!head) {
    const Error error = head.error();
    if (error.code == ErrorCode::refused || error.code == ErrorCode::closed) backend_.suspect_down();
    if (leased) account(std::nullopt, false);
    backend_is_done();
    co_await fail(error);
    co_return;
  }
  record_.enter(Step::relay);
  const int status = head->status;
  backend_.option_trials().answered(options_, status);
  // However slow the client reads, the slot is free for others once the backend has said all.
  TapForTimings tap([this, leased, status](const TapForTimings& seen, bool whole) {
    // A request that the backend refused has not touched the slot.
    const bool computed = !parsed_.return_progress && (whole ? seen.seen_bytes() > 0 : parsed_.stream && seen.saw_event());
    // Of answers that have no timings a tool's arguments may look like some.
    const std::optional<Timings> told = parsed_.form == PromptForm::messages ? seen.tail().usage() : seen.tail().timings();
    if (leased && status / 100 == 2) {
      account(told, computed);
      SlotState& state = backend_.slots().at(slot_);
      if (!whole) {  // counts that came before the end say nothing of it
        state.unknown_tail = std::max(state.unknown_tail, 1U);
        state.tail_counted = false;
      }
    } else if (leased && record_.pieces > 0 && backend_.generation() == generation_) {
      note_content();
    }
    if (!leased && plan_.source == Source::backend && told) account_unpinned(*told);
    backend_is_done();
  });
  EventStreamOptions events;
  events.silence = backend_.options().comment_after;
  std::optional<ContinuedProgress> progress;
  if (record_.pieces > 0 && parsed_.stream && parsed_.return_progress) {
    const double earlier_ms = record_.step_s[static_cast<std::size_t>(Step::prefill)] * 1000;
    events.progress = &progress.emplace(first_reused_, static_cast<std::int64_t>(earlier_ms));
  }
  Result<RelayOutcome> outcome = co_await relay_answer(*exchange, downstream_, *head, &tap, events, &backend_.pool());
  exchange.reset();
  record_.status = head->status;
  if (outcome) {
    record_.answer_bytes = outcome->body_bytes;
    if (outcome->broken) record_.error = to_string(*outcome->broken);
  } else {
    record_.error = to_string(outcome.error());
  }
  if (downstream_.cancel().cancelled()) record_.status = status_client_left;
}

// Whatever is held for the backend's sake is given back.
void CachedRequest::backend_is_done() {
  if (lease_ && slot_ >= 0) {
    backend_.slots().touch(slot_);
    const SlotState& state = backend_.slots().at(slot_);
    backend_.note_lease_ended(std::chrono::duration<double>(std::chrono::steady_clock::now() - state.leased_at).count());
  }
  presence_.reset();
  lease_.release();
  foreign_.reset();  // looks at the slots once none is in use
}

// What the slot holds now, and what the answer proves about our beliefs. `computed`: the prompt was, although there are no timings.
void CachedRequest::account(const std::optional<Timings>& timings, bool computed) {
  SlotState& state = backend_.slots().at(slot_);
  const auto prompt = static_cast<std::uint32_t>(prompt_.size());
  if (backend_.generation() != generation_) {
    // The backend was probed anew meanwhile: this may have been computed with other adapters than it has now.
    if (timings) record_.computed_tokens = computed_in_pieces_ + timings->prompt_n;
    backend_.slots().forget(slot_);
    state.other_weights = true;
    return;
  }
  state.chosen_for_us = !parsed_.takes_slot;
  if (!timings) {
    const std::uint32_t held_before = state.held();
    const std::size_t common = common_prefix(state.known, prompt_);
    cut_resume_points(state.resume_points, static_cast<std::uint32_t>(common));
    // Once there was an answer the prompt had been computed; progress reports come before that.
    if (computed) {
      state.known = prompt_;
      state.by_length = state.unresolved = false;
    } else {
      // It holds our tokens up to the last piece for certain, and something beyond.
      state.known.resize(common);
      if (own_weights() && parsed_.takes_slot) backend_.slots().note_attempt(slot_, prompt_, held_before);
    }
    state.name_space = name_space();
    state.unknown_tail = 1;
    state.tail_counted = false;
    note_content();
    return;
  }
  if (first_reused_ < 0) first_reused_ = timings->cache_n;
  record_.reused_tokens = first_reused_;
  record_.computed_tokens = computed_in_pieces_ + timings->prompt_n;
  backend_.costs().observe_prefill(static_cast<double>(timings->cache_n), static_cast<double>(timings->prompt_n),
                                   timings->prompt_ms / 1000.0);
  if (timings->cache_n + timings->prompt_n != static_cast<std::int64_t>(prompt)) {
    // The backend's prompt was another than we thought: our tokens are not what the slot holds.
    const std::int64_t counted = timings->cache_n + timings->prompt_n;
    if (!is_derived(parsed_.form)) {
      spdlog::warn("the backend counted {} prompt tokens where we had {}: its tokenization is not remembered any more", counted, prompt);
      backend_.memo().distrust();
    } else {
      spdlog::warn("the backend counted {} prompt tokens where we derived {} from the body of {}", counted, prompt, record_.path);
      backend_.derivations().differed(parsed_.form);
    }
    record_.miss = MissReason::other_prompt;
    backend_.slots().forget(slot_);
    state.unknown_tail = prompt;
    return;
  }
  // Where the backend chose the slot, little reuse may mean another slot.
  const bool says_something = parsed_.takes_slot || timings->cache_n >= static_cast<std::int64_t>(plan_.base);
  if (says_something) learn(timings->cache_n);
  note_pieces(timings->cache_n);
  if (!stops_made_.empty()) backend_.note_pieces(pieces_lost_);
  if (is_derived(parsed_.form)) backend_.derivations().agreed(parsed_.form);
  if (own_weights()) backend_.check_weights(slot_, prompt_, timings->cache_n);
  // More than was in the slot came out of the backend's RAM cache.
  const std::size_t common = common_prefix(state.known, prompt_);
  cut_resume_points(state.resume_points, static_cast<std::uint32_t>(std::min(static_cast<std::size_t>(timings->cache_n), common)));
  if (backend_.kind() != MemoryKind::truncatable) {
    const std::uint32_t ubatch = backend_.options().ubatch_tokens;
    const auto from = static_cast<std::uint32_t>(timings->cache_n);
    add_piece_resume_points(state.resume_points, from, prompt, ubatch);
    // A short rest after a stop leaves a context checkpoint exactly at the stop (build 11669).
    if (record_.pieces > 0 && prompt - from < ubatch && from >= 64) {
      const auto place = std::lower_bound(state.resume_points.begin(), state.resume_points.end(), from);
      if (place == state.resume_points.end() || *place != from) state.resume_points.insert(place, from);
    }
    thin_resume_points(state.resume_points);
    state.pieces_since_save = timings->cache_n > 0 ? state.pieces_since_save + 1 : 1;
  }
  if (own_weights()) {
    const std::vector<std::uint32_t>& points = backend_.kind() == MemoryKind::exact ? stops_made_ : state.resume_points;
    backend_.note_prompt(widest_gap(plan_.base, prompt, points), overhead_seconds() / prompt);
  }
  state.known = prompt_;
  state.by_length = state.unresolved = false;
  // The last generated token is not in the state.
  state.unknown_tail = timings->predicted_n > 1 ? static_cast<std::uint32_t>(timings->predicted_n - 1) : 0;
  state.tail_counted = true;
  if (own_weights() && backend_.catalogue() != nullptr && timings->predicted_n > 0) {
    backend_.catalogue()->answered(backend_.name_space(), prompt_, static_cast<std::uint32_t>(timings->predicted_n));
  }
  state.name_space = name_space();
  record_.miss = explain();
  note_content();
}

// What the first answer says of what we went on from.
void CachedRequest::learn(std::int64_t reused) {
  if (std::exchange(learned_, true)) return;
  if (plan_.source == Source::live && base_by_length_) return;  // a guess that fails proves nothing
  const std::uint64_t own = foreign_ ? 1 : 0;
  const bool alone = !base_beside_foreign_ && backend_.foreign() == own && backend_.foreign_epoch() == base_epoch_ + own;
  backend_.learn_from_reuse(plan_.source, static_cast<CheckpointId>(plan_.checkpoint), plan_.base, base_common_, base_length_, reused, alone);
}

// Whether what its pieces have left was still there for the next one.
void CachedRequest::note_pieces(std::int64_t reused) {
  if (stops_made_.empty()) return;
  constexpr std::int64_t tolerance = 16;
  pieces_lost_ = pieces_lost_ || reused + tolerance < static_cast<std::int64_t>(stops_made_.back());
}

// What the slot holds is of this prompt now.
void CachedRequest::note_content() {
  SlotState& state = backend_.slots().at(slot_);
  state.proven = known_.continues;
  state.return_chance = chance_to_return();
  backend_.note_slot_content(slot_);
}

double CachedRequest::chance_to_return() const {
  // A conversation that has gone on once goes on again.
  constexpr double conversation = 0.95;
  return known_.continues ? conversation : backend_.return_chance();
}

// The backend chose the slot: what it reused tells whether its cache held what we believed.
void CachedRequest::account_unpinned(const Timings& timings) {
  record_.reused_tokens = timings.cache_n;
  record_.computed_tokens = timings.prompt_n;
  if (backend_.generation() != generation_) return;
  record_.miss = explain();
  std::vector<std::uint32_t> points = backend_.learn_from_ram_cache(prompt_, plan_.base, timings.cache_n);
  add_piece_resume_points(points, static_cast<std::uint32_t>(timings.cache_n), static_cast<std::uint32_t>(prompt_.size()),
                          backend_.options().ubatch_tokens);
  thin_resume_points(points);
  if (timings.cache_n + timings.prompt_n == static_cast<std::int64_t>(prompt_.size())) {
    SlotTable::Placed placed{prompt_, 0, points, known_.continues, chance_to_return(), name_space()};
    placed.unknown_tail = timings.predicted_n > 1 ? static_cast<std::uint32_t>(timings.predicted_n - 1) : 0;
    backend_.slots().note_placed(std::move(placed));
  }
  backend_.note_ram_cache(prompt_, std::move(points));  // where the next task's start clears it before we have seen its slot
}

MissReason CachedRequest::explain() const {
  // New: beyond what any earlier prompt shared. A few tokens either way are no miss.
  constexpr std::int64_t tolerance = 16;
  if (pieces_lost_) return MissReason::broken_promise;
  if (!own_weights()) return MissReason::none;  // nothing is kept of what was known
  const auto all = static_cast<std::int64_t>(prompt_.size());
  if (record_.reused_tokens > 0 && record_.reused_tokens + tolerance >= all) return MissReason::none;  // known or too short to be
  const auto could = static_cast<std::int64_t>(std::min<std::size_t>(known_.matched_tokens, prompt_.size() - 1));
  if (record_.reused_tokens + tolerance >= could) return could == 0 ? MissReason::new_prompt : MissReason::none;
  if (restore_failed_) return MissReason::restore_failed;
  if (record_.reused_tokens + tolerance < static_cast<std::int64_t>(record_.planned_tokens)) {
    const bool cleared = plan_.source == Source::live && record_.reused_tokens == 0 && backend_.probe().clears_idle;
    return cleared ? MissReason::cleared : MissReason::broken_promise;
  }
  if (plan_.empty_first || plan_.restore_dearer) return MissReason::cheaper;
  const auto reused = static_cast<std::uint32_t>(record_.reused_tokens);
  const bool has_store = backend_.catalogue() != nullptr;
  if (has_store && backend_.catalogue()->evicted_beyond(backend_.name_space(), prompt_, reused)) return MissReason::evicted;
  if (backend_.was_cleared(prompt_, static_cast<std::uint32_t>(record_.reused_tokens + tolerance))) return MissReason::cleared;
  if (!has_store) return MissReason::not_admitted;
  if (!candidates_.empty() || base_common_ > reused) return MissReason::cannot_rewind;
  return MissReason::not_admitted;
}

}  // namespace cairn

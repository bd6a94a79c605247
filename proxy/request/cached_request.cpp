#include "request/cached_request.hpp"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <boost/asio/co_spawn.hpp>

#include <algorithm>
#include <chrono>
#include <exception>
#include <utility>

#include "plan/stops.hpp"
#include "request/error_answer.hpp"

namespace cairn {

namespace {

constexpr std::size_t candidates_considered = 4;

std::int64_t unix_ms() {
  return std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::system_clock::now().time_since_epoch()).count();
}

class TapForTimings final : public AnswerTap {
 public:
  void on_bytes(std::span<const char> bytes) override { tail_.on_bytes(bytes); }
  const TimingsTail& tail() const { return tail_; }

 private:
  TimingsTail tail_;
};

}  // namespace

Task<void> CachedRequest::fail(const Error& error) {
  record_.status = error_status(error);
  record_.error = to_string(error);
  if (downstream_.cancel().cancelled()) record_.status = status_client_left;
  (void)co_await write_error(downstream_, error);
}

Task<void> CachedRequest::run(PromptForm form) {
  record_.enter(Step::read);
  Result<std::string> body = co_await downstream_.read_body(max_body_bytes_);
  if (!body) {
    co_await fail(body.error());
    co_return;
  }
  body_ = std::move(*body);
  record_.enter(Step::parse);
  record_.no_cache = co_await understand(form);
  if (record_.no_cache == NoCacheReason::used) {
    co_await serve_cached();
    co_return;
  }
  record_.enter(Step::forward);
  co_await backend_.begin_foreign();
  (void)co_await forward(body_, nullptr);
  co_await backend_.end_foreign();
}

Task<void> CachedRequest::run_unpinned() {
  record_.enter(Step::forward);
  co_await backend_.begin_foreign();
  Result<RelayOutcome> outcome = co_await pass_through(backend_.upstream(), downstream_);
  if (outcome) {
    record_.status = outcome->status;
    record_.answer_bytes = outcome->body_bytes;
    if (outcome->broken) record_.error = to_string(*outcome->broken);
    if (downstream_.cancel().cancelled()) record_.status = status_client_left;
  } else {
    if (outcome.error().code == ErrorCode::refused) backend_.suspect_down();
    co_await fail(outcome.error());
  }
  co_await backend_.end_foreign();
}

// Whether the cache can serve this request; prompt_ is set when it can.
Task<NoCacheReason> CachedRequest::understand(PromptForm form) {
  Result<PromptBody> parsed = parse_prompt_body(form, body_);
  if (!parsed) co_return NoCacheReason::unreadable_body;
  parsed_ = std::move(*parsed);
  if (parsed_.has_media) co_return NoCacheReason::media;
  if (parsed_.several) co_return NoCacheReason::several_prompts;
  if (parsed_.has_lora) co_return NoCacheReason::lora;
  if (parsed_.cache_prompt == false) co_return NoCacheReason::client_refused;
  if (parsed_.id_slot.value_or(0) < 0) co_return NoCacheReason::client_refused;
  if (!co_await backend_.wait_ready()) co_return NoCacheReason::backend_not_ready;

  record_.enter(Step::tokenize);
  Result<Tokens> tokens = form == PromptForm::chat ? co_await tokenize_chat() : co_await tokenize_completion();
  if (!tokens) {
    if (tokens.error().code == ErrorCode::refused) backend_.suspect_down();
    co_return NoCacheReason::template_failed;
  }
  prompt_ = std::move(*tokens);
  record_.prompt_tokens = static_cast<std::int64_t>(prompt_.size());
  if (prompt_.empty()) co_return NoCacheReason::empty_prompt;
  const std::int64_t context = backend_.probe().meta.n_ctx;
  if (context > 0 && static_cast<std::int64_t>(prompt_.size()) >= context) co_return NoCacheReason::too_long;
  co_return NoCacheReason::used;
}

ResultTask<Tokens> CachedRequest::tokenize_chat() {
  LlamaApi& api = backend_.api();
  Result<std::string> text = co_await api.apply_template(body_, downstream_.cancel());
  if (!text) co_return text.error();
  const bool add_special = true;
  Result<Tokens> tokens = co_await backend_.memo().tokenize(*text, add_special, downstream_.cancel());
  if (!tokens) co_return tokens.error();
  const std::size_t suffix_bytes = co_await backend_.suffixes().suffix_bytes(api, body_, *text, downstream_.cancel());
  if (suffix_bytes > 0) suffix_tokens_ = static_cast<std::uint32_t>(backend_.memo().tokens_in_tail(*text, suffix_bytes));
  co_return tokens;
}

ResultTask<Tokens> CachedRequest::tokenize_completion() {
  Tokens all;
  bool first_text = true;
  for (const auto& part : parsed_.prompt) {
    if (const Token* token = std::get_if<Token>(&part)) {
      all.push_back(*token);
      continue;
    }
    // Only the first part gets the tokenizer's begin token, and only when the prompt begins with it.
    const bool add_special = first_text && all.empty();
    first_text = false;
    Result<Tokens> tokens = co_await backend_.memo().tokenize(std::get<std::string>(part), add_special, downstream_.cancel());
    if (!tokens) co_return tokens.error();
    all.insert(all.end(), tokens->begin(), tokens->end());
  }
  co_return all;
}

std::optional<int> CachedRequest::choose(std::span<const int> idle) {
  const auto prompt = static_cast<std::uint32_t>(prompt_.size());
  const auto name_space = static_cast<std::int64_t>(backend_.name_space());
  std::vector<SlotOption> options;
  for (const int id : idle) {
    if (parsed_.id_slot && id != *parsed_.id_slot % static_cast<int>(backend_.slots().slots().size())) continue;
    const SlotState& state = backend_.slots().at(id);
    SlotOption option;
    option.slot = id;
    option.held = state.held();
    option.recoverable = state.unsaved ? state.recoverable : state.held();
    option.clean = state.fresh || backend_.probe().state_version >= 4;
    option.last_used = state.last_used;
    if (state.name_space == name_space) {
      const auto common = static_cast<std::uint32_t>(common_prefix(state.known, prompt_));
      option.usable = usable_tokens(backend_.kind(), state.view(), common, prompt);
    }
    options.push_back(option);
  }
  if (options.empty()) return std::nullopt;
  std::vector<RestoreOption> restores;
  for (const Catalogue::Candidate& candidate : candidates_) {
    RestoreOption option;
    option.checkpoint = static_cast<std::int64_t>(candidate.checkpoint);
    option.usable = candidate.usable_tokens;
    option.bytes = static_cast<double>(candidate.bytes);
    restores.push_back(option);
  }
  PlanInput input;
  input.prompt = prompt;
  input.slots = options;
  input.restores = restores;
  input.costs = &backend_.costs();
  input.can_save = backend_.can_save();
  const std::optional<Plan> plan = make_plan(input);
  if (!plan) return std::nullopt;
  plan_ = *plan;
  return plan_.slot;
}

Task<void> CachedRequest::serve_cached() {
  record_.enter(Step::match);
  const bool long_enough = prompt_.size() >= backend_.options().shortest_prompt_tokens;
  if (long_enough) {
    candidates_ = backend_.catalogue()->candidates(backend_.name_space(), prompt_, backend_.kind(), candidates_considered);
    known_ = backend_.catalogue()->learn(backend_.name_space(), prompt_, unix_ms());
    record_.known_tokens = known_.matched_tokens;
    if (!co_await backend_.still_the_same(downstream_.cancel()) && backend_.phase() != BackendPhase::ready) {
      // Another process, perhaps another model: what we know is about the old one.
      if (!co_await backend_.wait_ready()) {
        record_.no_cache = NoCacheReason::backend_not_ready;
        record_.enter(Step::forward);
        (void)co_await forward(body_, nullptr);
        co_return;
      }
      candidates_ = backend_.catalogue()->candidates(backend_.name_space(), prompt_, backend_.kind(), candidates_considered);
    }
  }

  record_.enter(Step::acquire);
  Scheduler::Choose chooser = [this](std::span<const int> idle) { return choose(idle); };
  Result<Lease> lease = co_await backend_.scheduler().acquire(std::move(chooser), downstream_.cancel());
  if (!lease) {
    co_await fail(lease.error());
    co_return;
  }
  slot_ = lease->slot();
  Result<StartGate> entered = co_await backend_.gate_if_needed(downstream_.cancel());
  if (!entered) {
    co_await fail(entered.error());
    co_return;
  }
  StartGate gate = std::move(*entered);
  if (gate) {
    co_await backend_.save_idle_slots(slot_);
    // While we waited, others started tasks and the slot may have been emptied, and more may have been saved: plan again.
    candidates_ = long_enough ? backend_.catalogue()->candidates(backend_.name_space(), prompt_, backend_.kind(), candidates_considered)
                              : std::vector<Catalogue::Candidate>{};
    const int only[] = {slot_};
    (void)choose(only);
  }
  record_.enter(Step::plan);
  record_.slot = slot_;
  record_.source = plan_.source;
  record_.plan_reason = plan_.reason;
  record_.planned_tokens = plan_.base;
  record_.checkpoint = plan_.checkpoint;

  co_await bring_back();
  if (!downstream_.cancel().cancelled()) co_await compute_pieces(gate);

  record_.enter(Step::forward);
  if (downstream_.cancel().cancelled()) {
    co_await fail(downstream_error(ErrorCode::cancelled, "the client left before its answer began"));
    co_return;
  }
  const bool add_cache_prompt = !parsed_.cache_prompt.has_value();
  std::string spliced;
  if (parsed_.id_slot) {
    spliced = body_;
  } else {
    spliced = splice_slot(body_, slot_, add_cache_prompt);
  }
  backend_.note_task_started(slot_);
  (void)co_await forward(spliced, gate ? &gate : nullptr);
  record_.enter(Step::save);
  backend_.slots().touch(slot_);
}

// The restore step: what the slot holds is saved if the plan says so, and the state put in.
Task<void> CachedRequest::bring_back() {
  const SlotState& state = backend_.slots().at(slot_);
  if (plan_.save_first && state.unsaved) {
    record_.enter(Step::save);
    Result<void> saved = co_await backend_.save(slot_);
    if (!saved) spdlog::debug("slot {} was not saved before it is overwritten: {}", slot_, to_string(saved.error()));
  }
  record_.enter(Step::restore);
  if (plan_.source == Source::restore) {
    Result<void> restored = co_await backend_.restore(slot_, static_cast<CheckpointId>(plan_.checkpoint));
    if (!restored) {
      restore_failed_ = true;
      record_.error = to_string(restored.error());
      plan_.base = 0;
      plan_.source = Source::recompute;
    }
  }
  base_length_ = state.held();
  base_common_ = static_cast<std::uint32_t>(common_prefix(state.known, prompt_));
}

// The prefill step: the prompt in pieces, so that states are left where later prompts will come back to.
Task<void> CachedRequest::compute_pieces(StartGate& gate) {
  record_.enter(Step::prefill);
  const auto prompt = static_cast<std::uint32_t>(prompt_.size());
  if (prompt < backend_.options().shortest_prompt_tokens || parsed_.cache_prompt == false) co_return;
  const MemoryKind kind = backend_.kind();

  std::vector<std::uint32_t> wanted;
  // The end of what the next turn will share: where next prompts were seen to leave, or before the generation suffix and the
  // tokens that close the last message. The backend leaves a context checkpoint 4 tokens before the end by itself.
  constexpr std::uint32_t left_by_backend = 4;
  constexpr std::uint32_t closing_tokens = 4;
  const std::uint32_t unlearned = suffix_tokens_ > 0 ? suffix_tokens_ + closing_tokens : 0;
  std::uint32_t before_end = backend_.catalogue()->end_offsets(backend_.name_space()).advised(unlearned);
  if (kind == MemoryKind::exact) before_end = std::max<std::uint32_t>(before_end, 1);
  if (before_end < prompt && (kind == MemoryKind::exact || before_end > left_by_backend)) wanted.push_back(prompt - before_end);
  // Where this prompt branches off a known one: a third will, too.
  if (known_.branch_tokens >= backend_.options().shortest_prompt_tokens) {
    const TokenSpan branch{prompt_.data(), known_.branch_tokens};
    if (!backend_.catalogue()->has_state_at(backend_.name_space(), branch)) wanted.push_back(known_.branch_tokens);
  }
  StopInput input;
  input.kind = kind;
  input.base = plan_.base;
  input.prompt = prompt;
  input.interval = backend_.options().checkpoint_interval_tokens;
  input.wanted = wanted;
  input.can_save = backend_.can_save();
  const std::vector<Stop> stops = plan_stops(input);

  std::uint32_t expected = plan_.base;
  for (const Stop& stop : stops) {
    // Somebody waits to start while we hold the gate: the rest in one go.
    if (backend_.scheduler().gate_wanted() && gate) break;
    const TokenSpan piece{prompt_.data(), stop.at};
    Result<Timings> timings = co_await backend_.prefill(slot_, piece, expected, downstream_.cancel());
    if (!timings) {
      // The backend judges the client's own request next; whatever is wrong with it, it says so itself.
      if (!downstream_.cancel().cancelled()) spdlog::debug("a piece was not computed: {}", to_string(timings.error()));
      co_return;
    }
    ++record_.pieces;
    computed_in_pieces_ += timings->prompt_n;
    if (first_reused_ < 0) first_reused_ = timings->cache_n;
    if (!learned_) {
      learned_ = true;
      backend_.learn_from_reuse(plan_.source, static_cast<CheckpointId>(plan_.checkpoint), expected, base_common_, base_length_,
                                timings->cache_n);
    }
    expected = stop.at;
    if (stop.save) {
      Result<void> saved = co_await backend_.save(slot_);
      if (!saved) spdlog::debug("no checkpoint at {}: {}", stop.at, to_string(saved.error()));
    }
    if (downstream_.cancel().cancelled()) co_return;
  }
}

Task<void> CachedRequest::release_gate_when_started(StartGate& gate, int slot, std::shared_ptr<Wakeup> done) {
  // Asked only while somebody waits: polling puts off the backend's notice of a client that left.
  constexpr std::chrono::milliseconds pause{20};
  CancelSource own;
  while (gate && !co_await done->wait_for(pause)) {
    if (!backend_.scheduler().gate_wanted()) continue;
    Result<std::vector<SlotInfo>> infos = co_await backend_.api().slots(own);
    if (!infos || done->notified()) continue;
    for (const SlotInfo& info : *infos) {
      if (info.id == slot && info.processing) gate.release();
    }
  }
}

Task<bool> CachedRequest::forward(const std::string& body, StartGate* gate) {
  const bool pinned = slot_ >= 0;
  BodyFraming framing;
  framing.kind = BodyFraming::Kind::length;
  framing.length = body.size();
  const std::span<const char> bytes{body.data(), body.size()};
  std::unique_ptr<Exchange> exchange;
  Result<ResponseHead> head = upstream_error(ErrorCode::internal, "not sent");

  auto done = std::make_shared<Wakeup>(backend_.executor());
  auto watcher_ended = std::make_shared<Wakeup>(backend_.executor());
  if (gate != nullptr) {
    const auto ended = [watcher_ended](std::exception_ptr) { watcher_ended->notify(); };
    boost::asio::co_spawn(backend_.executor(), release_gate_when_started(*gate, slot_, done), ended);
  } else {
    watcher_ended->notify();
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
      // The backend may have answered (413, say) without reading all of it: look before giving up.
      head = co_await exchange->read_head();
      if (!head && !written && written.error().may_retry) head = written.error();
    }
    if (head || !head.error().may_retry || downstream_.cancel().cancelled()) break;
    // A kept connection that had died: the next attempt gets a fresh one.
    backend_.upstream().close_idle();
  }
  done->notify();
  if (gate != nullptr) gate->release();
  co_await watcher_ended->wait();

  if (!head) {
    const Error error = head.error();
    if (error.code == ErrorCode::refused || error.code == ErrorCode::closed) backend_.suspect_down();
    if (pinned) account(std::nullopt, false);
    co_await fail(error);
    co_return false;
  }
  record_.enter(Step::relay);
  TapForTimings tap;
  Result<RelayOutcome> outcome = co_await relay_answer(*exchange, downstream_, *head, &tap);
  exchange.reset();
  record_.status = head->status;
  bool whole = false;
  if (outcome) {
    record_.answer_bytes = outcome->body_bytes;
    whole = outcome->complete;
    if (outcome->broken) record_.error = to_string(*outcome->broken);
  } else {
    record_.error = to_string(outcome.error());
  }
  if (downstream_.cancel().cancelled()) record_.status = status_client_left;
  // A request that the backend refused has not touched the slot.
  if (pinned && head->status / 100 == 2) account(tap.tail().timings(), whole);
  co_return whole;
}

// What the slot holds now, and what the answer proves about our beliefs.
void CachedRequest::account(const std::optional<Timings>& timings, bool whole) {
  SlotState& state = backend_.slots().at(slot_);
  const auto prompt = static_cast<std::uint32_t>(prompt_.size());
  if (!timings) {
    // Once there was an answer the prompt had been computed; progress reports come before that.
    const bool computed = record_.answer_bytes > 0 && !parsed_.return_progress && (whole || parsed_.stream);
    if (computed) {
      state.known = prompt_;
      state.name_space = static_cast<std::int64_t>(backend_.name_space());
    } else {
      // It holds our tokens up to the last piece for certain, and something beyond.
      state.known.resize(common_prefix(state.known, prompt_));
    }
    cut_resume_points(state.resume_points, static_cast<std::uint32_t>(state.known.size()));
    state.unknown_tail = 1;
    backend_.note_slot_content(slot_);
    return;
  }
  answer_timings_ = *timings;
  if (first_reused_ < 0) first_reused_ = timings->cache_n;
  if (!learned_) {
    learned_ = true;
    backend_.learn_from_reuse(plan_.source, static_cast<CheckpointId>(plan_.checkpoint), plan_.base, base_common_, base_length_,
                              timings->cache_n);
  }
  record_.reused_tokens = first_reused_;
  record_.computed_tokens = computed_in_pieces_ + timings->prompt_n;
  backend_.costs().observe_prefill(static_cast<double>(timings->cache_n), static_cast<double>(timings->prompt_n),
                                   timings->prompt_ms / 1000.0);
  if (timings->cache_n + timings->prompt_n != static_cast<std::int64_t>(prompt)) {
    // The backend's prompt was another than we thought: our tokens are not what the slot holds.
    spdlog::warn("the backend counted {} prompt tokens where we had {}: its tokenization is not remembered any more",
                 timings->cache_n + timings->prompt_n, prompt);
    backend_.memo().distrust();
    backend_.slots().forget(slot_);
    state.unknown_tail = prompt;
    return;
  }
  cut_resume_points(state.resume_points, static_cast<std::uint32_t>(timings->cache_n));
  if (backend_.kind() != MemoryKind::truncatable) {
    const std::uint32_t ubatch = backend_.options().ubatch_tokens;
    const auto from = static_cast<std::uint32_t>(timings->cache_n);
    add_piece_resume_points(state.resume_points, from, prompt, ubatch);
    // A short rest after a stop leaves a context checkpoint exactly at the stop (build 11669).
    if (record_.pieces > 0 && prompt - from < ubatch && from >= 64) {
      const auto place = std::lower_bound(state.resume_points.begin(), state.resume_points.end(), from);
      if (place == state.resume_points.end() || *place != from) state.resume_points.insert(place, from);
    }
  }
  state.known = prompt_;
  // The last generated token is not in the state.
  state.unknown_tail = timings->predicted_n > 1 ? static_cast<std::uint32_t>(timings->predicted_n - 1) : 0;
  state.name_space = static_cast<std::int64_t>(backend_.name_space());
  backend_.note_slot_content(slot_);
  record_.miss = explain();
}

MissReason CachedRequest::explain() const {
  // New: beyond what any earlier prompt shared. A few tokens either way are no miss.
  constexpr std::int64_t tolerance = 16;
  const auto could = static_cast<std::int64_t>(std::min<std::size_t>(known_.matched_tokens, prompt_.size() - 1));
  if (record_.reused_tokens + tolerance >= could) return could == 0 ? MissReason::new_prompt : MissReason::none;
  if (restore_failed_) return MissReason::restore_failed;
  if (record_.reused_tokens + tolerance < static_cast<std::int64_t>(record_.planned_tokens)) {
    return plan_.source == Source::live && record_.reused_tokens == 0 ? MissReason::cleared : MissReason::broken_promise;
  }
  if (plan_.reason == "cheaper to recompute") return MissReason::cheaper;
  if (!candidates_.empty() || base_common_ > static_cast<std::uint32_t>(record_.reused_tokens)) return MissReason::cannot_rewind;
  return MissReason::not_saved;
}

}  // namespace cairn

#include "request/cached_request.hpp"

#include <spdlog/spdlog.h>

#include <boost/asio/experimental/awaitable_operators.hpp>

#include <algorithm>
#include <tuple>
#include <utility>

#include "base/unix_time.hpp"
#include "request/api_key.hpp"
#include "request/error_answer.hpp"
#include "request/last_message.hpp"
#include "request/system_end.hpp"
#include "request/unproved_options.hpp"

namespace cairn {

Task<void> CachedRequest::fail(const Error& error) {
  record_.status = error_status(error);
  record_.error = to_string(error);
  if (downstream_.cancel().cancelled()) record_.status = status_client_left;
  (void)co_await write_error(downstream_, error);
}

// Nothing is started for a client that has: what idle slots hold would be forgotten for a task that never comes.
Task<bool> CachedRequest::has_left() {
  if (!downstream_.cancel().cancelled()) co_return false;
  co_await fail(downstream_error(ErrorCode::cancelled, "the client left before its request was sent on"));
  co_return true;
}

// One that no slot is kept for waits in the backend, in as long a queue as the others.
Task<bool> CachedRequest::is_one_too_many() {
  if (!backend_.crowded()) co_return false;
  co_await fail(too_many_wait());
  co_return true;
}

Task<void> CachedRequest::run(PromptForm form, std::string body) {
  body_ = std::move(body);
  record_.enter(Step::parse);
  presence_.emplace(backend_);
  record_.no_cache = co_await understand(form);
  if (record_.no_cache != NoCacheReason::used && downstream_.cancel().cancelled()) {
    record_.no_cache = NoCacheReason::used;  // what failed, failed for that
    (void)co_await has_left();
    co_return;
  }
  if (record_.no_cache == NoCacheReason::used) {
    co_await serve_cached();
    if (backend_.options().log_prompts && record_.left_at >= 0) co_await show_difference();
    co_return;
  }
  co_await forward_unpinned(body_);
}

Task<void> CachedRequest::forward_unpinned(const std::string& body) {
  record_.enter(Step::forward);
  // One that has waited for a probe in vain waits no more.
  if (record_.no_cache != NoCacheReason::backend_not_ready) co_await backend_.probe_passes(downstream_.cancel());
  if (co_await is_one_too_many()) co_return;
  foreign_.emplace(backend_);
  co_await backend_.save_before_foreign(downstream_.cancel());
  Result<StartGate> gate = co_await backend_.gate_if_needed(downstream_.cancel());
  if (!gate) {
    co_await fail(gate.error());
    co_return;
  }
  co_await backend_.save_idle_slots(-1);
  if (co_await has_left()) co_return;
  backend_.note_foreign_started(!own_weights());
  co_await forward(body, *gate);
}

Task<void> CachedRequest::run_unpinned(std::optional<std::string> body) {
  record_.enter(Step::forward);
  co_await backend_.probe_passes(downstream_.cancel());
  if (co_await is_one_too_many()) co_return;
  const CachedBackend::Foreign foreign(backend_);
  co_await backend_.save_before_foreign(downstream_.cancel());
  if (co_await has_left()) co_return;
  // When its task starts we cannot tell from here; the slots that the backend clears then are forgotten now.
  backend_.note_foreign_started(false);
  EventStreamOptions events;
  events.silence = backend_.options().comment_after;
  Result<RelayOutcome> outcome = co_await pass_through(backend_.upstream(), downstream_, body, events);
  if (outcome) {
    record_.status = outcome->status;
    record_.answer_bytes = outcome->body_bytes;
    if (outcome->broken) record_.error = to_string(*outcome->broken);
    if (downstream_.cancel().cancelled()) record_.status = status_client_left;
  } else {
    if (outcome.error().code == ErrorCode::refused) backend_.suspect_down();
    co_await fail(outcome.error());
  }
}

// Whether the cache can serve this request; prompt_ is set when it can.
Task<NoCacheReason> CachedRequest::understand(PromptForm form) {
  using namespace boost::asio::experimental::awaitable_operators;
  Result<PromptBody> parsed = parse_prompt_body(form, body_);
  if (!parsed) co_return NoCacheReason::unreadable_body;
  parsed_ = std::move(*parsed);
  if (parsed_.has_media) co_return NoCacheReason::media;
  if (parsed_.several) co_return NoCacheReason::several_prompts;
  if (parsed_.cache_prompt == false) co_return NoCacheReason::client_refused;
  if (parsed_.id_slot.value_or(0) < 0) co_return NoCacheReason::client_refused;
  options_ = unproved_options(body_);
  if (!knows_the_key()) co_return NoCacheReason::other_key;
  if (!co_await backend_.wait_ready(downstream_.cancel())) co_return NoCacheReason::backend_not_ready;
  turn_ = co_await backend_.begin_turn(downstream_.cancel());
  // The answers of a process that was replaced meanwhile are not used, so both may be asked for at once.
  const auto passed_on = [this] { return !own_weights() && backend_.probe().clears_idle; };
  const bool at_once = backend_.only_model() && form != PromptForm::infill && !passed_on();
  Result<Tokens> tokens = Tokens{};
  bool same = false;
  if (at_once) {
    record_.enter(Step::tokenize);
    std::tie(same, tokens) = co_await (backend_.still_the_same(downstream_.cancel()) && tokenize(form));
  } else {
    same = co_await backend_.still_the_same(downstream_.cancel());
  }
  if (!same) {
    turn_.end();  // it may have to be loaded, and others to make room
    if (!co_await backend_.wait_ready(downstream_.cancel())) co_return NoCacheReason::backend_not_ready;
    turn_ = co_await backend_.begin_turn(downstream_.cancel());
  }
  // What the backend clears there comes back only to requests that leave the slot to it.
  if (passed_on()) co_return NoCacheReason::lora;
  if (!at_once || !same) {
    record_.enter(Step::tokenize);
    tokens = co_await tokenize(form);
  }
  if (!tokens) {
    if (parsed_.has_media) co_return NoCacheReason::media;
    if (tokens.error().code == ErrorCode::refused) backend_.suspect_down();
    co_return tokens.error().code == ErrorCode::unsupported ? NoCacheReason::other_prompt : NoCacheReason::template_failed;
  }
  prompt_ = std::move(*tokens);
  record_.prompt_tokens = static_cast<std::int64_t>(prompt_.size());
  if (prompt_.empty()) co_return NoCacheReason::empty_prompt;
  if (is_derived(form) && !co_await derived_right()) co_return NoCacheReason::other_prompt;
  const std::int64_t context = backend_.probe().meta.n_ctx;
  if (context > 0 && static_cast<std::int64_t>(prompt_.size()) >= context) co_return NoCacheReason::too_long;
  co_return NoCacheReason::used;
}

// Cairn's own calls carry the configured key: only who has it may cause them.
bool CachedRequest::knows_the_key() const {
  const std::string& key = backend_.options().api_key;
  return key.empty() || carries_key(downstream_.head().fields, key);
}

// Whether the backend makes as long a prompt of this body, as long as that is open.
Task<bool> CachedRequest::derived_right() {
  Derivations& derivations = backend_.derivations();
  // Nobody counts the tokens of an infill beforehand.
  if (!derivations.open(parsed_.form) || parsed_.form == PromptForm::infill) co_return true;
  const std::string_view counter = parsed_.form == PromptForm::messages ? "/v1/messages/count_tokens" : "/v1/responses/input_tokens";
  Result<std::int64_t> counted = co_await backend_.api().count_tokens(counter, body_, downstream_.cancel());
  if (!counted) co_return true;  // it cannot say: the answer will
  if (*counted == static_cast<std::int64_t>(prompt_.size())) {
    derivations.agreed(parsed_.form);
    co_return true;
  }
  spdlog::warn("the backend makes a prompt of {} tokens of the body of {}, and not {}: passed on uncached", *counted, record_.path,
               prompt_.size());
  derivations.differed(parsed_.form);
  co_return false;
}

ResultTask<Tokens> CachedRequest::tokenize(PromptForm form) {
  if (form == PromptForm::completion) co_return co_await tokenize_completion();
  if (form == PromptForm::infill) co_return co_await tokenize_infill();
  co_return co_await tokenize_chat(form == PromptForm::chat ? body_ : parsed_.chat);
}

ResultTask<Tokens> CachedRequest::tokenize_chat(const std::string& chat) {
  LlamaApi& api = backend_.api();
  suffix_tokens_ = system_tokens_ = message_tokens_ = 0;
  parsed_.has_media = false;
  Result<std::string> text = co_await api.apply_template(chat, downstream_.cancel());
  if (!text) co_return text.error();
  // However it was spelled or is called: where media were, the backend's text says so.
  const std::string& marker = backend_.probe().props.media_marker;
  if (!marker.empty() && text->find(marker) != std::string::npos) {
    parsed_.has_media = true;
    co_return downstream_error(ErrorCode::unsupported, "images or audio in the prompt");
  }
  const bool add_special = true;
  Result<Tokens> tokens = co_await backend_.memo().tokenize(*text, add_special, downstream_.cancel());
  if (!tokens) co_return tokens.error();
  const std::size_t suffix_bytes = co_await backend_.suffixes().suffix_bytes(api, chat, *text, downstream_.cancel());
  if (suffix_bytes > 0) suffix_tokens_ = static_cast<std::uint32_t>(backend_.memo().tokens_in_tail(*text, suffix_bytes));
  // Where any prefix can be resumed nothing is stopped for.
  const bool wanted = backend_.kind() != MemoryKind::truncatable;
  const std::size_t system_bytes = wanted ? system_end_bytes(chat, *text) : 0;
  const std::size_t behind = system_bytes > 0 ? backend_.memo().tokens_in_tail(*text, text->size() - system_bytes) : 0;
  if (behind > 0) system_tokens_ = static_cast<std::uint32_t>(tokens->size() - behind);
  find_last_message(*text, suffix_bytes, tokens->size());
  co_return tokens;
}

// In a text of the prompt's last part, of `tokens` in all.
void CachedRequest::find_last_message(std::string_view text, std::size_t suffix_bytes, std::size_t tokens) {
  message_tokens_ = 0;
  if (backend_.kind() == MemoryKind::truncatable) return;
  const std::size_t before = last_message_bytes(text, suffix_bytes);
  const std::size_t behind = before > 0 ? backend_.memo().tokens_in_tail(text, text.size() - before) : 0;
  if (behind > 0 && behind < tokens) message_tokens_ = static_cast<std::uint32_t>(tokens - behind);
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
    find_last_message(std::get<std::string>(part), 0, all.size());
  }
  co_return all;
}

ResultTask<Tokens> CachedRequest::tokenize_infill() {
  CancelSource& cancel = downstream_.cancel();
  if (!backend_.infill_layout()) {
    // Asking takes some slot.
    const CachedBackend::Foreign foreign(backend_);
    co_await backend_.save_before_foreign(cancel);
    const Result<StartGate> gate = co_await backend_.gate_if_needed(cancel);
    if (!gate) co_return gate.error();
    co_await backend_.save_idle_slots(-1);
    if (cancel.cancelled()) co_return downstream_error(ErrorCode::cancelled, "the client left");
    backend_.note_foreign_started(false);
    Result<InfillLayout> learned = co_await learn_infill_layout(backend_.api(), cancel);
    const bool answered = learned || learned.error().code == ErrorCode::unsupported || learned.error().code == ErrorCode::rejected ||
                          learned.error().code == ErrorCode::malformed;
    if (!answered) co_return learned.error();
    backend_.set_infill_layout(std::move(learned));
  }
  const Result<InfillLayout>& layout = *backend_.infill_layout();
  if (!layout) co_return layout.error();
  const InfillLayout own = *layout;  // a probe may come between
  Result<std::optional<Tokens>> tokens = co_await infill_tokens(parsed_.infill, own, backend_.probe().meta.n_ctx, backend_.memo(), cancel);
  if (!tokens) co_return tokens.error();
  if (!*tokens) co_return downstream_error(ErrorCode::unsupported, "the backend shortens the files in front");
  co_return std::move(**tokens);
}

// The text on both sides of where the prompt left a known one, for the log.
Task<void> CachedRequest::show_difference() {
  constexpr std::uint32_t before = 8, after = 12;  // tokens
  const std::uint32_t from = known_.matched_tokens > before ? known_.matched_tokens - before : 0;
  const std::size_t to = std::min<std::size_t>(prompt_.size(), known_.matched_tokens + after);
  const TokenSpan own{prompt_.data() + from, to - from};
  CancelSource nobody;  // the client may have gone with its answer
  Tokens other(prompt_.begin() + from, prompt_.begin() + known_.matched_tokens);
  other.insert(other.end(), known_.other.begin(), known_.other.end());
  Result<std::string> own_text = co_await backend_.api().detokenize(own, nobody);
  Result<std::string> other_text = co_await backend_.api().detokenize(other, nobody);
  if (own_text) record_.own_text = std::move(*own_text);
  if (other_text) record_.other_text = std::move(*other_text);
}

std::int64_t CachedRequest::name_space() const {
  return own_weights() ? static_cast<std::int64_t>(backend_.name_space()) : backend_.name_space_of(parsed_.lora);
}

bool CachedRequest::in_pieces() const {
  return own_weights() && prompt_.size() >= backend_.options().shortest_prompt_tokens && parsed_.cache_prompt != false &&
         backend_.option_trials().trusted(options_);
}

Task<void> CachedRequest::serve_cached() {
  record_.enter(Step::match);
  if (own_weights() && prompt_.size() >= backend_.options().shortest_prompt_tokens) {
    known_ = backend_.catalogue()->learn(backend_.name_space(), prompt_, unix_now_ms(), message_tokens_);
    record_.known_tokens = known_.matched_tokens;
    if (!known_.other.empty()) {
      record_.left_at = known_.matched_tokens;
      record_.own_token = prompt_[known_.matched_tokens];
      record_.other_token = known_.other.front();
    }
  }
  if (record_.warmed && own_weights()) backend_.watch(record_.warmed, prompt_);

  record_.enter(Step::acquire);
  Scheduler::Choose chooser = [this](std::span<const int> idle, bool patient) { return choose(idle, patient); };
  Result<Lease> lease = co_await backend_.scheduler().acquire(std::move(chooser), downstream_.cancel());
  if (!lease && lease.error().code == ErrorCode::unsupported) {
    record_.no_cache = NoCacheReason::backend_not_ready;  // it came back without slots
    co_await forward_unpinned(body_);
    co_return;
  }
  if (!lease) {
    co_await fail(lease.error());
    co_return;
  }
  lease_ = std::move(*lease);
  slot_ = lease_.slot();
  generation_ = backend_.generation();
  if (plan_.source == Source::restore && backend_.probe().clears_idle) {
    // Others need not wait at the gate for the disk.
    record_.enter(Step::restore);
    (void)co_await backend_.read_ahead(static_cast<CheckpointId>(plan_.checkpoint));
    record_.enter(Step::acquire);
  }
  Result<StartGate> entered = co_await backend_.gate_if_needed(downstream_.cancel());
  if (!entered) {
    co_await fail(entered.error());
    co_return;
  }
  StartGate gate = std::move(*entered);
  if (gate) {
    co_await backend_.save_idle_slots(slot_);
    plan_again();  // while we waited, others started tasks, and the slot may have been emptied
  }
  if (plan_.source == Source::backend) {
    co_await leave_to_backend(gate);
    co_return;
  }
  co_await bring_back();
  if (gate) co_await backend_.save_idle_slots(slot_);  // those that ended meanwhile
  backend_.slots().at(slot_).piece_end = plan_.base;
  backend_.scheduler().reconsider();  // whoever waits for a stop that this plan has passed
  // It could not be emptied: llama-server would go on from what another request's adapters computed.
  const bool others_tokens = own_weights() && backend_.slots().at(slot_).other_weights;
  const bool is_short = !others_tokens && !downstream_.cancel().cancelled() && co_await come_from_before();
  if (in_pieces() && !is_short && !others_tokens && !downstream_.cancel().cancelled()) co_await compute_pieces(gate);
  if (!parsed_.takes_slot && !others_tokens && !downstream_.cancel().cancelled()) co_await make_findable();
  backend_.slots().at(slot_).in_pieces = false;
  backend_.scheduler().reconsider();  // or for one that was not made

  record_.enter(Step::forward);
  if (downstream_.cancel().cancelled()) {
    if (record_.pieces > 0 || plan_.source == Source::restore) note_content();  // that is worth keeping
    else backend_.note_slot_content(slot_);
    co_await fail(downstream_error(ErrorCode::cancelled, "the client left before its answer began"));
    co_return;
  }
  std::string spliced;
  if (!parsed_.takes_slot || (parsed_.id_slot && !others_tokens)) {
    spliced = body_;
  } else if (others_tokens) {
    spliced = splice_slot(body_, slot_, false);  // the last of two members of a name counts
  } else {
    spliced = splice_slot(body_, slot_, parsed_.cache_prompt ? std::nullopt : std::optional(true));
  }
  if (!parsed_.takes_slot) foreign_.emplace(backend_, CachedBackend::Foreign::Holds::a_slot);
  backend_.note_task_started(slot_);
  co_await forward(spliced, gate);
  record_.enter(Step::save);
}

// The backend's own cache should hold what we have not: it chooses the slot, which it then brings back by itself.
Task<void> CachedRequest::leave_to_backend(StartGate& gate) {
  foreign_.emplace(backend_, CachedBackend::Foreign::Holds::a_slot);
  record_.source = plan_.source;
  record_.plan_reason = plan_.reason;
  record_.planned_tokens = plan_.base;
  record_.enter(Step::forward);
  backend_.slots().at(slot_).in_pieces = false;
  backend_.scheduler().reconsider();
  co_await backend_.save_idle_slots(-1);
  if (co_await has_left()) co_return;
  backend_.note_foreign_started(false);
  slot_ = -1;
  co_await forward(body_, gate);
}

// The restore step: what the slot holds is saved if the plan says so, and the state put in.
Task<void> CachedRequest::bring_back() {
  const SlotState& state = backend_.slots().at(slot_);
  // Nothing is moved for a client that has left: whoever owns what the slot holds would miss it.
  const auto left = [this] { return downstream_.cancel().cancelled(); };
  if (left()) {
    plan_recompute();
    co_return;
  }
  // Planned with a slot that was taken for empty.
  if (plan_.source == Source::restore && co_await backend_.find_placed(slot_)) plan_in_our_slot();
  if (plan_.save_first && state.unsaved) {
    record_.enter(Step::save);
    Result<void> saved = co_await backend_.save(slot_);
    if (!saved) spdlog::debug("slot {} was not saved before it is overwritten: {}", slot_, to_string(saved.error()));
    plan_in_our_slot();  // the new state may serve this prompt, or have taken the place of the one that was to be restored
  }
  if (left()) {
    plan_recompute();
    co_return;
  }
  // The backend keeps some of its context checkpoints only: the early ones are brought into a file before it drops them. Where prompts
  // go back to one place again and again, each replaces those of the one before.
  if (plan_.source == Source::live && backend_.kind() == MemoryKind::checkpointed && state.unsaved && state.proven &&
      state.pieces_since_save >= pieces_between_saves && state.resume_points.size() >= pieces_between_saves * 3 / 2 &&
      backend_.worth_a_stall(state)) {
    record_.enter(Step::save);
    Result<void> saved = co_await backend_.save(slot_);
    if (!saved) spdlog::debug("slot {} was not saved before its early context checkpoints are dropped: {}", slot_, to_string(saved.error()));
  }
  record_.enter(Step::plan);
  record_.slot = slot_;
  record_.source = plan_.source;
  record_.plan_reason = plan_.reason;
  record_.planned_tokens = plan_.base;
  record_.checkpoint = plan_.checkpoint;
  record_.enter(Step::restore);
  // A request of nobody's slot may have come since: an erase would wait for its end in the backend.
  const bool spares_copy = plan_.empty_first && backend_.can_empty();
  if (own_weights() && (state.other_weights || spares_copy)) {
    CancelSource* cancel = state.other_weights ? nullptr : &downstream_.cancel();
    Result<void> emptied = co_await backend_.empty(slot_, cancel);
    if (!emptied) record_.error = to_string(emptied.error());
    if (state.other_weights) plan_recompute();  // nothing is reused there
  }
  if (!own_weights() && state.name_space != name_space()) {
    backend_.slots().forget(slot_);  // so does the backend
    backend_.slots().at(slot_).name_space = name_space();
  }
  if (!own_weights()) backend_.note_other_weights(slot_);
  constexpr int most_tries = 2;
  for (int tries = 1; plan_.source == Source::restore; ++tries) {
    Result<void> restored = co_await backend_.restore(slot_, static_cast<CheckpointId>(plan_.checkpoint), downstream_.cancel());
    if (restored) break;
    restore_failed_ = true;
    record_.error = to_string(restored.error());
    // A file that is not to be read has not touched the slot, and is no candidate any more.
    if (restored.error().source == ErrorSource::disk && tries < most_tries && !downstream_.cancel().cancelled()) {
      plan_in_our_slot();
    } else {
      plan_recompute();
    }
    if (plan_.source == Source::restore) record_.checkpoint = plan_.checkpoint;
  }
  base_length_ = state.held();
  base_by_length_ = state.by_length;
  base_epoch_ = backend_.foreign_epoch();
  base_beside_foreign_ = backend_.foreign() > 0;
  base_common_ = static_cast<std::uint32_t>(common_prefix(state.known, prompt_));
}

}  // namespace cairn

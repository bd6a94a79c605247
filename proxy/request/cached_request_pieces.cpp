// The prefill step of a CachedRequest: its prompt in pieces, so that states are left where later prompts come back to.
#include <spdlog/spdlog.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "plan/admission.hpp"
#include "request/cached_request.hpp"

namespace cairn {

double CachedRequest::overhead_seconds() const {
  double seconds = 0;
  for (const Step step : {Step::parse, Step::tokenize, Step::match}) seconds += record_.step_s[static_cast<std::size_t>(step)];
  return seconds;
}

// What stops the prompt is worth, with `done` tokens of it in the slot.
AdmissionInput CachedRequest::admission(std::uint32_t done) const {
  AdmissionInput input;
  input.kind = backend_.kind();
  input.base = plan_.base;
  input.done = done;
  input.prompt = static_cast<std::uint32_t>(prompt_.size());
  input.ubatch = backend_.options().ubatch_tokens;
  input.can_save = backend_.can_save();
  input.policy = &backend_.options().policy;
  input.costs = &backend_.costs();
  input.continues = known_.continues;
  // The end of what the next turn will share: where next prompts were seen to leave, or before the generation suffix and the
  // tokens that close the last message.
  constexpr std::uint32_t closing_tokens = 4;
  const EndOffsets& ends = backend_.catalogue()->end_offsets(backend_.name_space());
  if (known_.shares) input.branches = ends.branches();
  input.followed = ends.next_turn(known_.continues, suffix_tokens_ > 0);
  input.before_end = ends.advised(suffix_tokens_ > 0 ? suffix_tokens_ + closing_tokens : 0);
  // Where this prompt branches off a known one: a third will, too.
  if (known_.branch_tokens >= backend_.options().shortest_prompt_tokens) {
    const TokenSpan branch{prompt_.data(), known_.branch_tokens};
    if (!backend_.catalogue()->has_state_at(backend_.name_space(), branch)) input.branch = known_.branch_tokens;
  }
  if (known_.mark.at >= backend_.options().shortest_prompt_tokens) input.mark = known_.mark;
  if (known_.message.at >= backend_.options().shortest_prompt_tokens) input.message = known_.message;
  if (system_tokens_ >= backend_.options().shortest_prompt_tokens) input.system_end = system_tokens_;
  input.returning = ends.returning();
  input.returns_often = ends.returns_often();
  input.sessions = ends.branches();
  input.sessions_seen = ends.any_branch();
  input.shared = std::as_const(backend_.slots()).at(slot_).wanted_stops;
  input.kept = kept_stops_;
  const bool several = backend_.slots().slots().size() > 1;
  input.others = several && backend_.present() > 1;
  input.others_may_come = several && !backend_.probe().clears_idle;  // else this request holds the start gate
  input.pieces = record_.pieces;
  input.pieces_since_save = std::as_const(backend_.slots()).at(slot_).pieces_since_save;
  input.saves_s = inline_saves_s_;
  // With others about these steps are mostly waiting for one another; and a state on the way is what they may come to share.
  if (backend_.present() <= 1) input.overhead_s = overhead_seconds();
  input.credit_s = backend_.stop_credit_s();
  return input;
}

Task<bool> CachedRequest::compute_piece(std::uint32_t end, std::uint32_t expected_base) {
  const TokenSpan piece{prompt_.data(), end};
  Result<Timings> timings = co_await backend_.prefill(slot_, piece, expected_base, downstream_.cancel());
  if (!timings) {
    // The backend judges the client's own request next; whatever is wrong with it, it says so itself.
    if (!downstream_.cancel().cancelled()) spdlog::debug("a piece was not computed: {}", to_string(timings.error()));
    co_return false;
  }
  ++record_.pieces;
  computed_in_pieces_ += timings->prompt_n;
  record_.computed_tokens = computed_in_pieces_;  // until the answer says the rest, if there is one
  if (first_reused_ < 0) first_reused_ = timings->cache_n;
  learn(timings->cache_n);
  note_pieces(timings->cache_n);
  co_return true;
}

// llama-server goes on one token before the end of a context checkpoint (build 11669). Of a prompt that ends there it steps back by one
// more, for the logits: what that token sees of a sliding window begins before the checkpoint does, and the answer is a little wrong. A
// piece that is a token shorter is computed from the checkpoint before.
Task<bool> CachedRequest::come_from_before() {
  const SlotState& state = std::as_const(backend_.slots()).at(slot_);
  const auto begins_in = [&](std::uint32_t tokens) { return std::ranges::binary_search(state.resume_points, tokens + 1); };
  auto end = static_cast<std::uint32_t>(prompt_.size());
  if (backend_.kind() != MemoryKind::checkpointed || !own_weights() || base_common_ < end || !begins_in(end)) co_return false;
  while (end > 0 && begins_in(end)) --end;
  if (end == 0) co_return false;
  record_.enter(Step::prefill);
  co_return co_await compute_piece(end, plan_.base);
}

// llama-server sends a stream's head at once and a comment each 30 s, so that many clients, and proxies between, wait no longer than a
// minute for the next byte. While pieces are computed there is no head to send: the backend has not accepted the request yet.
// What is not stopped for leaves the backend's own context checkpoints; where there are none, no stop may be left out.
bool CachedRequest::would_keep_silent(std::uint32_t done, std::uint32_t end) const {
  if (!parsed_.stream || backend_.kind() == MemoryKind::exact) return false;
  const double limit_s = std::chrono::duration<double>(backend_.options().head_within).count();
  return record_.seconds_in(Step::prefill) + backend_.costs().prefill_seconds(done, end) > limit_s;
}

// The prefill step: the prompt in pieces, so that states are left where later prompts will come back to.
Task<void> CachedRequest::compute_pieces(StartGate& gate) {
  record_.enter(Step::prefill);
  std::uint32_t done = plan_.base;
  kept_stops_ = marked_places(admission(done));
  // Known before, and no state of ours: the backend's RAM cache may have one.
  constexpr std::uint32_t worth_hoping = 1024;  // tokens
  const bool hopes = backend_.may_bring_back() && known_.matched_tokens > done + worth_hoping;
  while (true) {
    std::vector<Stop> stops = admit(admission(done));
    if (hopes && record_.pieces == 0) std::erase_if(stops, [this](const Stop& one) { return one.at < known_.matched_tokens; });
    // Somebody waits to start while we hold the gate: the rest in one go.
    if (stops.empty() || (backend_.scheduler().gate_wanted() && gate)) break;
    // What has put itself in between would do so again.
    if (pieces_lost_ || !backend_.pieces_hold() || backend_.foreign_may_wait()) break;
    const Stop stop = stops.front();
    if (would_keep_silent(done, stop.at)) break;
    if (!co_await compute_piece(stop.at, done)) co_return;
    done = stop.at;
    stops_made_.push_back(done);
    // Somebody may have come to wait for it meanwhile.
    const std::vector<Stop>& waited = std::as_const(backend_.slots()).at(slot_).wanted_stops;
    const bool shared = std::any_of(waited.begin(), waited.end(), [&](const Stop& one) { return one.at == stop.at && one.save; });
    if (stop.save || shared) {
      const auto began = std::chrono::steady_clock::now();
      Result<void> saved = co_await backend_.save(slot_);
      if (!saved) spdlog::debug("no checkpoint at {}: {}", stop.at, to_string(saved.error()));
      inline_saves_s_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
      if (shared) backend_.scheduler().reconsider();
    }
    if (downstream_.cancel().cancelled()) co_return;
  }
  // What this prompt left of its share serves later turns of conversations.
  const AdmissionInput spent = admission(done);
  const double share_s = spent.policy->budget * spent.costs->prefill_seconds(plan_.base, spent.prompt);
  backend_.add_stop_credit(share_s - spent.overhead_s - spent.pieces * spent.costs->boundary_seconds() - spent.saves_s);
}

// The backend takes no word of ours for the slot of this request. It takes the idle one that shares the longest beginning with the
// prompt, if that is a tenth of the prompt at least, and the one used longest ago otherwise: ours must be the first of these, or
// what was put there is worth nothing.
Task<void> CachedRequest::make_findable() {
  constexpr std::size_t least_share = 10;  // --slot-prompt-similarity 0.1
  const auto slots = std::as_const(backend_.slots()).slots();
  if (slots.size() == 1) co_return;
  const auto held = static_cast<std::uint32_t>(common_prefix(backend_.slots().at(slot_).known, prompt_));
  std::size_t wanted = prompt_.size() / least_share + 2;
  for (const SlotState& other : slots) {
    // One that waits at the start gate is idle to the backend.
    if (other.id != slot_ && !other.running) wanted = std::max(wanted, common_prefix(other.known, prompt_) + 1);
  }
  if (held >= wanted) co_return;
  const CostModel& costs = backend_.costs();
  if (wanted >= prompt_.size() || costs.prefill_seconds(0, held) <= costs.boundary_seconds()) {
    // Where another was used longer ago it may take that one.
    const bool oldest = std::all_of(slots.begin(), slots.end(), [&](const SlotState& other) {
      return other.id == slot_ || other.running || other.last_used >= slots[static_cast<std::size_t>(slot_)].last_used;
    });
    if (!oldest) co_await backend_.save_before_foreign(downstream_.cancel());
    co_return;
  }
  record_.enter(Step::prefill);
  // Where the next turn is likely to leave this prompt, since one stop is made anyway.
  const AdmissionInput input = admission(held);
  auto end = static_cast<std::uint32_t>(std::max(wanted, prompt_.size() - std::min<std::size_t>(input.before_end, prompt_.size())));
  if (would_keep_silent(held, end)) end = static_cast<std::uint32_t>(wanted);
  (void)co_await compute_piece(std::min(end, input.prompt - 1), held);
}

}  // namespace cairn

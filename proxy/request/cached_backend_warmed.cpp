// What CachedBackend tells of prompts that were posted to be saved ahead of time.
#include <fmt/format.h>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "request/cached_backend.hpp"

namespace cairn {

namespace {
bool begins_with(TokenSpan held, TokenSpan tokens) { return held.size() >= tokens.size() && common_prefix(held, tokens) == tokens.size(); }
}  // namespace

void CachedBackend::watch(const std::shared_ptr<WarmedPrompt>& prompt, TokenSpan tokens) {
  prompt->backend = this;
  prompt->name_space = probe_.name_space;
  prompt->tokens.assign(tokens.begin(), tokens.end());
  prompt->was_there = is_saved(*prompt);
  (void)watched();  // those that nobody asks for any more go
  watched_.push_back(prompt);
}

// But for so little that it would not be saved for that.
bool CachedBackend::is_saved(const WarmedPrompt& prompt) const {
  const std::size_t tokens = prompt.tokens.size();
  if (prompt.name_space != probe_.name_space || tokens < options_.shortest_prompt_tokens) return false;
  return recoverable(prompt.tokens) + options_.worth_saving_tokens > tokens;
}

std::vector<std::shared_ptr<WarmedPrompt>> CachedBackend::watched() {
  std::vector<std::shared_ptr<WarmedPrompt>> living;
  for (const std::weak_ptr<WarmedPrompt>& one : watched_) {
    if (std::shared_ptr<WarmedPrompt> prompt = one.lock()) living.push_back(std::move(prompt));
  }
  watched_.assign(living.begin(), living.end());
  return living;
}

void CachedBackend::note_saved() {
  for (const auto& prompt : watched()) prompt->saved = prompt->saved || is_saved(*prompt);
}

void CachedBackend::note_not_saved(TokenSpan held, const std::string& why) {
  for (const auto& prompt : watched()) {
    if (prompt->name_space == probe_.name_space && begins_with(held, prompt->tokens)) prompt->why = why;
  }
}

ResultTask<void> CachedBackend::save(int slot, std::function<void()> on_written) {
  // The slot may hold something else when it has failed.
  const Tokens held = watched().empty() ? Tokens{} : slots_.at(slot).known;
  Result<void> saved = co_await save_state(slot, std::move(on_written));
  if (!saved) note_not_saved(held, saved.error().context);
  co_return saved;
}

ToldOutcome CachedBackend::outcome_of(const WarmedPrompt& prompt) const {
  const auto failed = [&prompt](std::string otherwise) {
    return ToldOutcome{WarmOutcome::failed, prompt.why.empty() ? std::move(otherwise) : prompt.why};
  };
  if (prompt.tokens.size() < options_.shortest_prompt_tokens) {
    return ToldOutcome{WarmOutcome::not_worth_saving, fmt::format("it has less than {} tokens", options_.shortest_prompt_tokens)};
  }
  if (prompt.was_there && is_saved(prompt)) return ToldOutcome{WarmOutcome::there, {}};
  if (prompt.saved) return ToldOutcome{WarmOutcome::saved, {}};
  if (!prompt.answered) return ToldOutcome{WarmOutcome::waiting, {}};
  if (!keeps_states()) return failed(fmt::format("nothing is saved there{}{}", trouble_.empty() ? "" : ": ", trouble_));
  if (store_->saving_waits()) {
    return ToldOutcome{WarmOutcome::failed, "saving is paused: " + store_->saving_trouble()->context};  // until the disk allows it
  }
  const auto holds_it = [&](const SlotState& state) {
    return state.name_space == static_cast<std::int64_t>(prompt.name_space) && begins_with(state.known, prompt.tokens);
  };
  bool cheap = false;
  for (const SlotState& state : std::as_const(slots_).slots()) {
    if (!holds_it(state)) continue;
    if (state.unsaved || state.saves > 0 || (state.leased && prompt.why.empty())) return ToldOutcome{WarmOutcome::waiting, {}};
    cheap = cheap || !pays_to_keep(state);
  }
  if (prompt.name_space == probe_.name_space && slots_.was_placed(prompt.tokens)) return ToldOutcome{WarmOutcome::waiting, {}};
  if (cheap && prompt.why.empty()) {
    return ToldOutcome{WarmOutcome::not_worth_saving, "computing it again takes no longer than bringing it back"};
  }
  return failed("its slot was given to another request, or emptied, before it could be saved");
}

}  // namespace cairn

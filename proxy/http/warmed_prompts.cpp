#include "http/warmed_prompts.hpp"

#include <boost/json.hpp>

#include <algorithm>
#include <charconv>

#include "base/printable_text.hpp"
#include "request/cached_backend.hpp"
#include "request/error_answer.hpp"

namespace cairn {

std::shared_ptr<WarmedPrompt> WarmedPrompts::add() {
  // One that is not known any more is not saved any worse.
  std::size_t tokens = 0, keep = 0;
  while (keep < latest_.size() && keep + 1 < kept && (tokens += latest_[keep]->tokens.size()) <= kept_tokens) ++keep;
  latest_.resize(keep);
  auto prompt = std::make_shared<WarmedPrompt>();
  prompt->id = ++last_id_;
  latest_.push_front(prompt);
  return prompt;
}

OwnAnswer WarmedPrompts::answer(std::string_view number) const {
  std::uint64_t id = 0;
  const auto [stop, bad] = std::from_chars(number.data(), number.data() + number.size(), id);
  const bool whole = bad == std::errc{} && stop == number.data() + number.size();
  const auto found = std::ranges::find_if(latest_, [&](const auto& prompt) { return whole && prompt->id == id; });
  if (found == latest_.end()) return OwnAnswer{"application/json", error_body(404, "no prompt of that number was warmed lately"), 404};
  const WarmedPrompt& prompt = **found;
  ToldOutcome told{prompt.answered ? WarmOutcome::failed : WarmOutcome::waiting, prompt.why};
  if (prompt.backend != nullptr) told = prompt.backend->outcome_of(prompt);
  boost::json::object object;
  object["id"] = prompt.id;
  object["outcome"] = to_string(told.outcome);
  if (!told.why.empty()) object["why"] = told.why;
  return OwnAnswer{"application/json", json_text(object), 200};
}

}  // namespace cairn

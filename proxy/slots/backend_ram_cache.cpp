#include "slots/backend_ram_cache.hpp"

#include <algorithm>
#include <utility>

#include "slots/slot_table.hpp"

namespace cairn {

namespace {
constexpr std::size_t remembered = 16;
constexpr int strikes_to_distrust = 2;
constexpr std::chrono::minutes distrusted_for{10};
// The server does not give a long one away for a small part of it (build 11669).
constexpr std::size_t least_part = 4;
// What is promised of fewer tokens says nothing either way.
constexpr std::int64_t tolerance = 16;

bool begins(TokenSpan one, TokenSpan other) { return one.size() <= other.size() && common_prefix(one, other) == one.size(); }
}  // namespace

void BackendRamCache::note(Tokens cleared, std::vector<std::uint32_t> resume_points) {
  // As the server does: what a kept one begins with is not put there, and those that begin the new one go (build 11669).
  const bool there = std::ranges::any_of(
      cleared_, [&](const Cleared& known) { return known.tokens.size() > cleared.size() && begins(cleared, known.tokens); });
  if (there) return;
  std::erase_if(cleared_, [&](const Cleared& known) { return begins(known.tokens, cleared); });
  cleared_.push_front(Cleared{std::move(cleared), std::move(resume_points)});
  if (cleared_.size() > remembered) cleared_.pop_back();
}

void BackendRamCache::remove(TokenSpan tokens) {
  std::erase_if(cleared_, [&](const Cleared& known) { return std::ranges::equal(known.tokens, tokens); });
}

void BackendRamCache::clear() {
  cleared_.clear();
  strikes_ = 0;
  trusted_from_ = {};
}

BackendRamCache::Offer BackendRamCache::offer(TokenSpan prompt, MemoryKind kind) const {
  Offer best;
  for (const Cleared& known : cleared_) {
    const auto common = static_cast<std::uint32_t>(common_prefix(known.tokens, prompt));
    if (common * least_part < known.tokens.size()) continue;
    const StateView view{static_cast<std::uint32_t>(known.tokens.size()), false, known.resume_points};
    const std::uint32_t usable = usable_tokens(kind, view, common, static_cast<std::uint32_t>(prompt.size()));
    if (usable > best.tokens) best = Offer{usable, static_cast<std::uint32_t>(known.resume_points.size())};
  }
  return best;
}

BackendRamCache::Learnt BackendRamCache::learn(TokenSpan prompt, std::uint32_t promised, std::int64_t reused, Time now) {
  Learnt learnt;
  const auto nearest = std::ranges::max_element(cleared_, {}, [&](const Cleared& known) { return common_prefix(known.tokens, prompt); });
  const bool any = nearest != cleared_.end();
  const bool was_there = any && reused > 0 && static_cast<std::int64_t>(common_prefix(nearest->tokens, prompt)) >= reused;
  const bool promises = static_cast<std::int64_t>(promised) > tolerance;
  // A context checkpoint that was guessed wrong costs a piece; what had to make room for others costs nearly all.
  const bool missed = promises && reused * 2 < static_cast<std::int64_t>(promised);
  if (was_there) {
    learnt.resume_points = std::move(nearest->resume_points);
    cut_resume_points(learnt.resume_points, static_cast<std::uint32_t>(reused));
  }
  const bool was_promised = any && common_prefix(nearest->tokens, prompt) >= promised;
  if (was_there || (missed && was_promised)) cleared_.erase(nearest);
  if (missed) ++strikes_;
  else if (promises) strikes_ = 0;
  if (strikes_ >= strikes_to_distrust) {
    strikes_ = 0;
    trusted_from_ = now + distrusted_for;
    learnt.distrusted = true;
  }
  return learnt;
}

}  // namespace cairn

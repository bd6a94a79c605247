#include "request/request_record.hpp"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <iterator>

#include "observe/metrics.hpp"

namespace cairn {

std::string_view to_string(Step step) {
  static constexpr std::array<std::string_view, step_count> names{
      "accept", "read", "route", "parse", "tokenize", "match", "plan",
      "acquire", "restore", "prefill", "forward", "relay", "save", "finish"};
  return names[static_cast<std::size_t>(step)];
}

std::string_view to_string(NoCacheReason reason) {
  switch (reason) {
    case NoCacheReason::used: return "used";
    case NoCacheReason::not_cached_endpoint: return "not_cached_endpoint";
    case NoCacheReason::backend_not_ready: return "backend_not_ready";
    case NoCacheReason::unreadable_body: return "unreadable_body";
    case NoCacheReason::several_prompts: return "several_prompts";
    case NoCacheReason::media: return "media";
    case NoCacheReason::lora: return "lora";
    case NoCacheReason::client_refused: return "client_refused";
    case NoCacheReason::template_failed: return "template_failed";
    case NoCacheReason::too_long: return "too_long";
    case NoCacheReason::empty_prompt: return "empty_prompt";
    case NoCacheReason::other_key: return "other_key";
    case NoCacheReason::other_prompt: return "other_prompt_than_derived";
    case NoCacheReason::no_such_model: return "no_such_model";
    case NoCacheReason::other_model_wanted: return "other_model_wanted";
  }
  return "?";
}

std::string_view to_string(MissReason reason) {
  switch (reason) {
    case MissReason::unknown: return "unknown";
    case MissReason::none: return "none";
    case MissReason::new_prompt: return "new_prompt";
    case MissReason::not_admitted: return "not_admitted";
    case MissReason::evicted: return "evicted";
    case MissReason::cannot_rewind: return "cannot_rewind";
    case MissReason::cheaper: return "cheaper_to_recompute";
    case MissReason::cleared: return "slot_cleared_by_backend";
    case MissReason::restore_failed: return "restore_failed";
    case MissReason::broken_promise: return "not_reused_by_backend";
    case MissReason::other_prompt: return "other_prompt_than_derived";
  }
  return "?";
}

double RequestRecord::seconds_in(Step which) const {
  const double ended_s = step_s[static_cast<std::size_t>(which)];
  return which == step ? ended_s + std::chrono::duration<double>(Clock::now() - entered_).count() : ended_s;
}

void RequestRecord::enter(Step next) {
  const Clock::time_point now = Clock::now();
  step_s[static_cast<std::size_t>(step)] += std::chrono::duration<double>(now - entered_).count();
  entered_ = now;
  step = next;
}

void RequestRecord::finish(Metrics& metrics) {
  enter(Step::finish);
  const double total_s = std::chrono::duration<double>(Clock::now() - started).count();

  std::string line = fmt::format("req={} {} {} status={}", id, method, path, status);
  const auto out = std::back_inserter(line);
  if (!model.empty()) fmt::format_to(out, " model={:?}", model);
  if (no_cache == NoCacheReason::used) {
    fmt::format_to(out, " prompt={} known={} plan={}({}) planned={} reused={} computed={} pieces={} slot={}", prompt_tokens,
                   known_tokens, to_string(source), plan_reason, planned_tokens, reused_tokens, computed_tokens, pieces, slot);
    if (checkpoint != 0) fmt::format_to(out, " checkpoint={}", checkpoint);
    if (miss != MissReason::none) fmt::format_to(out, " miss={}", to_string(miss));
    if (left_at >= 0) fmt::format_to(out, " left_at={} token={} instead_of={}", left_at, own_token, other_token);
    if (!own_text.empty() || !other_text.empty()) fmt::format_to(out, " text={:?} instead_of={:?}", own_text, other_text);
  } else {
    fmt::format_to(out, " cache={}", to_string(no_cache));
  }
  fmt::format_to(out, " bytes={} total_ms={:.1f}", answer_bytes, total_s * 1000);
  for (std::size_t i = 0; i < step_count; ++i) {
    if (step_s[i] >= 0.0005) fmt::format_to(out, " {}_ms={:.1f}", to_string(static_cast<Step>(i)), step_s[i] * 1000);
  }
  if (!error.empty()) fmt::format_to(out, " error=\"{}\"", error);
  spdlog::info("{}", line);

  const std::string outcome = fmt::format("status=\"{}\",cache=\"{}\"", status, to_string(no_cache));
  metrics.add("cairn_requests_total", outcome);
  metrics.observe("cairn_request_seconds", "", total_s);
  if (no_cache != NoCacheReason::used) return;
  for (std::size_t i = 0; i < step_count; ++i) {
    if (step_s[i] > 0) {
      metrics.observe("cairn_step_seconds", fmt::format("step=\"{}\"", to_string(static_cast<Step>(i))), step_s[i]);
    }
  }
  const std::string plan = fmt::format("source=\"{}\"", to_string(source));
  if (!plan_reason.empty()) metrics.add("cairn_plans_total", plan);  // else it never came so far
  if (reused_tokens >= 0) {
    metrics.add("cairn_plan_promised_tokens_total", plan, planned_tokens);
    metrics.add("cairn_plan_reused_tokens_total", plan, static_cast<double>(reused_tokens));
  }
  metrics.add("cairn_misses_total", fmt::format("reason=\"{}\"", to_string(miss)));
  // Of one that was refused, or whose client has left, nobody knows how much was reused.
  if (prompt_tokens > 0 && reused_tokens >= 0) metrics.add("cairn_prompt_tokens_total", "", static_cast<double>(prompt_tokens));
  if (reused_tokens > 0) metrics.add("cairn_reused_tokens_total", "", static_cast<double>(reused_tokens));
  if (computed_tokens > 0) metrics.add("cairn_computed_tokens_total", "", static_cast<double>(computed_tokens));
}

}  // namespace cairn

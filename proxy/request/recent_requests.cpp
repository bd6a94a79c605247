#include "request/recent_requests.hpp"

#include <simdjson.h>

#include <algorithm>
#include <string>

namespace cairn {

namespace {
void shorten(std::string& text) {
  text.resize(std::min(text.size(), RecentRequests::longest));
  text.shrink_to_fit();
  const auto foreign = [](char c) { return static_cast<unsigned char>(c) >= 0x80; };
  if (!simdjson::validate_utf8(text)) std::replace_if(text.begin(), text.end(), foreign, '?');
}
}  // namespace

void RecentRequests::add(const RequestRecord& record) {
  latest_.push_front(record);
  shorten(latest_.front().path);
  shorten(latest_.front().model);
  if (latest_.size() > kept) latest_.pop_back();
  if (record.no_cache != NoCacheReason::used || record.reused_tokens < 0) return;  // nothing was planned, or no answer told
  PlanOutcome& outcome = outcomes_.at(static_cast<std::size_t>(record.source));
  const auto reused = static_cast<std::uint64_t>(record.reused_tokens);
  ++outcome.requests;
  outcome.planned_tokens += record.planned_tokens;
  outcome.reused_tokens += reused;
  if (reused < record.planned_tokens) ++outcome.fell_short;
}

}  // namespace cairn

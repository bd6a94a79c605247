// The latest requests that the cache is for, with why each was not a full hit, or was passed by, and what the plans of all came to:
// for the status page.
// Thread: the I/O thread. Owner: the router.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>

#include "request/request_record.hpp"

namespace cairn {

// What plans of one kind promised and what the backend then reported, of all answered requests since the start.
struct PlanOutcome {
  std::uint64_t requests = 0;
  std::uint64_t planned_tokens = 0;
  std::uint64_t reused_tokens = 0;
  std::uint64_t fell_short = 0;  // requests that got less than promised
};

class RecentRequests {
 public:
  static constexpr std::size_t kept = 32;
  static constexpr std::size_t longest = 256;  // bytes of a path or a model's name: a client may send many
  // Bytes that are no UTF-8 are not kept.
  void add(const RequestRecord& record);
  const std::deque<RequestRecord>& latest_first() const { return latest_; }
  // In the order of Source.
  static constexpr std::array sources{Source::live, Source::restore, Source::recompute, Source::backend};
  const PlanOutcome& outcome_of(Source source) const { return outcomes_.at(static_cast<std::size_t>(source)); }

 private:
  std::array<PlanOutcome, 5> outcomes_;
  std::deque<RequestRecord> latest_;
};

}  // namespace cairn

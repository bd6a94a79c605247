// The latest requests that the cache is for, with why each was not a full hit, or was passed by: for the status page.
// Thread: the I/O thread. Owner: the router.
#pragma once

#include <cstddef>
#include <deque>

#include "request/request_record.hpp"

namespace cairn {

class RecentRequests {
 public:
  static constexpr std::size_t kept = 32;
  static constexpr std::size_t longest = 256;  // bytes of a path or a model's name: a client may send many
  // Bytes that are no UTF-8 are not kept.
  void add(const RequestRecord& record);
  const std::deque<RequestRecord>& latest_first() const { return latest_; }

 private:
  std::deque<RequestRecord> latest_;
};

}  // namespace cairn

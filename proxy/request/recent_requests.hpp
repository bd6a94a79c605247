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
  void add(const RequestRecord& record) {
    latest_.push_front(record);
    if (latest_.size() > kept) latest_.pop_back();
  }
  const std::deque<RequestRecord>& latest_first() const { return latest_; }

 private:
  std::deque<RequestRecord> latest_;
};

}  // namespace cairn

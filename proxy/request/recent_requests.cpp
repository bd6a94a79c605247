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
}

}  // namespace cairn

// Whether a request carries a key, in one of the two places where clients put it.
// Thread: any; pure.
#pragma once

#include <string_view>

#include "backend/http_message.hpp"

namespace cairn {

// `Authorization: Bearer KEY` or `X-Api-Key: KEY`; takes as long for a key that is nearly right as for any other of its length.
bool carries_key(const HeaderFields& fields, std::string_view key);

}  // namespace cairn

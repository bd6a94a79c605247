// Text of others for a terminal: what would move its cursor, colour it or worse is shown as \xNN.
// Thread: any.
#pragma once

#include <string>
#include <string_view>

namespace cairn {

// The same when it has no control characters, those of UTF-8's second block (U+0080 to U+009F) included.
std::string printable_text(std::string_view text);

}  // namespace cairn

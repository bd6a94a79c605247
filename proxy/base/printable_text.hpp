// Text of others (names of files, labels) for a terminal, or for JSON, whatever bytes are in it.
// Thread: any.
#pragma once

#include <boost/json/value.hpp>

#include <string>
#include <string_view>

namespace cairn {

// For a terminal: what would move its cursor, colour it or worse is shown as \xNN: control characters, those of UTF-8's second block
// (U+0080 to U+009F) included, and bytes that are no UTF-8. Else the same.
std::string printable_text(std::string_view text);

// Serialized, with \xNN (as text) in strings in place of bytes that are no UTF-8.
std::string json_text(const boost::json::value& value);

}  // namespace cairn

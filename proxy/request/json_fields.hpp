// Reading JSON the way llama-server does: a member that is missing, null or of another type is its default; and writing it as
// llama-server writes what it puts into a prompt.
// Pure.
#pragma once

#include <boost/json.hpp>

#include <cstddef>
#include <string>
#include <string_view>

#include "base/result.hpp"

namespace cairn {

inline constexpr std::size_t deepest_json = 256;  // schemas nest deeper than the library's 32

// Errors: downstream malformed, also for what is no object.
Result<boost::json::object> parse_object(std::string_view text);

// nullptr: missing, or `value` is no object.
const boost::json::value* member(const boost::json::value& value, std::string_view key);
std::string string_member_or(const boost::json::value& value, std::string_view key, std::string_view fallback = {});

// Without spaces, members in the client's order, floating-point numbers as nlohmann's JSON library formats them (of more than 19
// digits the last may be another).
void append_compact(std::string& out, const boost::json::value& value);

}  // namespace cairn

#include "base/printable_text.hpp"

#include <boost/json/serialize.hpp>
#include <boost/locale/utf.hpp>

namespace cairn {

namespace {

using Utf8 = boost::locale::utf::utf_traits<char>;

// `shows`: whether a code point may stay as it is. Each byte of what may not becomes `prefix` and two digits.
template <class Shows>
std::string escaped(std::string_view text, std::string_view prefix, Shows shows) {
  constexpr std::string_view digits = "0123456789abcdef";
  std::string out;
  for (const char* at = text.begin(); at != text.end();) {
    const char* end = at;
    const boost::locale::utf::code_point point = Utf8::decode(end, text.end());
    const bool valid = boost::locale::utf::is_valid_codepoint(point);
    if (!valid) end = at + 1;
    if (valid && shows(point)) {
      out.append(at, end);
      at = end;
      continue;
    }
    for (; at != end; ++at) {
      const auto byte = static_cast<unsigned char>(*at);
      out.append(prefix).append({digits[byte >> 4], digits[byte & 15]});
    }
  }
  return out;
}

}  // namespace

std::string printable_text(std::string_view text) {
  return escaped(text, "\\x", [](boost::locale::utf::code_point point) { return point >= 0x20 && (point < 0x7f || point > 0x9f); });
}

std::string json_text(const boost::json::value& value) {
  // What is no ASCII stands in strings alone.
  return escaped(boost::json::serialize(value), R"(\\x)", [](boost::locale::utf::code_point) { return true; });
}

}  // namespace cairn

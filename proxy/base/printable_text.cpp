#include "base/printable_text.hpp"

#include <cstddef>

namespace cairn {

std::string printable_text(std::string_view text) {
  constexpr std::string_view digits = "0123456789abcdef";
  std::string out;
  const auto byte_at = [text](std::size_t at) { return at < text.size() ? static_cast<unsigned char>(text[at]) : 0U; };
  const auto escape = [&](std::size_t at) {
    out += "\\x";
    out += digits[byte_at(at) >> 4];
    out += digits[byte_at(at) & 15];
  };
  for (std::size_t i = 0; i < text.size(); ++i) {
    const bool second_block = byte_at(i) == 0xc2 && byte_at(i + 1) >= 0x80 && byte_at(i + 1) < 0xa0;
    if (byte_at(i) >= 0x20 && byte_at(i) != 0x7f && !second_block) {
      out += text[i];
      continue;
    }
    escape(i);
    if (second_block) escape(++i);
  }
  return out;
}

}  // namespace cairn

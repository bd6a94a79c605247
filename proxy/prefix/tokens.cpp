#include "prefix/tokens.hpp"

#include <algorithm>
#include <cstdint>

namespace cairn {

namespace {

// No early exit inside, so that the compiler can use vectors (std::mismatch compares token by token).
template <std::size_t kStride>
bool same_stride(const Token* a, const Token* b) {
  std::uint32_t difference = 0;
  for (std::size_t i = 0; i < kStride; ++i) difference |= static_cast<std::uint32_t>(a[i] ^ b[i]);
  return difference == 0;
}

}  // namespace

std::size_t common_prefix(TokenSpan a, TokenSpan b) {
  const std::size_t limit = std::min(a.size(), b.size());
  std::size_t at = 0;
  while (at + 32 <= limit && same_stride<32>(a.data() + at, b.data() + at)) at += 32;
  // The rest with one look back over what was compared already: loops over it would be mispredicted edge after edge.
  if (at + 32 > limit && limit >= 32 && same_stride<32>(a.data() + limit - 32, b.data() + limit - 32)) return limit;
  while (at + 8 <= limit && same_stride<8>(a.data() + at, b.data() + at)) at += 8;
  while (at < limit && a[at] == b[at]) ++at;
  return at;
}

}  // namespace cairn

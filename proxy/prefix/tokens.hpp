// The words for token sequences.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace cairn {

using Token = std::int32_t;  // llama_token
using Tokens = std::vector<Token>;
using TokenSpan = std::span<const Token>;

// Number of leading tokens that both have.
std::size_t common_prefix(TokenSpan a, TokenSpan b);

}  // namespace cairn

// How the index writes tokens, positions and file stamps into its columns; reading them believes nothing.
// Thread: pure.
// Errors: source disk, corrupt.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.hpp"
#include "checkpoint/record.hpp"
#include "prefix/tokens.hpp"

namespace cairn {

// Tokens as the index keeps them: LEB128 of each id (2-3 bytes for vocabularies of today; not deltas, ids do not ascend).
// Each checkpoint has its own blob, although those of one conversation share prefixes: 3 bytes a token are nothing next
// to the state (8-115 KB a token), and a chain of parents would make one damaged row cost all that hang on it, and an
// eviction rewrite its children.
std::string encode_tokens(TokenSpan tokens);
// corrupt unless the blob holds exactly `count` tokens of this hash.
Result<Tokens> decode_tokens(std::string_view blob, std::uint64_t count, std::uint64_t hash);
// The same behind what `tokens` holds already; as it was on an error.
Result<void> append_tokens(std::string_view blob, std::uint64_t count, std::uint64_t hash, Tokens& tokens);
// XXH3-64 of the ids as little-endian 32-bit words.
std::uint64_t hash_tokens(TokenSpan tokens);

// Prefix lengths, ascending once encoded, none over `limit`.
std::string encode_positions(std::vector<std::uint32_t> positions);
bool decode_positions(std::string_view blob, std::uint32_t limit, std::vector<std::uint32_t>& positions);

// One line a file; the state itself comes first.
std::string encode_files(const std::vector<FileStamp>& files);
bool decode_files(std::string_view text, std::vector<FileStamp>& files);

}  // namespace cairn

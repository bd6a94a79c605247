#include "checkpoint/index_codec.hpp"

#include <xxhash.h>

#include <algorithm>
#include <charconv>
#include <span>
#include <sstream>
#include <utility>

#include "base/error.hpp"

namespace cairn {
namespace {

Error corrupt(std::string what) { return disk_error(ErrorCode::corrupt, "index: " + std::move(what)); }

void put_varint(std::string& out, std::uint32_t value) {
  while (value >= 0x80) {
    out.push_back(static_cast<char>(value | 0x80));
    value >>= 7;
  }
  out.push_back(static_cast<char>(value));
}

// Takes one number off the front of `in`; false when there is none that fits 32 bits.
bool take_varint(std::string_view& in, std::uint32_t& value) {
  std::uint64_t number = 0;
  for (unsigned shift = 0; shift < 35; shift += 7) {
    if (in.empty()) return false;
    const auto byte = static_cast<unsigned char>(in.front());
    in.remove_prefix(1);
    number |= static_cast<std::uint64_t>(byte & 0x7f) << shift;
    if (byte < 0x80) {
      value = static_cast<std::uint32_t>(number);
      return number <= 0xffffffffu;
    }
  }
  return false;
}

}  // namespace

std::string encode_positions(std::vector<std::uint32_t> positions) {
  std::sort(positions.begin(), positions.end());
  std::string out;
  std::uint32_t before = 0;
  for (const std::uint32_t position : positions) {
    put_varint(out, position - before);
    before = position;
  }
  return out;
}

bool decode_positions(std::string_view blob, std::uint32_t limit, std::vector<std::uint32_t>& positions) {
  std::uint64_t position = 0;
  while (!blob.empty()) {
    std::uint32_t step = 0;
    if (!take_varint(blob, step)) return false;
    position += step;
    if (position > limit) return false;
    positions.push_back(static_cast<std::uint32_t>(position));
  }
  return true;
}

std::string encode_files(const std::vector<FileStamp>& files) {
  std::ostringstream out;
  for (const FileStamp& file : files) {
    out << (file.suffix.empty() ? "-" : file.suffix) << ' ' << file.bytes << ' ' << file.inode << ' ' << file.mtime_ns
        << '\n';
  }
  return out.str();
}

bool decode_files(std::string_view text, std::vector<FileStamp>& files) {
  const char* at = text.data();
  const char* const end = at + text.size();
  const auto take = [&](auto& number) {
    if (at == end || *at++ != ' ') return false;
    const auto [stop, error] = std::from_chars(at, end, number);
    at = stop;
    return error == std::errc{};
  };
  while (at != end) {
    FileStamp file;
    const char* const space = std::find(at, end, ' ');
    file.suffix.assign(at, space);
    at = space;
    if (file.suffix.empty() || !take(file.bytes) || !take(file.inode) || !take(file.mtime_ns) || at == end || *at++ != '\n') return false;
    if (file.suffix == "-") file.suffix.clear();
    files.push_back(std::move(file));
  }
  return !files.empty() && files.front().suffix.empty();
}

std::string encode_tokens(TokenSpan tokens) {
  std::string out;
  out.reserve(tokens.size() * 3);
  for (const Token token : tokens) put_varint(out, static_cast<std::uint32_t>(token));
  return out;
}

namespace {

// Fills `tokens`.
Result<void> decode(std::string_view blob, std::uint64_t hash, std::span<Token> tokens) {
  for (Token& token : tokens) {
    std::uint32_t id = 0;
    if (blob.size() >= 3 && static_cast<signed char>(blob[0]) < 0 && static_cast<signed char>(blob[1]) < 0 &&
        static_cast<signed char>(blob[2]) >= 0) {
      // Most of today's vocabularies.
      id = (static_cast<std::uint32_t>(blob[0]) & 0x7f) | (static_cast<std::uint32_t>(blob[1]) & 0x7f) << 7 |
           static_cast<std::uint32_t>(blob[2]) << 14;
      blob.remove_prefix(3);
    } else if (!take_varint(blob, id)) {
      return corrupt("token ids end early");
    }
    token = static_cast<Token>(id);
  }
  if (!blob.empty()) return corrupt("bytes behind the last token");
  if (hash_tokens(tokens) != hash) return corrupt("tokens do not match their hash");
  return {};
}

}  // namespace

Result<void> append_tokens(std::string_view blob, std::uint64_t count, std::uint64_t hash, Tokens& tokens) {
  if (count > blob.size()) return corrupt("fewer bytes than tokens");
  const std::size_t before = tokens.size();
  tokens.resize(before + static_cast<std::size_t>(count));
  auto decoded = decode(blob, hash, std::span(tokens).subspan(before));
  if (!decoded) tokens.resize(before);
  return decoded;
}

Result<Tokens> decode_tokens(std::string_view blob, std::uint64_t count, std::uint64_t hash) {
  Tokens tokens;
  if (auto appended = append_tokens(blob, count, hash, tokens); !appended) return appended.error();
  return tokens;
}

std::uint64_t hash_tokens(TokenSpan tokens) { return XXH3_64bits(tokens.data(), tokens.size_bytes()); }

}  // namespace cairn

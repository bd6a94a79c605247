#include "backend/gguf_metadata.hpp"

#include <fmt/format.h>

#include <array>
#include <fstream>

namespace cairn {

namespace {

constexpr std::uint64_t most_bytes = 64u << 20;

// Value types of GGUF, by number; the size of the fixed ones.
enum GgufType : std::uint32_t { string_type = 8, array_type = 9 };
constexpr std::array<std::uint8_t, 13> fixed_bytes{1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};

class Reader {
 public:
  explicit Reader(std::ifstream& in) : in_(in) {}
  bool ok() const { return ok_; }

  template <class Number>
  Number number() {
    Number value{};
    bytes(&value, sizeof value);
    return value;
  }
  std::string text() {
    const auto length = number<std::uint64_t>();
    if (!ok_ || length > (1u << 20)) {  // keys and short values; a chat template is skipped, not read
      ok_ = false;
      return {};
    }
    std::string value(length, '\0');
    bytes(value.data(), length);
    if (!ok_) value.clear();  // cut off
    return value;
  }
  void skip(std::uint64_t count) {
    read_ += count;
    if (!ok_ || read_ > most_bytes || count > most_bytes) {
      ok_ = false;
      return;
    }
    in_.seekg(static_cast<std::streamoff>(count), std::ios::cur);
    ok_ = in_.good();
  }
  void skip_value(std::uint32_t type, int depth = 0) {
    constexpr int deepest = 4;  // lists in lists; nobody writes more than one
    if (depth > deepest) ok_ = false;
    if (!ok_) return;
    if (type == string_type) {
      skip(number<std::uint64_t>());
    } else if (type == array_type) {
      const auto inner = number<std::uint32_t>();
      const auto count = number<std::uint64_t>();
      if (inner < fixed_bytes.size() && fixed_bytes[inner] != 0) {
        if (count > most_bytes) ok_ = false;
        else skip(count * fixed_bytes[inner]);
        return;
      }
      for (std::uint64_t i = 0; i < count && ok_; ++i) skip_value(inner, depth + 1);
    } else if (type < fixed_bytes.size()) {
      skip(fixed_bytes[type]);
    } else {
      ok_ = false;
    }
  }

 private:
  void bytes(void* into, std::uint64_t count) {
    read_ += count;
    if (!ok_ || read_ > most_bytes || !in_.read(static_cast<char*>(into), static_cast<std::streamsize>(count))) ok_ = false;
  }
  std::ifstream& in_;
  std::uint64_t read_ = 0;
  bool ok_ = true;
};

bool contains(const std::string& key, const char* part) { return key.find(part) != std::string::npos; }

}  // namespace

Result<GgufMetadata> read_gguf_metadata(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) return disk_error(ErrorCode::not_found, fmt::format("{}: cannot be read", path));
  Reader reader(in);
  const Error broken = disk_error(ErrorCode::corrupt, fmt::format("{}: not a GGUF file that we know", path));
  if (reader.number<std::uint32_t>() != 0x46554747u) return broken;  // "GGUF"
  const auto version = reader.number<std::uint32_t>();
  if (version < 2 || version > 3) return broken;
  reader.number<std::uint64_t>();  // tensors
  const auto pairs = reader.number<std::uint64_t>();
  GgufMetadata metadata;
  for (std::uint64_t i = 0; i < pairs; ++i) {
    const std::string key = reader.text();
    const auto type = reader.number<std::uint32_t>();
    if (!reader.ok()) return broken;
    for (const char* part : {".ssm.", ".wkv.", ".rwkv.", ".shortconv.", ".linear_attn.", ".kda.", ".token_shift_count"}) {
      if (contains(key, part)) metadata.recurrent = true;
    }
    if (key == "general.architecture" && type == string_type) {
      metadata.architecture = reader.text();
    } else if (key.ends_with(".attention.sliding_window") && (type == 4 || type == 5)) {
      metadata.sliding_window = reader.number<std::uint32_t>();
    } else if (key.ends_with(".attention.sliding_window") && (type == 10 || type == 11)) {
      metadata.sliding_window = reader.number<std::uint64_t>();
    } else {
      reader.skip_value(type);
    }
    if (!reader.ok()) break;  // what was read so far stands
  }
  if (metadata.architecture.empty()) return broken;
  return metadata;
}

}  // namespace cairn

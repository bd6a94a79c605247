// The parser of slot files on arbitrary bytes: no crash, no more memory than the file could fill, positions within bounds.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "checkpoint/index.hpp"
#include "checkpoint/state_file.hpp"

namespace {

class Bytes final : public cairn::ReadableFile {
 public:
  Bytes(const std::uint8_t* data, std::size_t size) : data_(data), size_(size) {}
  std::uint64_t size_bytes() const override { return size_; }
  cairn::Result<std::size_t> read_at(std::uint64_t offset, std::span<std::byte> out) override {
    if (offset >= size_) return std::size_t{0};
    const std::size_t count = std::min<std::size_t>(out.size(), size_ - static_cast<std::size_t>(offset));
    std::memcpy(out.data(), data_ + offset, count);
    return count;
  }

 private:
  const std::uint8_t* data_;
  std::size_t size_;
};

void require(bool holds) {
  if (!holds) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Bytes file(data, size);
  const auto header = cairn::read_state_header(file);
  if (header) {
    require(header->tokens.size() * sizeof(cairn::Token) <= size);
    require(header->state_offset_bytes <= size);
    std::vector<std::uint64_t> candidates;
    for (std::size_t at = 0; at + 4 <= size && candidates.size() < 64; ++at) {
      if (std::memcmp(data + at, "SCKP", 4) == 0) candidates.push_back(at);
    }
    const auto found = cairn::read_context_checkpoints(file, *header, candidates);
    require(found.has_value());
    const auto& positions = found->positions;
    require(positions.size() <= found->count && found->bytes <= size);
    require(std::is_sorted(positions.begin(), positions.end()));
    require(positions.empty() || positions.back() <= header->tokens.size());
  }
  // The index's token blobs: the first two bytes say how many.
  if (size >= 2) {
    const std::string_view blob(reinterpret_cast<const char*>(data) + 2, size - 2);
    const std::uint64_t count = data[0] + 256u * data[1];
    const auto tokens = cairn::decode_tokens(blob, count, 0);
    require(!tokens || tokens->size() == count);
  }
  return 0;
}

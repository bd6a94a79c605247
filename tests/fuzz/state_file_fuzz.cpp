// The parser of slot files on arbitrary bytes, read in pieces of any size: no crash, no more memory than the file could fill, positions
// within bounds, the same checksum and the same places of the appendix's magic as of the whole.
#include <xxhash.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "checkpoint/file_layer.hpp"
#include "checkpoint/state_file.hpp"

namespace {

using namespace cairn;

class Bytes final : public ReadableFile {
 public:
  Bytes(const std::uint8_t* data, std::size_t size) : data_(data), size_(size) {}
  std::uint64_t size_bytes() const override { return size_; }
  Result<std::size_t> read_at(std::uint64_t offset, std::span<std::byte> out) override {
    if (offset >= size_) return std::size_t{0};
    const std::size_t count = std::min<std::size_t>(out.size(), size_ - static_cast<std::size_t>(offset));
    std::memcpy(out.data(), data_ + offset, count);
    return count;
  }

 private:
  const std::uint8_t* data_;
  std::size_t size_;
};

// One file, whatever it is called.
class OneFile final : public FileLayer {
 public:
  OneFile(const std::uint8_t* data, std::size_t size) : data_(data), size_(size) {}
  Result<std::unique_ptr<ReadableFile>> open(const std::string&) override {
    return std::unique_ptr<ReadableFile>(std::make_unique<Bytes>(data_, size_));
  }
  Result<std::unique_ptr<WritableFile>> create(const std::string&) override { return not_asked_for(); }
  Result<FileStatus> status(const std::string&) override { return not_asked_for(); }
  Result<DiskSpace> space(const std::string&) override { return not_asked_for(); }
  Result<std::unique_ptr<Directory>> open_directory(const std::string&) override { return not_asked_for(); }
  Result<void> rename(const std::string&, const std::string&) override { return not_asked_for(); }
  Result<void> remove(const std::string&) override { return not_asked_for(); }
  Result<void> sync_file(const std::string&) override { return not_asked_for(); }
  Result<void> sync_directory(const std::string&) override { return not_asked_for(); }
  Result<void> make_directory(const std::string&, DirectoryFor) override { return not_asked_for(); }
  Result<std::unique_ptr<FileLock>> lock(const std::string&) override { return not_asked_for(); }

 private:
  static Error not_asked_for() { std::abort(); }

  const std::uint8_t* data_;
  std::size_t size_;
};

void require(bool holds) {
  if (!holds) std::abort();
}

std::vector<std::uint64_t> places_of_magic(const std::uint8_t* data, std::size_t size, std::size_t from) {
  std::vector<std::uint64_t> places;
  for (std::size_t at = from; at + 4 <= size && places.size() < max_appendix_candidates; ++at) {
    if (std::memcmp(data + at, "SCKP", 4) == 0) places.push_back(at);
  }
  return places;
}

}  // namespace

// The last byte says how large a piece is.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const std::size_t piece_bytes = data[--size] % 64 + 1u;
  OneFile files(data, size);
  const std::uint64_t bytes = size;
  const auto scan = scan_state_files(files, "state", {FileStamp{"", bytes}}, true, nullptr, piece_bytes);
  require(scan && scan->bytes == bytes);
  require(scan->appendix_candidates == places_of_magic(data, size, 0));
  std::vector<std::uint8_t> hashed(sizeof bytes + size);
  std::memcpy(hashed.data(), &bytes, sizeof bytes);
  if (size > 0) std::memcpy(hashed.data() + sizeof bytes, data, size);
  const XXH128_hash_t hash = XXH3_128bits(hashed.data(), hashed.size());
  require(scan->checksum == Checksum{hash.low64, hash.high64});

  Bytes file(data, size);
  const auto header = read_state_header(file);
  const auto read = read_context_checkpoints(files, "state", piece_bytes);
  require(header.has_value() == read.has_value());
  if (!header) return 0;
  require(header->tokens.size() * sizeof(Token) <= size);
  require(header->state_offset_bytes <= size);
  const auto found = read_context_checkpoints(file, *header, places_of_magic(data, size, header->state_offset_bytes));
  require(found.has_value());
  const auto& positions = found->positions;
  require(positions.size() <= found->count && found->bytes <= size);
  require(std::is_sorted(positions.begin(), positions.end()));
  require(positions.empty() || positions.back() <= header->tokens.size());
  require(read->positions == positions && read->count == found->count && read->bytes == found->bytes);
  return 0;
}

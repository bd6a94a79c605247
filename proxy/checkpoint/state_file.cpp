#include "checkpoint/state_file.hpp"

#include <xxhash.h>

#include <algorithm>
#include <bit>
#include <chrono>
#include <cstddef>
#include <cstring>
#include <utility>

namespace cairn {
namespace {

static_assert(std::endian::native == std::endian::little, "state files are read as they lie in memory");

constexpr std::uint64_t max_tokens = 1u << 26;
constexpr std::uint32_t appendix_magic = 0x504b4353;  // "SCKP"
constexpr std::uint32_t max_context_checkpoints = 65536;

Error corrupt(std::string what) { return disk_error(ErrorCode::corrupt, "state file: " + std::move(what)); }

Result<void> read_exactly(ReadableFile& file, std::uint64_t offset, std::span<std::byte> out) {
  if (out.empty()) return {};
  const auto got = file.read_at(offset, out);
  if (!got) return got.error();
  if (*got != out.size()) return corrupt("ends at byte " + std::to_string(offset + *got));
  return {};
}

template <class T>
T load(const std::byte* at) {
  T value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

// Streams through XXH3-128.
class Hasher {
 public:
  Hasher() : state_(XXH3_createState()) { XXH3_128bits_reset(state_); }
  ~Hasher() { XXH3_freeState(state_); }
  Hasher(const Hasher&) = delete;
  Hasher& operator=(const Hasher&) = delete;
  void add(const void* data, std::size_t bytes) { XXH3_128bits_update(state_, data, bytes); }
  Checksum finish() const {
    const XXH128_hash_t hash = XXH3_128bits_digest(state_);
    return Checksum{hash.low64, hash.high64};
  }

 private:
  XXH3_state_t* state_;
};

// Notes where `appendix_magic` stands in a stream of pieces.
class MagicSearch {
 public:
  // `data` has room for three bytes in front of it, which belong to this object.
  void look(std::byte* data, std::size_t bytes, std::uint64_t offset) {
    if (bytes == 0) return;
    const std::size_t carried = carried_;
    std::byte* from = data - carried;
    std::memcpy(from, tail_, carried);
    const std::byte* const end = data + bytes;
    const std::byte* at = from;
    while (offsets_.size() < max_appendix_candidates) {
      at = static_cast<const std::byte*>(
          ::memmem(at, static_cast<std::size_t>(end - at), &appendix_magic, sizeof appendix_magic));
      if (at == nullptr) break;
      offsets_.push_back(offset - carried + static_cast<std::uint64_t>(at - from));
      ++at;
    }
    carried_ = std::min<std::size_t>(3, carried + bytes);
    std::memmove(tail_, end - carried_, carried_);
  }
  std::vector<std::uint64_t> take() { return std::move(offsets_); }

 private:
  std::vector<std::uint64_t> offsets_;
  std::byte tail_[3] = {};
  std::size_t carried_ = 0;
};

// The records of an appendix at `offset`, or nothing when it is not one that ends where the file ends.
Result<ContextCheckpoints> read_appendix(ReadableFile& file, const StateHeader& header, std::uint64_t offset) {
  const ContextCheckpoints none;
  const std::uint64_t size = header.file_bytes;
  std::byte head[12];
  if (offset + sizeof head > size) return none;
  if (auto read = read_exactly(file, offset, head); !read) return read.error();
  const auto count = load<std::uint32_t>(head + 8);
  if (load<std::uint32_t>(head) != appendix_magic || load<std::uint32_t>(head + 4) != 1) return none;
  if (count == 0 || count > max_context_checkpoints) return none;
  ContextCheckpoints found;
  std::vector<std::uint32_t>& positions = found.positions;
  std::uint64_t at = offset + sizeof head;
  for (std::uint32_t i = 0; i < count; ++i) {
    std::byte record[16];
    if (size - at < sizeof record) return none;
    if (auto read = read_exactly(file, at, record); !read) return read.error();
    const auto position = load<std::int64_t>(record);
    if (position < 0 || static_cast<std::uint64_t>(position) > header.tokens.size()) return none;
    positions.push_back(static_cast<std::uint32_t>(position));
    at += sizeof record;
    for (int blob = 0; blob < 3; ++blob) {  // of the model, of a draft model, of speculation
      std::byte length[8];
      if (size - at < sizeof length) return none;
      if (auto read = read_exactly(file, at, length); !read) return read.error();
      at += sizeof length;
      const auto bytes = load<std::uint64_t>(length);
      if (bytes > size - at) return none;
      at += bytes;
    }
  }
  if (at != size) return none;
  std::sort(positions.begin(), positions.end());
  positions.erase(std::unique(positions.begin(), positions.end()), positions.end());
  found.count = count;
  found.bytes = size - offset;
  return found;
}

// Hashes one file, looks for the magic in it, copies it, counts its bytes: whatever is not null.
Result<void> pass_over(ReadableFile& file, std::uint64_t from, std::size_t piece_bytes, Hasher* hasher, MagicSearch* search,
                       WritableFile* copy = nullptr, std::atomic<std::uint64_t>* so_far = nullptr) {
  std::vector<std::byte> buffer(piece_bytes + 4);
  const std::span<std::byte> piece(buffer.data() + 4, piece_bytes);
  std::uint64_t offset = from;
  while (offset < file.size_bytes()) {
    const std::uint64_t left = file.size_bytes() - offset;
    const auto wanted = piece.first(static_cast<std::size_t>(std::min<std::uint64_t>(left, piece_bytes)));
    if (auto read = read_exactly(file, offset, wanted); !read) return read.error();
    if (hasher != nullptr) hasher->add(wanted.data(), wanted.size());
    if (search != nullptr) search->look(wanted.data(), wanted.size(), offset);
    if (copy != nullptr) {
      if (auto put = copy->append(wanted); !put) return put;
    }
    offset += wanted.size();
    if (so_far != nullptr) *so_far += wanted.size();
  }
  return {};
}

}  // namespace

Result<StateHeader> read_state_header(ReadableFile& file) {
  StateHeader header;
  header.file_bytes = file.size_bytes();
  std::byte head[12];
  if (auto read = read_exactly(file, 0, head); !read) return read.error();
  if (load<std::uint32_t>(head) != state_file_magic) return corrupt("not a llama-server slot file");
  header.version = load<std::uint32_t>(head + 4);
  if (header.version == 0) return corrupt("version 0");
  const std::uint64_t words = load<std::uint32_t>(head + 8);
  if (words > (header.file_bytes - sizeof head) / 4) return corrupt("says that it holds more tokens than fit in it");
  header.state_offset_bytes = sizeof head + words * 4;

  std::uint64_t ids_offset = sizeof head;
  std::uint64_t ids = words;
  if (header.version >= 4) {
    std::byte packing[12];
    if (words < 3) return corrupt("no packed tokens");
    if (auto read = read_exactly(file, sizeof head, packing); !read) return read.error();
    const auto ids_word = load<std::int32_t>(packing + 8);
    if (load<std::int32_t>(packing) != -1) return corrupt("no packed tokens");
    if (load<std::int32_t>(packing + 4) != 1) {
      return disk_error(ErrorCode::unsupported,
                        "state file: packing " + std::to_string(load<std::int32_t>(packing + 4)));
    }
    if (ids_word < 0 || static_cast<std::uint64_t>(ids_word) > words - 3) return corrupt("more tokens than words");
    ids_offset += sizeof packing;
    ids = static_cast<std::uint64_t>(ids_word);
    const std::uint64_t rest = words - 3 - ids;
    std::byte media[4] = {};
    if (rest == 1) {
      if (auto read = read_exactly(file, ids_offset + ids * 4, media); !read) return read.error();
    }
    header.has_media = rest > 1 || load<std::uint32_t>(media) != 0;
  }
  if (ids > max_tokens) return corrupt("more than 2^26 tokens");
  header.tokens.resize(static_cast<std::size_t>(ids));
  const auto bytes = std::as_writable_bytes(std::span<Token>(header.tokens));
  if (auto read = read_exactly(file, ids_offset, bytes); !read) return read.error();
  return header;
}

Result<StateHeader> read_state_header(FileLayer& files, const std::string& path) {
  auto file = files.open(path);
  if (!file) return file.error();
  return read_state_header(**file);
}

Result<std::vector<FileStamp>> stamp_state_files(FileLayer& files, const std::string& path) {
  std::vector<FileStamp> stamps;
  const auto stamp = [&](std::string_view suffix) -> Result<void> {
    const std::string name = path + std::string(suffix);
    const auto status = files.status(name);
    if (!status && status.error().code == ErrorCode::not_found && !suffix.empty()) return {};
    if (!status) return status.error();
    if (!status->regular) return corrupt(name + " is not a regular file");
    stamps.push_back({std::string(suffix), status->bytes, status->inode, status->mtime_ns, status->ctime_ns});
    return {};
  };
  if (auto done = stamp(""); !done) return done.error();
  for (const std::string_view suffix : side_file_suffixes) {
    if (auto done = stamp(suffix); !done) return done.error();
  }
  return stamps;
}

bool same_sizes(const std::vector<FileStamp>& a, const std::vector<FileStamp>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](const FileStamp& left, const FileStamp& right) {
    return left.suffix == right.suffix && left.bytes == right.bytes;
  });
}

namespace {

Result<StateScan> scan(FileLayer& files, const std::string& path, const std::vector<FileStamp>& stamps, bool look_for_appendix,
                       const std::string* copy_to, std::atomic<std::uint64_t>* so_far, std::size_t piece_bytes) {
  const auto start = std::chrono::steady_clock::now();
  StateScan result;
  Hasher hasher;
  for (const FileStamp& stamp : stamps) {
    auto file = files.open(path + stamp.suffix);
    if (!file) return file.error();
    if ((*file)->size_bytes() != stamp.bytes) return corrupt(path + stamp.suffix + " changed its size");
    hasher.add(stamp.suffix.data(), stamp.suffix.size());
    hasher.add(&stamp.bytes, sizeof stamp.bytes);
    MagicSearch search;
    const bool look = look_for_appendix && stamp.suffix.empty();
    std::unique_ptr<WritableFile> copy;
    if (copy_to != nullptr) {
      auto created = files.create(*copy_to + stamp.suffix);
      if (!created) return created.error();
      copy = std::move(*created);
    }
    if (auto done = pass_over(**file, 0, piece_bytes, &hasher, look ? &search : nullptr, copy.get(), so_far); !done) return done.error();
    if (look) result.appendix_candidates = search.take();
    result.bytes += stamp.bytes;
  }
  result.checksum = hasher.finish();
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return result;
}

}  // namespace

Result<StateScan> scan_state_files(FileLayer& files, const std::string& path, const std::vector<FileStamp>& stamps,
                                   bool look_for_appendix, std::atomic<std::uint64_t>* so_far, std::size_t piece_bytes) {
  return scan(files, path, stamps, look_for_appendix, nullptr, so_far, piece_bytes);
}

Result<StateScan> copy_state_files(FileLayer& files, const std::string& path, const std::vector<FileStamp>& stamps,
                                   const std::string& to) {
  return scan(files, path, stamps, false, &to, nullptr, scan_piece_bytes);
}

Result<ContextCheckpoints> read_context_checkpoints(ReadableFile& file, const StateHeader& header, const std::vector<std::uint64_t>& candidates) {
  for (const std::uint64_t offset : candidates) {
    if (offset < header.state_offset_bytes) continue;  // token ids that look like it
    auto found = read_appendix(file, header, offset);
    if (!found) return found.error();
    if (found->count > 0) return found;
  }
  return ContextCheckpoints{};
}

Result<ContextCheckpoints> read_context_checkpoints(FileLayer& files, const std::string& path, std::size_t piece_bytes) {
  auto file = files.open(path);
  if (!file) return file.error();
  const auto header = read_state_header(**file);
  if (!header) return header.error();
  MagicSearch search;
  if (auto done = pass_over(**file, header->state_offset_bytes, piece_bytes, nullptr, &search); !done) return done.error();
  return read_context_checkpoints(**file, *header, search.take());
}

}  // namespace cairn

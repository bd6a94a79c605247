// The decoders of the index's columns on arbitrary bytes, what they accept encoded again, and a whole index with such a row.
#include <sqlite3.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "checkpoint/index.hpp"

namespace {

using namespace cairn;

void require(bool holds) {
  if (!holds) std::abort();
}

// The ids that the blob holds, read one by one; false where behind them come bytes that are none.
bool read_tokens(std::string_view blob, Tokens& tokens) {
  std::uint64_t id = 0;
  unsigned shift = 0;
  for (const char byte : blob) {
    id |= (static_cast<std::uint64_t>(byte) & 0x7f) << shift;
    shift += 7;
    if ((byte & 0x80) != 0 && shift < 35) continue;
    if ((byte & 0x80) != 0 || id > 0xffffffff) return false;
    tokens.push_back(static_cast<Token>(id));
    id = shift = 0;
  }
  return shift == 0;
}

void try_tokens(std::string_view blob) {
  Tokens tokens;
  const bool whole = read_tokens(blob, tokens);
  const std::uint64_t hash = hash_tokens(tokens);
  const auto decoded = decode_tokens(blob, tokens.size(), hash);
  require(decoded.has_value() == whole && (!decoded || *decoded == tokens));
  require(!decode_tokens(blob, tokens.size(), hash ^ 1) && !decode_tokens(blob, tokens.size() + 1, hash));
  Tokens behind{7};
  require(append_tokens(blob, tokens.size(), hash, behind).has_value() == whole);
  require(behind.front() == 7 && behind.size() == 1 + (whole ? tokens.size() : 0));
}

// An index with one row whose columns the fuzzer writes, behind the index's back.
class Victim {
 public:
  Victim() : path_(folder() + "/cairn-fuzz-" + std::to_string(::getpid()) + ".sqlite") {
    std::filesystem::remove(path_);
    index_ = std::move(*Index::open(path_));
    CheckpointRecord record;
    record.file_name = "a";
    record.token_count = static_cast<std::uint32_t>(tokens.size());
    record.files = {FileStamp{}};
    require(index_->add_checkpoint(record, tokens).has_value());
    require(sqlite3_open(path_.c_str(), &database_) == SQLITE_OK);
    sqlite3_exec(database_, "PRAGMA synchronous=OFF; PRAGMA journal_mode=WAL", nullptr, nullptr, nullptr);
    require(sqlite3_prepare_v2(database_, "UPDATE checkpoints SET files=?, resume_positions=?, kind=?", -1, &row_, nullptr) == SQLITE_OK);
    require(sqlite3_prepare_v2(database_, "UPDATE checkpoint_tokens SET tokens=?", -1, &blob_, nullptr) == SQLITE_OK);
  }
  ~Victim() {
    sqlite3_finalize(row_);
    sqlite3_finalize(blob_);
    sqlite3_close(database_);
    index_.reset();
    for (const char* suffix : {"", "-wal", "-shm"}) std::filesystem::remove(path_ + suffix);
  }
  Victim(const Victim&) = delete;
  Victim& operator=(const Victim&) = delete;

  void try_row(std::string_view files, std::string_view positions, std::string_view blob) {
    sqlite3_bind_text(row_, 1, files.data(), static_cast<int>(files.size()), SQLITE_TRANSIENT);
    sqlite3_bind_blob(row_, 2, positions.empty() ? "" : positions.data(), static_cast<int>(positions.size()), SQLITE_TRANSIENT);
    sqlite3_bind_text(row_, 3, files.data(), static_cast<int>(std::min<std::size_t>(files.size(), 12)), SQLITE_TRANSIENT);
    sqlite3_bind_blob(blob_, 1, blob.empty() ? "" : blob.data(), static_cast<int>(blob.size()), SQLITE_TRANSIENT);
    for (sqlite3_stmt* statement : {row_, blob_}) {
      require(sqlite3_step(statement) == SQLITE_DONE);
      sqlite3_reset(statement);
    }
    std::vector<CheckpointId> unreadable;
    std::vector<CheckpointRecord> records;
    const auto read = index_->for_each_checkpoint([&](CheckpointRecord record) { records.push_back(std::move(record)); }, unreadable);
    require(read && records.size() + unreadable.size() == 1);
    for (const CheckpointRecord& record : records) {
      require(!record.files.empty() && record.files.front().suffix.empty());
      for (const std::uint32_t position : record.resume_positions) require(position <= tokens.size());
    }
    const CheckpointId id = records.empty() ? unreadable.front() : records.front().id;
    const auto held = index_->tokens(id);
    require(!held || *held == tokens);  // the hash speaks
  }

 private:
  static std::string folder() { return ::access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp"; }

  const Tokens tokens{1, 200, 70000};
  std::string path_;
  std::unique_ptr<Index> index_;
  sqlite3* database_ = nullptr;
  sqlite3_stmt* row_ = nullptr;
  sqlite3_stmt* blob_ = nullptr;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 3) return 0;
  const std::uint32_t limit = data[0] + 256u * data[1];
  const std::string_view bytes(reinterpret_cast<const char*>(data) + 3, size - 3);

  std::vector<std::uint32_t> positions;
  if (decode_positions(bytes, limit, positions)) {
    require(std::is_sorted(positions.begin(), positions.end()) && (positions.empty() || positions.back() <= limit));
    std::vector<std::uint32_t> again;
    require(decode_positions(encode_positions(positions), limit, again) && again == positions);
  }

  std::vector<FileStamp> files;
  if (decode_files(std::string(bytes), files)) {
    require(!files.empty() && files.front().suffix.empty());
    std::vector<FileStamp> again;
    require(decode_files(encode_files(files), again) && again.size() == files.size());
    for (std::size_t i = 0; i < files.size(); ++i) {
      require(again[i].suffix == files[i].suffix && again[i].bytes == files[i].bytes);
      require(again[i].inode == files[i].inode && again[i].mtime_ns == files[i].mtime_ns);
    }
  }

  try_tokens(bytes);
  const Tokens tokens = [&] {
    Tokens some(bytes.size() / sizeof(Token));
    std::copy_n(bytes.data(), some.size() * sizeof(Token), reinterpret_cast<char*>(some.data()));
    return some;
  }();
  const auto back = decode_tokens(encode_tokens(tokens), tokens.size(), hash_tokens(tokens));
  require(back && *back == tokens);

  static Victim victim;
  const std::size_t cut = std::min<std::size_t>(data[2], bytes.size());
  victim.try_row(bytes.substr(0, cut), bytes.substr(cut), bytes);
  return 0;
}

// Handmade slot files, a scratch directory, a file layer that fails or crashes, and a way to run the store's tasks.
#pragma once

#include <gtest/gtest.h>
#include <sqlite3.h>
#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iostream>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "checkpoint/state_file.hpp"
#include "checkpoint/store.hpp"
#include "run_to_end.hpp"

namespace cairn::test {

namespace fs = std::filesystem;

inline std::uint64_t seed() {
  static const std::uint64_t value = [] {
    const char* given = std::getenv("CAIRN_TEST_SEED");
    const std::uint64_t chosen = given != nullptr ? std::strtoull(given, nullptr, 10) : std::random_device{}();
    std::cout << "CAIRN_TEST_SEED=" << chosen << std::endl;
    return chosen;
  }();
  return value;
}

class ScratchDirectory {
 public:
  ScratchDirectory() {
    // In RAM where there is some: the loops over all crash points would wait for fsync most of the time.
    const fs::path parent = ::access("/dev/shm", W_OK) == 0 ? fs::path("/dev/shm") : fs::temp_directory_path();
    std::string pattern = (parent / "cairn-test-XXXXXX").string();
    if (::mkdtemp(pattern.data()) == nullptr) throw std::runtime_error("mkdtemp");
    path_ = pattern;
    fs::create_directory(slots());
  }
  ~ScratchDirectory() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  std::string path() const { return path_; }
  std::string slots() const { return path_ + "/slots"; }
  std::string state() const { return path_ + "/state"; }

 private:
  std::string path_;
};

inline Tokens tokens_of_length(std::size_t count, Token salt = 0) {
  Tokens tokens(count);
  for (std::size_t i = 0; i < count; ++i) tokens[i] = static_cast<Token>((i * 7919 + static_cast<std::size_t>(salt)) % 150000);
  return tokens;
}

// A slot file as the versions of llama-server write it.
struct StateBytes {
  std::string data;
  template <class T>
  StateBytes& put(T value) {
    data.append(reinterpret_cast<const char*>(&value), sizeof value);
    return *this;
  }
  StateBytes& fill(std::size_t bytes, char with = '\x5a') {
    data.append(bytes, with);
    return *this;
  }
};

inline StateBytes state_bytes(std::uint32_t version, const Tokens& tokens, std::size_t memory_bytes,
                              const std::vector<std::uint32_t>& context_checkpoints = {}, std::size_t blob_bytes = 100) {
  StateBytes out;
  out.put(state_file_magic).put(version);
  if (version >= 4) {
    out.put(static_cast<std::uint32_t>(tokens.size() + 4)).put(std::int32_t{-1}).put(std::int32_t{1});
    out.put(static_cast<std::int32_t>(tokens.size()));
  } else {
    out.put(static_cast<std::uint32_t>(tokens.size()));
  }
  for (const Token token : tokens) out.put(token);
  if (version >= 4) out.put(std::int32_t{0});
  out.fill(memory_bytes);
  if (!context_checkpoints.empty()) {
    out.data += "SCKP";
    out.put(std::uint32_t{1}).put(static_cast<std::uint32_t>(context_checkpoints.size()));
    for (const std::uint32_t position : context_checkpoints) {
      out.put(static_cast<std::int64_t>(position)).put(static_cast<std::int32_t>(position) - 1);
      out.put(static_cast<std::int32_t>(position) - 1);
      out.put(static_cast<std::uint64_t>(blob_bytes)).fill(blob_bytes, '\x33');
      out.put(std::uint64_t{0}).put(std::uint64_t{0});
    }
  }
  return out;
}

inline void write_file(const std::string& path, const std::string& data) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << data;
}
inline std::string read_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

// Of the index at `path`, which nobody has open. Reading its rows goes by none of them.
enum class UnreadPage { file_names, freelist, sequence };
inline void damage_index(const std::string& path, UnreadPage which, std::string& data) {
  constexpr std::size_t page_bytes = 4096;
  std::uint32_t page = 0;
  if (which == UnreadPage::freelist) {
    constexpr std::size_t first_free_at = 32;  // of the header, big-endian
    for (std::size_t i = 0; i < 4; ++i) page = page << 8 | static_cast<unsigned char>(data[first_free_at + i]);
  } else {
    sqlite3* database = nullptr;
    ASSERT_EQ(sqlite3_open(path.c_str(), &database), SQLITE_OK);
    const std::string name = which == UnreadPage::sequence ? "sqlite_sequence" : "sqlite_autoindex_checkpoints_1";
    const auto root_of = [](void* root, int, char** values, char**) {
      *static_cast<std::uint32_t*>(root) = static_cast<std::uint32_t>(std::stoul(values[0]));
      return 0;
    };
    const std::string sql = "SELECT rootpage FROM sqlite_schema WHERE name='" + name + "'";
    EXPECT_EQ(sqlite3_exec(database, sql.c_str(), root_of, &page, nullptr), SQLITE_OK);
    sqlite3_close(database);
  }
  ASSERT_GT(page, 1u);
  ASSERT_LE(page * page_bytes, data.size());
  data.replace((page - 1) * page_bytes, 16, 16, '\xff');
}
inline void damage_index(const std::string& path, UnreadPage which) {
  std::string data = read_file(path);
  damage_index(path, which, data);
  write_file(path, data);
}

class MemoryFile final : public ReadableFile {
 public:
  explicit MemoryFile(std::string data) : data_(std::move(data)) {}
  std::uint64_t size_bytes() const override { return data_.size(); }
  Result<std::size_t> read_at(std::uint64_t offset, std::span<std::byte> out) override {
    if (offset >= data_.size()) return std::size_t{0};
    const std::size_t count = std::min<std::size_t>(out.size(), data_.size() - static_cast<std::size_t>(offset));
    std::memcpy(out.data(), data_.data() + offset, count);
    return count;
  }

 private:
  std::string data_;
};

// Passes on to the real file system, but asks `before` with the number and name of each call: an Error is returned instead
// of doing it. `after` is told when it is done.
class FaultyLayer final : public FileLayer {
 public:
  std::function<std::optional<Error>(int, const char*)> before;
  std::function<void(int, const char*)> after;
  std::optional<DiskSpace> pretended_space;
  std::string refuses_to_remove;  // what begins so; nobody is asked
  std::string refuses_to_lock;    // likewise
  std::atomic<int> calls{0};

  Result<std::unique_ptr<ReadableFile>> open(const std::string& path) override {
    return through<std::unique_ptr<ReadableFile>>("open", [&] { return real_.open(path); });
  }
  Result<std::unique_ptr<WritableFile>> create(const std::string& path) override {
    return through<std::unique_ptr<WritableFile>>("create", [&] { return real_.create(path); });
  }
  Result<FileStatus> status(const std::string& path) override {
    return through<FileStatus>("status", [&] { return real_.status(path); });
  }
  Result<DiskSpace> space(const std::string& directory) override {
    return through<DiskSpace>("space", [&]() -> Result<DiskSpace> {
      if (pretended_space) return *pretended_space;
      return real_.space(directory);
    });
  }
  Result<std::unique_ptr<Directory>> open_directory(const std::string& path) override {
    auto opened = through<std::unique_ptr<Directory>>("open_directory", [&] { return real_.open_directory(path); });
    if (!opened) return opened.error();
    std::unique_ptr<Directory> directory = std::make_unique<FaultyDirectory>(*this, std::move(*opened));
    return directory;
  }
  Result<void> rename(const std::string& from, const std::string& to) override {
    return through<void>("rename", [&] { return real_.rename(from, to); });
  }
  Result<void> remove(const std::string& path) override {
    if (!refuses_to_remove.empty() && path.starts_with(refuses_to_remove)) return disk_error(ErrorCode::io, "remove " + path);
    return through<void>("remove", [&] { return real_.remove(path); });
  }
  Result<void> sync_file(const std::string& path) override {
    return through<void>("sync_file", [&] { return real_.sync_file(path); });
  }
  Result<void> sync_directory(const std::string& directory) override {
    return through<void>("sync_directory", [&] { return real_.sync_directory(directory); });
  }
  Result<void> make_directory(const std::string& path, DirectoryFor whom) override {
    return through<void>("make_directory", [&] { return real_.make_directory(path, whom); });
  }
  Result<std::unique_ptr<FileLock>> lock(const std::string& path) override {
    if (!refuses_to_lock.empty() && path.starts_with(refuses_to_lock)) return disk_error(ErrorCode::io, "lock " + path);
    return through<std::unique_ptr<FileLock>>("lock", [&] { return real_.lock(path); });
  }

 private:
  class FaultyDirectory final : public Directory {
   public:
    FaultyDirectory(FaultyLayer& layer, std::unique_ptr<Directory> real) : layer_(layer), real_(std::move(real)) {}
    Result<std::string_view> next() override {
      return layer_.through<std::string_view>("next", [&] { return real_->next(); });
    }
    Result<FileStatus> status() override {
      return layer_.through<FileStatus>("status", [&] { return real_->status(); });
    }

   private:
    FaultyLayer& layer_;
    std::unique_ptr<Directory> real_;
  };
  template <class T, class Call>
  Result<T> through(const char* name, Call call) {
    const int number = ++calls;
    if (before) {
      if (auto error = before(number, name)) return *error;
    }
    Result<T> result = call();
    if (after) after(number, name);
    return result;
  }
  PosixFileLayer real_;
};

// A store with its threads, opened on a scratch directory.
class StoreFixture {
 public:
  explicit StoreFixture(const ScratchDirectory& scratch, FileLayer& files, std::uint64_t budget_bytes = 1u << 30)
      : files_(files) {
    options.slot_dir = scratch.slots();
    options.state_dir = scratch.state();
    options.budget_bytes = budget_bytes;
    options.now_unix_ms = [this] { return now_ms; };
  }
  StoreOptions options;
  std::function<void(const std::string& path, const std::string& data)> write = write_file;  // what the backend does
  std::int64_t now_ms = 1'000'000;
  std::unique_ptr<CheckpointStore> store;

  // Runs a task to its end on an I/O thread: this one.
  template <class T>
  T await(Task<T> task) {
    return run_to_end(std::move(task));
  }

  Result<void> open() {
    store.reset();
    auto opened = await(CheckpointStore::open(options, files_, disk_pool_));
    if (!opened) return opened.error();
    store = std::move(*opened);
    return {};
  }

  struct Written {
    CheckpointStore::Reservation reservation;
    NewCheckpoint checkpoint;
  };
  // What the backend would do: write a file under the reservation's name. Then it is ready to be committed.
  Result<Written> write_state(const Tokens& tokens, std::size_t memory_bytes, const std::vector<std::string>& side_files = {}) {
    const std::string data = state_bytes(4, tokens, memory_bytes).data;
    auto reservation = await(store->reserve(data.size()));
    if (!reservation) return reservation.error();
    const std::string path = options.slot_dir + "/" + reservation->temporary_name();
    write(path, data);
    for (const std::string& suffix : side_files) write(path + suffix, "side " + suffix);
    NewCheckpoint checkpoint;
    checkpoint.namespace_id = NamespaceId{1};
    checkpoint.expected_prefix = tokens;
    checkpoint.saved_tokens = tokens.size();
    checkpoint.saved_bytes = data.size();
    return Written{std::move(*reservation), std::move(checkpoint)};
  }

  Result<CommittedCheckpoint> save(const Tokens& tokens, std::size_t memory_bytes, double cost_s = 1,
                                   const std::vector<std::string>& side_files = {}) {
    auto written = write_state(tokens, memory_bytes, side_files);
    if (!written) return written.error();
    written->checkpoint.kind = CheckpointKind::checkpointed;
    written->checkpoint.cost_to_recompute_s = cost_s;
    return await(store->commit(std::move(written->reservation), std::move(written->checkpoint)));
  }

  std::vector<std::string> slot_files() const {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(options.slot_dir)) {
      const std::string name = entry.path().filename().string();
      if (name != "cairn.lock") names.push_back(name);
    }
    std::sort(names.begin(), names.end());
    return names;
  }

 private:
  FileLayer& files_;
  BlockingPool disk_pool_{2};
};

}  // namespace cairn::test

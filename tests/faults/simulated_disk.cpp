#include "simulated_disk.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <system_error>
#include <utility>

namespace cairn::test {

namespace {

std::string parent_of(const std::string& path) { return path.substr(0, path.rfind('/')); }

void put(std::string& data, const SimulatedDisk::Write& write) {
  if (write.truncates) {
    data.resize(write.offset);
    return;
  }
  if (data.size() < write.offset + write.data.size()) data.resize(write.offset + write.data.size());
  data.replace(write.offset, write.data.size(), write.data);
}

}  // namespace

void SimulatedDisk::apply(std::map<std::string, File>& names, const NameChange& change) {
  for (const auto& [path, file] : change) {
    if (file == nullptr) names.erase(path);
    else names[path] = file;
  }
}

void SimulatedDisk::change_names(NameChange change) {
  apply(names_, change);
  unsynced_names_.push_back(std::move(change));
}

void SimulatedDisk::power_cut(Loss loss, std::mt19937_64& random) {
  const std::lock_guard hold(mutex);
  std::size_t kept = loss == Loss::everything ? 0 : unsynced_names_.size();
  if (loss == Loss::some) kept = random() % (unsynced_names_.size() + 1);
  for (std::size_t i = 0; i < kept; ++i) apply(durable_names_, unsynced_names_[i]);
  unsynced_names_.clear();
  names_ = durable_names_;
  for (auto& [path, file] : names_) {
    for (Write& write : file->unsynced) {
      if (loss == Loss::everything || (loss == Loss::some && random() % 2 == 0)) continue;
      if (loss == Loss::some && !write.truncates && random() % 2 == 0) write.data.resize(random() % (write.data.size() + 1));
      put(file->durable, write);
    }
    file->unsynced.clear();
    file->data = file->durable;
  }
  locks_.clear();
  dead_ = false;
}

int SimulatedDisk::begin(std::string_view name) {
  if (dead_) return EIO;
  const int number = ++calls_;
  if (fault) {
    if (const std::optional<int> code = fault(number, name)) return *code;
  }
  return dead_ ? EIO : 0;
}

int SimulatedDisk::open(const std::string& path, bool create, File& file) {
  const auto found = names_.find(path);
  if (found != names_.end()) {
    file = found->second;
    return 0;
  }
  if (!create) return ENOENT;
  file = anonymous();
  change_names({{path, file}});
  return 0;
}

SimulatedDisk::File SimulatedDisk::anonymous() {
  auto file = std::make_shared<Inode>();
  file->number = ++last_inode_;
  file->mtime_ns = ++clock_ns_;
  return file;
}

int SimulatedDisk::write(Inode& file, std::uint64_t offset, std::string_view data) {
  const std::uint64_t end = offset + data.size();
  const std::uint64_t grows = end > file.data.size() ? end - file.data.size() : 0;
  const std::uint64_t room = free_bytes();
  const bool full = grows > room;
  if (full) data = data.substr(0, data.size() - std::min<std::uint64_t>(data.size(), grows - room));
  Write written{offset, std::string(data), false};
  put(file.data, written);
  file.unsynced.push_back(std::move(written));
  file.mtime_ns = ++clock_ns_;
  return full ? ENOSPC : 0;
}

int SimulatedDisk::truncate(Inode& file, std::uint64_t bytes) {
  Write written{bytes, {}, true};
  put(file.data, written);
  file.unsynced.push_back(std::move(written));
  file.mtime_ns = ++clock_ns_;
  return 0;
}

int SimulatedDisk::sync(Inode& file) {
  file.durable = file.data;
  file.unsynced.clear();
  return 0;
}

int SimulatedDisk::rename(const std::string& from, const std::string& to) {
  const File file = find(from);
  if (file == nullptr) return ENOENT;
  change_names({{to, file}, {from, nullptr}});
  return 0;
}

int SimulatedDisk::remove(const std::string& path) {
  if (find(path) == nullptr) return ENOENT;
  change_names({{path, nullptr}});
  return 0;
}

void SimulatedDisk::sync_directory(const std::string& directory) {
  std::erase_if(unsynced_names_, [&](const NameChange& change) {
    if (parent_of(change.front().first) != directory) return false;
    apply(durable_names_, change);
    return true;
  });
}

SimulatedDisk::File SimulatedDisk::find(const std::string& path) {
  const auto found = names_.find(path);
  return found == names_.end() ? nullptr : found->second;
}

std::vector<std::string> SimulatedDisk::names_in(const std::string& directory) {
  std::vector<std::string> names;
  for (const auto& [path, file] : names_) {
    if (parent_of(path) == directory) names.push_back(path.substr(directory.size() + 1));
  }
  return names;
}

std::uint64_t SimulatedDisk::used_bytes() const {
  std::uint64_t used = 0;
  for (const auto& [path, file] : names_) used += file->data.size();
  return used;
}

std::uint64_t SimulatedDisk::free_bytes() {
  const std::uint64_t used = used_bytes();
  return capacity_bytes > used ? capacity_bytes - used : 0;
}

// ---- the store's files

namespace {

Error failed(std::string_view name, const std::string& path, int code) {
  ErrorCode kind = ErrorCode::io;
  if (code == ENOENT) kind = ErrorCode::not_found;
  if (code == ENOSPC) kind = ErrorCode::no_space;
  return disk_error(kind, std::string(name) + ' ' + path + ": " + std::generic_category().message(code));
}

class SimulatedReadable final : public ReadableFile {
 public:
  SimulatedReadable(SimulatedDisk& disk, SimulatedDisk::File file) : disk_(disk), file_(std::move(file)), bytes_(file_->data.size()) {}
  std::uint64_t size_bytes() const override { return bytes_; }
  Result<std::size_t> read_at(std::uint64_t offset, std::span<std::byte> out) override {
    const std::lock_guard hold(disk_.mutex);
    if (const int code = disk_.begin("read")) return failed("read", "", code);
    if (offset >= file_->data.size()) return std::size_t{0};
    const std::size_t count = std::min<std::size_t>(out.size(), file_->data.size() - offset);
    std::memcpy(out.data(), file_->data.data() + offset, count);
    return count;
  }

 private:
  SimulatedDisk& disk_;
  SimulatedDisk::File file_;
  std::uint64_t bytes_;
};

class SimulatedWritable final : public WritableFile {
 public:
  SimulatedWritable(SimulatedDisk& disk, SimulatedDisk::File file) : disk_(disk), file_(std::move(file)) {}
  Result<void> append(std::span<const std::byte> data) override {
    const std::lock_guard hold(disk_.mutex);
    if (const int code = disk_.begin("append")) return failed("append", "", code);
    const std::string_view text(reinterpret_cast<const char*>(data.data()), data.size());
    if (const int code = disk_.write(*file_, file_->data.size(), text)) return failed("append", "", code);
    return {};
  }

 private:
  SimulatedDisk& disk_;
  SimulatedDisk::File file_;
};

Result<FileStatus> status_of(SimulatedDisk& disk, const std::string& path) {
  const std::lock_guard hold(disk.mutex);
  if (const int code = disk.begin("status")) return failed("status", path, code);
  const SimulatedDisk::File file = disk.find(path);
  if (file == nullptr) return failed("status", path, ENOENT);
  return FileStatus{file->data.size(), file->number, file->mtime_ns, file->mtime_ns, true};
}

class SimulatedDirectory final : public Directory {
 public:
  SimulatedDirectory(SimulatedDisk& disk, std::string path) : disk_(disk), path_(std::move(path)), names_(disk_.names_in(path_)) {}
  Result<std::string_view> next() override {
    const std::lock_guard hold(disk_.mutex);
    if (const int code = disk_.begin("next")) return failed("next", path_, code);
    return told_ == names_.size() ? std::string_view{} : names_[told_++];
  }
  Result<FileStatus> status() override { return status_of(disk_, path_ + "/" + names_[told_ - 1]); }

 private:
  SimulatedDisk& disk_;
  std::string path_;
  std::vector<std::string> names_;
  std::size_t told_ = 0;
};

class SimulatedLock final : public FileLock {
 public:
  SimulatedLock(SimulatedDisk& disk, std::string path, SimulatedDisk::File file)
      : disk_(disk), path_(std::move(path)), file_(std::move(file)) {}
  ~SimulatedLock() override {
    const std::lock_guard hold(disk_.mutex);
    disk_.drop_lock(path_);
  }
  bool deleted() const override { return false; }
  Result<void> note(std::string_view text) override {
    const std::lock_guard hold(disk_.mutex);
    int code = disk_.begin("note");
    if (code == 0) code = disk_.truncate(*file_, 0);
    if (code == 0) code = disk_.write(*file_, 0, text);
    if (code != 0) return failed("note", path_, code);
    return {};
  }

 private:
  SimulatedDisk& disk_;
  std::string path_;
  SimulatedDisk::File file_;
};

}  // namespace

Result<std::unique_ptr<ReadableFile>> SimulatedFileLayer::open(const std::string& path) {
  const std::lock_guard hold(disk_.mutex);
  if (const int code = disk_.begin("open")) return failed("open", path, code);
  SimulatedDisk::File file;
  if (const int code = disk_.open(path, false, file)) return failed("open", path, code);
  std::unique_ptr<ReadableFile> readable = std::make_unique<SimulatedReadable>(disk_, std::move(file));
  return readable;
}

Result<std::unique_ptr<WritableFile>> SimulatedFileLayer::create(const std::string& path) {
  const std::lock_guard hold(disk_.mutex);
  if (const int code = disk_.begin("create")) return failed("create", path, code);
  SimulatedDisk::File file;
  if (disk_.find(path) != nullptr) return failed("create", path, EEXIST);
  if (const int code = disk_.open(path, true, file)) return failed("create", path, code);
  std::unique_ptr<WritableFile> writable = std::make_unique<SimulatedWritable>(disk_, std::move(file));
  return writable;
}

Result<FileStatus> SimulatedFileLayer::status(const std::string& path) { return status_of(disk_, path); }

Result<DiskSpace> SimulatedFileLayer::space(const std::string& directory) {
  const std::lock_guard hold(disk_.mutex);
  if (const int code = disk_.begin("space")) return failed("space", directory, code);
  return DiskSpace{disk_.free_bytes(), disk_.capacity_bytes};
}

Result<std::unique_ptr<Directory>> SimulatedFileLayer::open_directory(const std::string& path) {
  const std::lock_guard hold(disk_.mutex);
  if (const int code = disk_.begin("open_directory")) return failed("open_directory", path, code);
  std::unique_ptr<Directory> directory = std::make_unique<SimulatedDirectory>(disk_, path);
  return directory;
}

Result<void> SimulatedFileLayer::rename(const std::string& from, const std::string& to) {
  const std::lock_guard hold(disk_.mutex);
  int code = disk_.begin("rename");
  if (code == 0) code = disk_.rename(from, to);
  if (code != 0) return failed("rename", from, code);
  return {};
}

Result<void> SimulatedFileLayer::remove(const std::string& path) {
  const std::lock_guard hold(disk_.mutex);
  int code = disk_.begin("remove");
  if (code == 0) code = disk_.remove(path);
  if (code != 0) return failed("remove", path, code);
  return {};
}

Result<void> SimulatedFileLayer::sync_file(const std::string& path) {
  const std::lock_guard hold(disk_.mutex);
  if (const int code = disk_.begin("sync_file")) return failed("sync_file", path, code);
  const SimulatedDisk::File file = disk_.find(path);
  if (file == nullptr) return failed("sync_file", path, ENOENT);
  disk_.sync(*file);
  return {};
}

Result<void> SimulatedFileLayer::sync_directory(const std::string& directory) {
  const std::lock_guard hold(disk_.mutex);
  if (const int code = disk_.begin("sync_directory")) return failed("sync_directory", directory, code);
  disk_.sync_directory(directory);
  return {};
}

Result<void> SimulatedFileLayer::make_directory(const std::string& path, DirectoryFor /*whom*/) {
  const std::lock_guard hold(disk_.mutex);
  if (const int code = disk_.begin("make_directory")) return failed("make_directory", path, code);
  return {};  // every directory is there
}

Result<std::unique_ptr<FileLock>> SimulatedFileLayer::lock(const std::string& path) {
  const std::lock_guard hold(disk_.mutex);
  if (const int code = disk_.begin("lock")) return failed("lock", path, code);
  SimulatedDisk::File file;
  if (const int code = disk_.open(path, true, file)) return failed("lock", path, code);
  if (!disk_.take_lock(path)) return disk_error(ErrorCode::invalid, path + " is locked");
  std::unique_ptr<FileLock> lock = std::make_unique<SimulatedLock>(disk_, path, std::move(file));
  return lock;
}

}  // namespace cairn::test

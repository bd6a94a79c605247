#include "checkpoint/file_layer.hpp"

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <system_error>
#include <utility>

namespace cairn {
namespace {

Error system_error(const char* call, const std::string& path, int code) {
  ErrorCode kind = ErrorCode::io;
  if (code == ENOENT || code == ENOTDIR) kind = ErrorCode::not_found;
  if (code == ENOSPC || code == EDQUOT) kind = ErrorCode::no_space;
  return disk_error(kind, std::string(call) + ' ' + path + ": " + std::generic_category().message(code));
}

class Descriptor {
 public:
  explicit Descriptor(int value) : value_(value) {}
  Descriptor(Descriptor&& other) noexcept : value_(std::exchange(other.value_, -1)) {}
  Descriptor& operator=(Descriptor&&) = delete;
  ~Descriptor() {
    if (value_ >= 0) ::close(value_);
  }
  int get() const { return value_; }

 private:
  int value_;
};

Result<Descriptor> open_descriptor(const std::string& path, int flags, mode_t mode = 0600) {
  int value = -1;
  do {
    value = ::open(path.c_str(), flags | O_CLOEXEC, mode);
  } while (value < 0 && errno == EINTR);
  if (value < 0) return system_error("open", path, errno);
  return Descriptor(value);
}

std::int64_t nanoseconds(const timespec& time) {
  return static_cast<std::int64_t>(time.tv_sec) * 1'000'000'000 + time.tv_nsec;
}

class PosixFile final : public ReadableFile {
 public:
  PosixFile(Descriptor descriptor, std::uint64_t size_bytes, std::string path)
      : descriptor_(std::move(descriptor)), size_bytes_(size_bytes), path_(std::move(path)) {}
  std::uint64_t size_bytes() const override { return size_bytes_; }
  Result<std::size_t> read_at(std::uint64_t offset, std::span<std::byte> out) override {
    std::size_t done = 0;
    while (done < out.size()) {
      const ssize_t got = ::pread(descriptor_.get(), out.data() + done, out.size() - done,
                                  static_cast<off_t>(offset + done));
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) return system_error("read", path_, errno);
      if (got == 0) break;
      done += static_cast<std::size_t>(got);
    }
    return done;
  }

 private:
  Descriptor descriptor_;
  std::uint64_t size_bytes_;
  std::string path_;
};

class PosixWritable final : public WritableFile {
 public:
  PosixWritable(Descriptor descriptor, std::string path) : descriptor_(std::move(descriptor)), path_(std::move(path)) {}
  Result<void> append(std::span<const std::byte> data) override {
    while (!data.empty()) {
      const ssize_t put = ::write(descriptor_.get(), data.data(), data.size());
      if (put < 0 && errno == EINTR) continue;
      if (put < 0) return system_error("write", path_, errno);
      data = data.subspan(static_cast<std::size_t>(put));
    }
    return {};
  }
  Result<void> clear() {
    if (::ftruncate(descriptor_.get(), 0) == 0 && ::lseek(descriptor_.get(), 0, SEEK_SET) == 0) return {};
    return system_error("truncate", path_, errno);
  }
  bool deleted() const {
    struct stat status {};
    return ::fstat(descriptor_.get(), &status) == 0 && status.st_nlink == 0;
  }

 private:
  Descriptor descriptor_;
  std::string path_;
};

FileStatus status_of(const struct stat& status) {
  return FileStatus{static_cast<std::uint64_t>(status.st_size), static_cast<std::uint64_t>(status.st_ino),
                    nanoseconds(status.st_mtim), nanoseconds(status.st_ctim), S_ISREG(status.st_mode)};
}

class PosixDirectory final : public Directory {
 public:
  PosixDirectory(DIR* stream, std::string path) : stream_(stream), path_(std::move(path)) {}
  PosixDirectory(const PosixDirectory&) = delete;
  PosixDirectory& operator=(const PosixDirectory&) = delete;
  ~PosixDirectory() override { ::closedir(stream_); }
  Result<std::string_view> next() override {
    for (;;) {
      errno = 0;
      entry_ = ::readdir(stream_);
      if (entry_ == nullptr && errno != 0) return system_error("read directory", path_, errno);
      const std::string_view name = entry_ == nullptr ? std::string_view{} : entry_->d_name;
      if (name != "." && name != "..") return name;
    }
  }
  // By its name in the open directory: its path need not be walked for each of a million files.
  Result<FileStatus> status() override {
    struct stat status {};
    if (::fstatat(::dirfd(stream_), entry_->d_name, &status, AT_SYMLINK_NOFOLLOW) == 0) return status_of(status);
    return system_error("stat", path_ + "/" + entry_->d_name, errno);
  }

 private:
  DIR* stream_;
  const dirent* entry_ = nullptr;
  std::string path_;
};

class PosixLock final : public FileLock {
 public:
  PosixLock(Descriptor descriptor, std::string path) : file_(std::move(descriptor), std::move(path)) {}
  Result<void> note(std::string_view text) override {
    const Result<void> cleared = file_.clear();
    return cleared ? file_.append(std::as_bytes(std::span<const char>(text))) : cleared;
  }
  bool deleted() const override { return file_.deleted(); }

 private:
  PosixWritable file_;  // flock ends with the last descriptor of the open file
};

Result<void> sync(const std::string& path, int flags) {
  auto opened = open_descriptor(path, O_RDONLY | flags);
  if (!opened) return opened.error();
  if (::fsync(opened->get()) == 0) return {};
  // Some network and FUSE file systems cannot sync a directory; there is nothing better to do on them.
  if ((flags & O_DIRECTORY) != 0 && (errno == EINVAL || errno == ENOTSUP)) return {};
  return system_error("fsync", path, errno);
}

}  // namespace

Result<std::unique_ptr<ReadableFile>> PosixFileLayer::open(const std::string& path) {
  // O_NONBLOCK: a FIFO in the directory must not hang us.
  auto opened = open_descriptor(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK);
  if (!opened) return opened.error();
  struct stat status {};
  if (::fstat(opened->get(), &status) != 0) return system_error("stat", path, errno);
  if (!S_ISREG(status.st_mode)) return disk_error(ErrorCode::io, "open " + path + ": not a regular file");
  std::unique_ptr<ReadableFile> file = std::make_unique<PosixFile>(
      std::move(*opened), static_cast<std::uint64_t>(status.st_size), path);
  return file;
}

Result<std::unique_ptr<WritableFile>> PosixFileLayer::create(const std::string& path) {
  // As the backend makes its own: it may be another user's, and is to read these.
  auto opened = open_descriptor(path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, 0666);
  if (!opened) return opened.error();
  std::unique_ptr<WritableFile> file = std::make_unique<PosixWritable>(std::move(*opened), path);
  return file;
}

Result<FileStatus> PosixFileLayer::status(const std::string& path) {
  struct stat status {};
  if (::lstat(path.c_str(), &status) != 0) return system_error("stat", path, errno);
  return status_of(status);
}

Result<DiskSpace> PosixFileLayer::space(const std::string& directory) {
  struct statvfs status {};
  if (::statvfs(directory.c_str(), &status) != 0) return system_error("statvfs", directory, errno);
  const std::uint64_t unit = status.f_frsize;
  // Other errors tell of what cannot be asked, not of what is refused.
  const bool refused = ::faccessat(AT_FDCWD, directory.c_str(), W_OK | X_OK, AT_EACCESS) != 0 && errno == EACCES;
  return DiskSpace{status.f_bavail * unit, status.f_blocks * unit, (status.f_flag & ST_RDONLY) != 0, !refused};
}

Result<std::unique_ptr<Directory>> PosixFileLayer::open_directory(const std::string& path) {
  DIR* stream = ::opendir(path.c_str());
  if (stream == nullptr) return system_error("open directory", path, errno);
  std::unique_ptr<Directory> directory = std::make_unique<PosixDirectory>(stream, path);
  return directory;
}

Result<void> PosixFileLayer::rename(const std::string& from, const std::string& to) {
  if (::rename(from.c_str(), to.c_str()) != 0) return system_error("rename", from, errno);
  return {};
}

Result<void> PosixFileLayer::remove(const std::string& path) {
  if (::unlink(path.c_str()) != 0) return system_error("unlink", path, errno);
  return {};
}

Result<void> PosixFileLayer::sync_file(const std::string& path) { return sync(path, O_NOFOLLOW | O_NONBLOCK); }

Result<void> PosixFileLayer::sync_directory(const std::string& directory) { return sync(directory, O_DIRECTORY); }

Result<void> PosixFileLayer::make_directory(const std::string& path, DirectoryFor whom) {
  for (std::size_t end = path.find('/', 1);; end = path.find('/', end + 1)) {
    const std::string part = path.substr(0, end);
    const bool is_last = path.find_first_not_of('/', end) == std::string::npos;
    if (::mkdir(part.c_str(), is_last && whom == DirectoryFor::owner ? 0700 : 0770) == 0) {
      // A power cut must not take the new directory with all that was synced in it.
      const std::size_t slash = part.rfind('/');
      const std::string parent = slash == std::string::npos ? "." : slash == 0 ? "/" : part.substr(0, slash);
      if (auto synced = sync(parent, O_DIRECTORY); !synced) return synced;
    } else if (errno != EEXIST) {
      const int code = errno;
      // A parent that we may not write (or a read-only one) but that is there is none of our business.
      struct stat status {};
      if (::stat(part.c_str(), &status) != 0 || !S_ISDIR(status.st_mode)) return system_error("mkdir", part, code);
    }
    if (end == std::string::npos) break;
  }
  return {};
}

Result<std::unique_ptr<FileLock>> PosixFileLayer::lock(const std::string& path) {
  auto opened = open_descriptor(path, O_RDWR | O_CREAT | O_NOFOLLOW);
  if (!opened) return opened.error();
  if (::flock(opened->get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno == EWOULDBLOCK) return disk_error(ErrorCode::invalid, "lock " + path + ": held by another Cairn");
    return system_error("lock", path, errno);
  }
  std::unique_ptr<FileLock> lock = std::make_unique<PosixLock>(std::move(*opened), path);
  return lock;
}

}  // namespace cairn

#include "request/answer_spool.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <utility>

namespace cairn {

namespace {

int open_nameless() {
  std::error_code error;
  const auto folder = std::filesystem::temp_directory_path(error);
  return error ? -1 : ::open(folder.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
}

bool write_whole(int file, std::span<const char> bytes, std::uint64_t at) {
  while (!bytes.empty()) {
    const auto count = ::pwrite(file, bytes.data(), bytes.size(), static_cast<off_t>(at));
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return false;
    bytes = bytes.subspan(static_cast<std::size_t>(count));
    at += static_cast<std::uint64_t>(count);
  }
  return true;
}

void append(ByteBuffer& buffer, std::span<const char> bytes) {
  std::copy(bytes.begin(), bytes.end(), buffer.prepare(bytes.size()).begin());
  buffer.commit(bytes.size());
}

}  // namespace

AnswerSpool::~AnswerSpool() {
  if (file_ >= 0) ::close(file_);
}

bool AnswerSpool::full() const { return pool_ == nullptr ? first_.size() >= memory_bytes : !last_.empty(); }

Task<void> AnswerSpool::put(std::span<const char> bytes) {
  const bool in_order = !spilled() && last_.empty();
  if (in_order && (pool_ == nullptr || first_.size() < memory_bytes)) {
    append(first_, bytes);
  } else if (!last_.empty() || !co_await spill(bytes)) {
    append(last_, bytes);
  }
}

Task<bool> AnswerSpool::spill(std::span<const char> bytes) {
  const bool afresh = !spilled();
  if (afresh) written_ = read_ = 0;
  if (written_ + bytes.size() > file_bytes) co_return false;
  const std::uint64_t at = written_;
  const auto write = [this, bytes, at, afresh] {
    if (file_ < 0) file_ = open_nameless();
    if (file_ < 0 || (afresh && ::ftruncate(file_, 0) != 0)) return false;
    return write_whole(file_, bytes, at);
  };
  const bool done = co_await pool_->run(write);
  if (done) written_ += bytes.size();
  co_return done;
}

ResultTask<std::size_t> AnswerSpool::take(std::span<char> into) {
  if (first_.empty() && spilled()) {
    const auto room = into.first(std::min<std::uint64_t>(into.size(), written_ - read_));
    const auto read = [file = file_, room, at = static_cast<off_t>(read_)] { return ::pread(file, room.data(), room.size(), at); };
    const auto count = co_await pool_->run(read);
    if (count <= 0) co_return disk_error(ErrorCode::io, "an answer's temporary file cannot be read back");
    read_ += static_cast<std::uint64_t>(count);
    co_return static_cast<std::size_t>(count);
  }
  if (first_.empty()) std::swap(first_, last_);
  const std::size_t count = std::min(into.size(), first_.size());
  std::copy_n(first_.view().begin(), count, into.begin());
  first_.consume(count);
  co_return count;
}

}  // namespace cairn

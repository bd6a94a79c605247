// An answer's bytes between the backend, which goes on at its own pace, and a client that may read slowly: a little in
// memory, the rest in a temporary file without a name.
// Thread: the I/O thread; the file is read and written on the pool. Owner: the relay of one answer.
// Errors: none on the way in: where no file can be had or written, the spool is full at what it keeps in memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "backend/byte_buffer.hpp"
#include "base/blocking_pool.hpp"
#include "base/task.hpp"

namespace cairn {

class AnswerSpool {
 public:
  static constexpr std::size_t memory_bytes = 64 * 1024;
  static constexpr std::uint64_t file_bytes = 1ull << 30;

  // `pool` null: no file.
  explicit AnswerSpool(BlockingPool* pool) : pool_(pool) {}
  ~AnswerSpool();
  AnswerSpool(const AnswerSpool&) = delete;
  AnswerSpool& operator=(const AnswerSpool&) = delete;

  // Whoever fills it waits before the next put(): one piece beyond the limit is taken.
  bool full() const;
  // One put() and one take() at a time, which may overlap. `bytes` stays valid until put() returns.
  Task<void> put(std::span<const char> bytes);
  // How many bytes came, 0: none is there now.
  ResultTask<std::size_t> take(std::span<char> into);

 private:
  bool spilled() const { return written_ > read_; }
  Task<bool> spill(std::span<const char> bytes);

  BlockingPool* pool_;
  ByteBuffer first_;  // before what is in the file
  ByteBuffer last_;   // behind it: what the file did not take
  int file_ = -1;
  std::uint64_t written_ = 0, read_ = 0;  // offsets in the file
};

}  // namespace cairn

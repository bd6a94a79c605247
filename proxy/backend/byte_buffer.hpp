// Bytes that were read from a socket and not used yet.
// Errors: none; the reader bounds its size.
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>
#include <string_view>
#include <vector>

namespace cairn {

class ByteBuffer {
 public:
  std::string_view view() const { return {bytes_.data() + begin_, end_ - begin_}; }
  std::size_t size() const { return end_ - begin_; }
  bool empty() const { return begin_ == end_; }

  void consume(std::size_t count) {
    begin_ += count;
    if (begin_ == end_) begin_ = end_ = 0;
  }

  // Room for `count` more bytes; valid until the next call. commit() says how many were written.
  std::span<char> prepare(std::size_t count) {
    if (begin_ > 0) {
      std::copy(bytes_.begin() + static_cast<std::ptrdiff_t>(begin_), bytes_.begin() + static_cast<std::ptrdiff_t>(end_),
                bytes_.begin());
      end_ -= begin_;
      begin_ = 0;
    }
    if (bytes_.size() < end_ + count) bytes_.resize(end_ + count);
    return {bytes_.data() + end_, count};
  }
  void commit(std::size_t count) { end_ += count; }

 private:
  std::vector<char> bytes_;
  std::size_t begin_ = 0;
  std::size_t end_ = 0;
};

}  // namespace cairn

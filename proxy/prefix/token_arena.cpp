#include "prefix/token_arena.hpp"

#include <algorithm>
#include <stdexcept>

#include "base/populated_memory.hpp"

namespace cairn {

TokenArena::Offset TokenArena::allocate(TokenSpan tokens) {
  const Offset offset = reserve(static_cast<std::uint32_t>(tokens.size()));
  for_each_piece(offset, static_cast<std::uint32_t>(tokens.size()),
                 [&](Token* piece, std::uint32_t length, std::uint32_t done) {
                   std::copy_n(tokens.data() + done, length, piece);
                   return true;
                 });
  return offset;
}

TokenArena::Offset TokenArena::copy(Offset from, std::uint32_t count_tokens) {
  const Offset offset = reserve(count_tokens);
  for_each_piece(offset, count_tokens, [&](Token* piece, std::uint32_t length, std::uint32_t done) {
    read(from + done, length, piece);
    return true;
  });
  return offset;
}

void TokenArena::release(Offset offset, std::uint32_t count_tokens) {
  live_tokens_ -= count_tokens;
  for_each_piece(offset, count_tokens, [&](Token*, std::uint32_t length, std::uint32_t done) {
    live_[(offset + done) >> block_log2_] -= length;
    return true;
  });
  const std::size_t last = (std::uint64_t{offset} + count_tokens - 1) >> block_log2_;
  for (std::size_t block = offset >> block_log2_; block <= last; ++block) drop_if_empty(block);
}

std::uint32_t TokenArena::common_prefix(Offset offset, std::uint32_t count_tokens, TokenSpan tokens) const {
  const std::uint32_t limit = static_cast<std::uint32_t>(std::min<std::size_t>(count_tokens, tokens.size()));
  if ((offset & block_mask()) + std::uint64_t{limit} <= block_tokens()) {
    const Token* held = blocks_[offset >> block_log2_].get() + (offset & block_mask());
    return static_cast<std::uint32_t>(cairn::common_prefix({held, limit}, tokens.first(limit)));
  }
  std::uint32_t common = 0;
  for_each_piece(offset, limit, [&](const Token* piece, std::uint32_t length, std::uint32_t done) {
    const std::size_t same = cairn::common_prefix({piece, length}, tokens.subspan(done, length));
    common += static_cast<std::uint32_t>(same);
    return same == length;
  });
  return common;
}

void TokenArena::read(Offset offset, std::uint32_t count_tokens, Token* out) const {
  for_each_piece(offset, count_tokens, [&](const Token* piece, std::uint32_t length, std::uint32_t done) {
    std::copy_n(piece, length, out + done);
    return true;
  });
}

bool TokenArena::is_sparse(Offset offset, std::uint32_t count_tokens) const {
  const auto sparse = [&](std::uint64_t at) { return live_[at >> block_log2_] < block_tokens() - block_tokens() / 8; };
  return sparse(offset) || sparse(std::uint64_t{offset} + count_tokens - 1);  // those between are full
}

void TokenArena::start_fresh_block() {
  if ((next_ & block_mask()) == 0) return;
  const std::size_t left = next_ >> block_log2_;
  next_ = (left + 1) << block_log2_;  // reserve() looks elsewhere if that is taken
  drop_if_empty(left);
}

std::uint64_t TokenArena::bytes() const {
  return capacity_tokens() * sizeof(Token) + blocks_.capacity() * sizeof(blocks_[0]) +
         live_.capacity() * sizeof(live_[0]);
}

// Whether the block that `begin` lies in is at hand (or free, when begin is its start) and those after it are free.
bool TokenArena::fits_at(std::uint64_t begin, std::uint32_t count_tokens) const {
  std::uint64_t block = begin >> block_log2_;
  const std::uint64_t last = (begin + count_tokens - 1) >> block_log2_;
  if ((begin & block_mask()) != 0) ++block;
  for (; block <= last; ++block) {
    if (!is_free(block)) return false;
  }
  return true;
}

TokenArena::Offset TokenArena::reserve(std::uint32_t count_tokens) {
  const std::uint64_t limit = (std::uint64_t{1} << 32) >> block_log2_;
  if (!fits_at(next_, count_tokens) || ((next_ + count_tokens - 1) >> block_log2_) >= limit) {
    const std::uint64_t wanted = (std::uint64_t{count_tokens} + block_mask()) >> block_log2_;
    std::uint64_t begin = 0;
    for (std::uint64_t block = 0; block < begin + wanted && block < blocks_.size(); ++block) {
      if (!is_free(block)) begin = block + 1;
    }
    if (begin + wanted > limit) throw std::length_error("prefix tree: more than 2^32 tokens");
    const std::size_t left = next_ >> block_log2_;
    next_ = begin << block_log2_;
    drop_if_empty(left);
  }
  const Offset offset = static_cast<Offset>(next_);
  const std::uint64_t last = (next_ + count_tokens - 1) >> block_log2_;
  if (last >= blocks_.size()) {
    blocks_.resize(last + 1);
    live_.resize(last + 1, 0);
  }
  for (std::uint64_t block = next_ >> block_log2_; block <= last; ++block) {
    if (!blocks_[block]) {
      blocks_[block] = std::make_unique_for_overwrite<Token[]>(block_tokens());
      if (block_count_ > 0) populate(blocks_[block].get(), block_tokens() * sizeof(Token));  // a small tree may stay small
      ++block_count_;
    }
  }
  for_each_piece(offset, count_tokens, [&](Token*, std::uint32_t length, std::uint32_t done) {
    live_[(offset + done) >> block_log2_] += length;
    return true;
  });
  next_ += count_tokens;
  live_tokens_ += count_tokens;
  return offset;
}

void TokenArena::drop_if_empty(std::size_t block) {
  if (is_free(block) || live_[block] != 0) return;
  if ((next_ >> block_log2_) == block && (next_ & block_mask()) != 0) next_ = std::uint64_t{block} << block_log2_;
  blocks_[block].reset();
  --block_count_;
}

}  // namespace cairn

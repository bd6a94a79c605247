// TokenArena: append-mostly storage for the tree's edge tokens, 4 bytes a token, in equal blocks.
// Thread: one at a time; const calls may run side by side.
// Errors: allocate() throws std::length_error past 2^32 tokens of address space; the rest cannot fail.
//
// Offsets run on from block to block, so an edge may lie across a block border and no tail is wasted. A block whose
// last token is released is given back at once; half-empty ones are emptied by PrefixTree's compaction.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "prefix/tokens.hpp"

namespace cairn {

class TokenArena {
 public:
  using Offset = std::uint32_t;  // in tokens

  // Blocks hold 2^block_log2 tokens.
  explicit TokenArena(unsigned block_log2 = 16) : block_log2_(block_log2) {}

  // Stores a copy of the tokens (at least one) and says where.
  Offset allocate(TokenSpan tokens);

  // The same for tokens that the arena holds already.
  Offset copy(Offset from, std::uint32_t count_tokens);

  void release(Offset offset, std::uint32_t count_tokens);

  Token at(Offset offset) const { return blocks_[offset >> block_log2_][offset & block_mask()]; }

  // Says that the tokens from here on may be wanted soon; any number will do.
  template <std::size_t kLines = 4>
  void prefetch(std::uint64_t offset) const {
    const std::uint64_t inside = offset & block_mask();
    if (is_free(offset >> block_log2_) || inside + 16 * kLines > block_tokens()) return;
    const Token* tokens = blocks_[offset >> block_log2_].get() + inside;
    for (std::size_t line = 0; line < kLines; ++line) __builtin_prefetch(tokens + 16 * line);
  }

  // Number of leading tokens that [offset, offset + count) and `tokens` have in common.
  std::uint32_t common_prefix(Offset offset, std::uint32_t count_tokens, TokenSpan tokens) const;

  // Writes [offset, offset + count) to `out`.
  void read(Offset offset, std::uint32_t count_tokens, Token* out) const;

  // True when the range touches a block that is worth emptying (under 7/8 in use).
  bool is_sparse(Offset offset, std::uint32_t count_tokens) const;

  // Lets the next allocation begin in a block of its own, so that compaction never fills what it empties.
  void start_fresh_block();

  std::uint64_t live_tokens() const { return live_tokens_; }
  std::uint64_t capacity_tokens() const { return std::uint64_t{block_count_} << block_log2_; }
  std::uint32_t block_tokens() const { return std::uint32_t{1} << block_log2_; }
  std::uint64_t bytes() const;

 private:
  std::uint32_t block_mask() const { return block_tokens() - 1; }
  Offset reserve(std::uint32_t count_tokens);
  bool fits_at(std::uint64_t begin, std::uint32_t count_tokens) const;
  bool is_free(std::uint64_t block) const { return block >= blocks_.size() || !blocks_[block]; }
  void drop_if_empty(std::size_t block);

  // Calls fn(pointer, length, done) for each piece of the range that lies in one block; stops when it returns false.
  template <class Fn>
  void for_each_piece(Offset offset, std::uint32_t count_tokens, Fn fn) const {
    for (std::uint32_t done = 0; done < count_tokens;) {
      const std::uint32_t at = offset + done;
      const std::uint32_t inside = at & block_mask();
      const std::uint32_t room = block_tokens() - inside;
      const std::uint32_t length = room < count_tokens - done ? room : count_tokens - done;
      if (!fn(blocks_[at >> block_log2_].get() + inside, length, done)) return;
      done += length;
    }
  }

  unsigned block_log2_;
  std::vector<std::unique_ptr<Token[]>> blocks_;  // null: free to be used again
  std::vector<std::uint32_t> live_;               // tokens in use, a block
  std::uint64_t next_ = 0;                        // where the next allocation begins if it fits there
  std::uint64_t live_tokens_ = 0;
  std::uint32_t block_count_ = 0;
};

}  // namespace cairn

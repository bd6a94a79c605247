// Text to tokens through the backend's tokenizer, without paying for the whole of a conversation that grew at its end.
// Thread: the I/O thread. Owner: one backend. Errors: those of LlamaApi::tokenize.
#pragma once

#include <cstdint>
#include <list>
#include <string>
#include <string_view>
#include <vector>

#include "base/cancel.hpp"
#include "base/task.hpp"
#include "prefix/tokens.hpp"

namespace cairn {

class LlamaApi;

class TokenMemo {
 public:
  TokenMemo(LlamaApi& api, std::size_t max_bytes) : api_(api), max_bytes_(max_bytes) {}

  // The tokens of `text`, with the tokenizer's own begin token when `add_special`.
  // A text that shares a long beginning with a remembered one is tokenized from some tokens before the point where they
  // part: tokenizers decide locally, so the new tokens fall in step with the old ones within a few; where they do not,
  // the whole text is tokenized.
  // Without `parse_special` what looks like one of the model's own tokens is text.
  ResultTask<Tokens> tokenize(const std::string& text, bool add_special, CancelSource& cancel, bool parse_special = true);

  // How many of the last tokens of a text just tokenized reach into its last `bytes`; 0 when that is not known.
  std::size_t tokens_in_tail(std::string_view text, std::size_t bytes) const;

  // The backend counted another number of tokens than we did: nothing remembered is trusted any more.
  void distrust();
  // Another backend: nothing is remembered, and its tokenizer is trusted again.
  void reset();

  std::uint64_t whole_texts() const { return whole_texts_; }
  std::uint64_t tails() const { return tails_; }
  std::uint64_t repeats() const { return repeats_; }

 private:
  struct Entry {
    std::string text;
    bool add_special = false;
    bool parse_special = true;
    Tokens tokens;
    std::vector<std::uint32_t> ends;  // ends[i]: bytes of text covered by tokens[0..i]; empty: not splittable
    std::size_t bytes() const { return text.size() + 8 * tokens.size() + sizeof(Entry); }
  };
  using Entries = std::list<Entry>;

  struct Split {
    bool found = false;
    Entries::const_iterator entry;
    std::size_t keep_tokens = 0;   // of the entry
    std::size_t probe_tokens = 0;  // the last of them, tokenized again to see that they come out the same
    std::size_t from_byte = 0;     // where the new tokenization begins
  };
  Split best_split(std::string_view text, bool add_special, bool parse_special) const;
  void remember(Entry entry, std::uint64_t era);
  void clear();

  LlamaApi& api_;
  std::size_t max_bytes_;
  std::size_t bytes_ = 0;
  Entries entries_;  // most recently used first
  std::uint64_t era_ = 0;  // what was asked for in an earlier one may be another tokenizer's
  bool trusted_ = true;
  int failed_splits_ = 0;  // in a row
  std::uint64_t whole_texts_ = 0;
  std::uint64_t tails_ = 0;
  std::uint64_t repeats_ = 0;
};

}  // namespace cairn

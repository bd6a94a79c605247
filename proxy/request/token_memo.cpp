#include "request/token_memo.hpp"

#include <algorithm>
#include <utility>

#include "backend/llama_api.hpp"

namespace cairn {

namespace {
// Tokens tokenized again before the point where two texts part, to fall in step: far more than any pre-tokenizer looks ahead.
constexpr std::size_t overlap_tokens = 48;
// Below this many bytes a whole tokenization is as cheap as thinking about it.
constexpr std::size_t worth_splitting_bytes = 4096;

// A tokenizer that puts a space before every text never falls in step: after this many tries in vain it is left alone.
constexpr int most_failed_splits = 3;

bool is_continuation_byte(char c) { return (static_cast<unsigned char>(c) & 0xC0) == 0x80; }
}  // namespace

TokenMemo::Split TokenMemo::best_split(std::string_view text, bool add_special, bool parse_special) const {
  Split best;
  if (!trusted_ || failed_splits_ >= most_failed_splits || text.size() < worth_splitting_bytes) return best;
  std::size_t best_common = 0;
  for (auto entry = entries_.begin(); entry != entries_.end(); ++entry) {
    if (entry->add_special != add_special || entry->parse_special != parse_special || entry->ends.empty()) continue;
    const std::size_t limit = std::min(text.size(), entry->text.size());
    const auto parted = std::mismatch(text.begin(), text.begin() + static_cast<std::ptrdiff_t>(limit), entry->text.begin());
    const auto common = static_cast<std::size_t>(parted.first - text.begin());
    if (common > best_common) {
      best_common = common;
      best.entry = entry;
    }
  }
  if (best_common < worth_splitting_bytes / 2) return best;
  const std::vector<std::uint32_t>& ends = best.entry->ends;
  // Tokens that lie wholly in the common text; the last few may have come out otherwise with another continuation.
  const auto past = std::upper_bound(ends.begin(), ends.end(), static_cast<std::uint32_t>(best_common));
  auto inside = static_cast<std::size_t>(past - ends.begin());
  if (inside < 3 * overlap_tokens) return best;
  std::size_t keep = inside - overlap_tokens;
  std::size_t from = keep - overlap_tokens;
  // Begin at a character's first byte.
  while (from > 1 && is_continuation_byte(text[ends[from - 1]])) --from;
  if (from <= 1) return best;
  best.keep_tokens = keep;
  best.probe_tokens = keep - from;
  best.from_byte = ends[from - 1];
  best.found = true;
  return best;
}

ResultTask<Tokens> TokenMemo::tokenize(const std::string& text, bool add_special, CancelSource& cancel, bool parse_special) {
  for (auto entry = entries_.begin(); entry != entries_.end(); ++entry) {
    if (entry->add_special == add_special && entry->parse_special == parse_special && entry->text == text) {
      entries_.splice(entries_.begin(), entries_, entry);
      ++repeats_;
      co_return entries_.front().tokens;
    }
  }

  const std::uint64_t era = era_;
  const Split split = best_split(text, add_special, parse_special);
  if (split.found) {
    // The entry may be forgotten while we wait: copy what is kept.
    Entry grown;
    grown.add_special = add_special;
    grown.parse_special = parse_special;
    grown.text = text;
    const Entry& old = *split.entry;
    grown.tokens.assign(old.tokens.begin(), old.tokens.begin() + static_cast<std::ptrdiff_t>(split.keep_tokens));
    grown.ends.assign(old.ends.begin(), old.ends.begin() + static_cast<std::ptrdiff_t>(split.keep_tokens));
    const std::string_view tail_text = std::string_view{text}.substr(split.from_byte);
    Result<TokenPieces> tail = co_await api_.tokenize(tail_text, false, cancel, parse_special);
    if (!tail) co_return tail.error();
    // In step: from some token of the probe on, new and old agree to the end of the probe.
    std::size_t byte = split.from_byte;
    std::size_t i = 0;
    bool in_step = false;
    while (i < tail->tokens.size() && byte < grown.ends.back()) {
      byte += tail->piece_bytes[i++];
      if (byte == grown.ends.back()) in_step = true;
    }
    constexpr std::size_t must_agree = 8;
    if (in_step && i >= must_agree && split.probe_tokens >= must_agree) {
      for (std::size_t back = 1; back <= must_agree && in_step; ++back) {
        in_step = tail->tokens[i - back] == grown.tokens[split.keep_tokens - back];
      }
    } else {
      in_step = false;
    }
    if (in_step) {
      for (; i < tail->tokens.size(); ++i) {
        byte += tail->piece_bytes[i];
        grown.tokens.push_back(tail->tokens[i]);
        grown.ends.push_back(static_cast<std::uint32_t>(byte));
      }
      if (byte == text.size()) {
        ++tails_;
        failed_splits_ = 0;
        Tokens tokens = grown.tokens;
        remember(std::move(grown), era);
        co_return tokens;
      }
    }
  }

  if (split.found) ++failed_splits_;
  Result<TokenPieces> whole = co_await api_.tokenize(text, add_special, cancel, parse_special);
  if (!whole) co_return whole.error();
  ++whole_texts_;
  Entry entry;
  entry.text = text;
  entry.add_special = add_special;
  entry.parse_special = parse_special;
  entry.tokens = whole->tokens;
  entry.ends.reserve(whole->tokens.size());
  std::size_t byte = 0;
  // A begin token that the tokenizer added stands for no text, but has a piece.
  std::size_t total = 0;
  for (const std::uint32_t length : whole->piece_bytes) total += length;
  std::size_t skip = 0;
  if (add_special && !whole->piece_bytes.empty() && total == text.size() + whole->piece_bytes.front()) skip = 1;
  for (std::size_t i = 0; i < whole->piece_bytes.size(); ++i) {
    if (i >= skip) byte += whole->piece_bytes[i];
    entry.ends.push_back(static_cast<std::uint32_t>(byte));
  }
  if (byte != text.size()) entry.ends.clear();  // normalised text: cannot be split
  remember(std::move(entry), era);
  co_return std::move(whole->tokens);
}

std::size_t TokenMemo::tokens_in_tail(std::string_view text, std::size_t bytes) const {
  for (const Entry& entry : entries_) {
    if (entry.text.size() != text.size() || entry.text != text || entry.ends.empty()) continue;
    const auto cut = static_cast<std::uint32_t>(text.size() - bytes);
    const auto past = std::upper_bound(entry.ends.begin(), entry.ends.end(), cut);
    return static_cast<std::size_t>(entry.ends.end() - past);
  }
  return 0;
}

void TokenMemo::remember(Entry entry, std::uint64_t era) {
  if (era != era_ || entry.bytes() > max_bytes_) return;
  bytes_ += entry.bytes();
  entries_.push_front(std::move(entry));
  while (bytes_ > max_bytes_) {
    bytes_ -= entries_.back().bytes();
    entries_.pop_back();
  }
}

void TokenMemo::distrust() {
  trusted_ = false;
  clear();
}

void TokenMemo::reset() {
  trusted_ = true;
  failed_splits_ = 0;
  clear();
}

void TokenMemo::clear() {
  ++era_;
  entries_.clear();
  bytes_ = 0;
}

}  // namespace cairn

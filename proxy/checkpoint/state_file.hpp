// Reads what a llama-server slot file says about itself: version, tokens, context checkpoints, side files, checksum.
// Thread: any pool thread. Reads only.
// Errors: source disk; corrupt (not such a file, truncated, counts that cannot be), else those of FileLayer.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.hpp"
#include "checkpoint/file_layer.hpp"
#include "checkpoint/record.hpp"
#include "prefix/tokens.hpp"

namespace cairn {

// llama.cpp: LLAMA_STATE_SEQ_MAGIC "ggsq"; versions seen are 2 (June 2026) and 4 (build 11669).
inline constexpr std::uint32_t state_file_magic = 0x67677371;
// Written next to NAME by some builds and forks: part of the state.
inline constexpr std::array<std::string_view, 2> side_file_suffixes{".ckpt", ".checkpoints"};

struct StateHeader {
  std::uint32_t version = 0;
  Tokens tokens;
  bool has_media = false;                // images or audio among the tokens: they do not say all that the state holds
  std::uint64_t state_offset_bytes = 0;  // where the tokens end and the memory begins
  std::uint64_t file_bytes = 0;
};

// Versions 1-3: magic, version, count, count ids. From version 4 the words are packed: -1, 1 (the packing's version), n,
// n ids, then one word 0, or what describes media (measured on build 11669).
// Never allocates more than the file could hold, nor more than 2^26 ids. unsupported: a packing not known here.
Result<StateHeader> read_state_header(ReadableFile& file);
Result<StateHeader> read_state_header(FileLayer& files, const std::string& path);

// The state and those of its side files that exist, in a fixed order. not_found when the state itself is missing;
// corrupt when one of them is not a regular file.
Result<std::vector<FileStamp>> stamp_state_files(FileLayer& files, const std::string& path);
// Same suffixes and sizes.
bool same_sizes(const std::vector<FileStamp>& a, const std::vector<FileStamp>& b);

// Random bytes give one in four billion.
inline constexpr std::size_t max_appendix_candidates = 64;
// How much of a file is in memory at a time: stays in a core's cache. Any other number but 0 finds the same.
inline constexpr std::size_t scan_piece_bytes = 1u << 18;

struct StateScan {
  Checksum checksum;
  std::uint64_t bytes = 0;
  double seconds = 0;
  std::vector<std::uint64_t> appendix_candidates;  // offsets of the appendix's magic in the state itself, `max_appendix_candidates` at most
};

// XXH3-128 over path + suffix of each stamp in turn, streamed in pieces, each preceded by its suffix and size; corrupt when a
// file's size is not its stamp's. On the way it notes where an appendix of context checkpoints could begin, if asked to
// (that makes it about three times slower: 2.8 GB/s instead of 8 from the page cache). `so_far`: bytes read are added to it.
Result<StateScan> scan_state_files(FileLayer& files, const std::string& path, const std::vector<FileStamp>& stamps,
                                   bool look_for_appendix, std::atomic<std::uint64_t>* so_far = nullptr,
                                   std::size_t piece_bytes = scan_piece_bytes);

// The same while every file is copied to `to` + its suffix, names that must be free. Nothing is synced.
Result<StateScan> copy_state_files(FileLayer& files, const std::string& path, const std::vector<FileStamp>& stamps,
                                   const std::string& to);

// The context checkpoints that llama-server appended to the file; none when there are none. Format, from llama.cpp's pull request 26004 and checked on files of build 11669:
//   "SCKP", u32 version 1, u32 count, then each: i64 n_tokens, i32 pos_min, i32 pos_max, three blobs (u64 size, bytes).
// Where it begins is written nowhere: a candidate counts when its records end exactly where the file ends.
Result<ContextCheckpoints> read_context_checkpoints(ReadableFile& file, const StateHeader& header, const std::vector<std::uint64_t>& candidates);
// The same with its own pass over the file.
Result<ContextCheckpoints> read_context_checkpoints(FileLayer& files, const std::string& path, std::size_t piece_bytes = scan_piece_bytes);

}  // namespace cairn

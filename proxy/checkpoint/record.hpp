// What is remembered of a saved state (a checkpoint) and of the model behaviour that it belongs to (a namespace).
// Thread: plain values.
#pragma once

#include <cstdint>
#include <memory_resource>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "plan/memory_kind.hpp"

namespace cairn {

// Row numbers of the index, never used twice. Strong types: one cannot be passed for the other.
enum class CheckpointId : std::int64_t {};
enum class NamespaceId : std::int64_t {};

// A file's kind is what it is good for; a backend's what it can do now. The same words.
using CheckpointKind = MemoryKind;

// The server's own checkpoints that it appended to a saved file.
struct ContextCheckpoints {
  std::vector<std::uint32_t> positions;  // prefix lengths (`n_tokens`), ascending, each once
  std::uint32_t count = 0;
  std::uint64_t bytes = 0;               // of all of them
};

// Enough of a file's stat to notice that it is not the file that was committed.
struct FileStamp {
  std::string suffix;  // "" for the state itself, ".ckpt" or ".checkpoints" for a side file
  std::uint64_t bytes = 0;
  std::uint64_t inode = 0;
  std::int64_t mtime_ns = 0;  // since the epoch
  std::int64_t ctime_ns = 0;  // not kept across restarts: rename and backup tools change it
};

struct Checksum {  // XXH3-128
  std::uint64_t low = 0;
  std::uint64_t high = 0;
  friend bool operator==(const Checksum&, const Checksum&) = default;
};

// What decides whether it is kept.
struct CheckpointFacts {
  CheckpointId id{};
  std::uint32_t token_count = 0;
  CheckpointKind kind = CheckpointKind::unknown;
  std::uint64_t bytes = 0;  // side files included
  double cost_to_recompute_s = 0;
  std::uint64_t uses = 0;
  std::int64_t last_used_unix_ms = 0;
};

struct CheckpointRecord : CheckpointFacts {
  NamespaceId namespace_id{};
  std::string file_name;  // plain name in the slot directory: what the backend is told to restore
  std::vector<std::uint32_t> resume_positions;  // prefix lengths, ascending; without the end itself
  std::int64_t created_unix_ms = 0;
  bool pinned = false;
  std::string pin_label;
  Checksum checksum;             // over the files in the order of `files`
  std::vector<FileStamp> files;  // the state first, then its side files
  // Where it lies, at least one of them. Not in the index: start-up looks.
  bool in_slots = true;   // in the slot directory, from where the backend restores it
  bool on_disk = false;   // in the disk directory, where there are tiers
};

// A checkpoint as the store holds it.
struct CheckpointEntry {
  CheckpointRecord record;
  bool dirty = false;                  // differs from the index
  std::vector<FileStamp> verified_as;  // empty: not yet verified by this process
  std::int64_t uncopied_since_unix_ms = 0;  // it, or what it took the place of, has waited since for a copy on disk
  std::optional<std::int64_t> copy_declined_unix_ms;  // what it would have driven off the disk was worth more
};
using CheckpointEntries = std::pmr::unordered_map<CheckpointId, CheckpointEntry>;

// One behaviour of one model. Who decides whether a backend is the same one compares `identity` and `probe`.
struct NamespaceRecord {
  NamespaceId id{};
  std::string identity;  // JSON: LoRA state, meta of /v1/models, tenant, …
  std::string probe;     // bytes: log-probabilities of the fixed prompt, in the caller's format
  std::string facts;     // JSON: belief about the memory kind and whatever else is known of it
  std::int64_t created_unix_ms = 0;
  std::int64_t last_seen_unix_ms = 0;
};

}  // namespace cairn

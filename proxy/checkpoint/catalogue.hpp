// Which saved states share a prefix with a prompt: the store's checkpoints as marks in one prefix tree a namespace.
// Thread: the I/O thread. Owner: main, beside the store.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "checkpoint/store.hpp"
#include "plan/end_offsets.hpp"
#include "plan/memory_kind.hpp"
#include "prefix/prefix_tree.hpp"

namespace cairn {

class Catalogue {
 public:
  // Takes over the store's removal callback.
  Catalogue(CheckpointStore& store, std::uint64_t max_tree_tokens);

  // Rebuilds the trees from the index.
  ResultTask<std::size_t> load();

  struct Known {
    std::uint32_t matched_tokens = 0;  // of the prompt, known before
    std::uint32_t branch_tokens = 0;   // where it left a known path; 0: it did not
  };
  // Makes the prompt known, and learns where it left the one before.
  Known learn(NamespaceId name_space, TokenSpan prompt, std::int64_t now_ms);

  // Where next prompts of this namespace leave the one before.
  const EndOffsets& end_offsets(NamespaceId name_space) { return recent_[name_space].offsets; }

  struct Candidate {
    CheckpointId checkpoint{};
    std::uint32_t usable_tokens = 0;
    std::uint64_t bytes = 0;
  };
  // Saved states that spare the most of the prompt, best first, at most `count`; states of equal use by fewest bytes.
  // `kind` is what the backend can do now: it may be less than a file offers.
  std::vector<Candidate> candidates(NamespaceId name_space, TokenSpan prompt, MemoryKind kind, std::size_t count) const;

  // A checkpoint was committed with these tokens. Returns those that it makes useless: same branch, nothing that it
  // does not offer as well.
  std::vector<CheckpointId> add(CheckpointId id, TokenSpan tokens, std::int64_t now_ms);

  // A saved state can be resumed exactly at the end of `tokens`.
  bool has_state_at(NamespaceId name_space, TokenSpan tokens) const;

  // What the checkpoint holds; empty when it is not known.
  Tokens tokens_of(CheckpointId id) const;

  struct Totals {
    std::size_t nodes = 0;
    std::uint64_t tokens = 0;
    std::uint64_t bytes = 0;
  };
  Totals totals() const;
  const PrefixTree* tree(NamespaceId name_space) const;

 private:
  void attach(const CheckpointRecord& record, TokenSpan tokens, std::int64_t now_ms);
  void detach(const CheckpointRecord& record);

  struct Place {
    NamespaceId name_space{};
    NodeId leaf = PrefixTree::kNone;
    std::vector<std::uint32_t> positions;  // marks set, the end last
  };
  // The latest prompts of a namespace: where they end in its tree.
  struct Recent {
    struct Prompt {
      NodeId leaf = PrefixTree::kNone;
      std::uint32_t tokens = 0;
    };
    std::deque<Prompt> prompts;  // newest first
    EndOffsets offsets;
  };
  void learn_offset(const PrefixTree& tree, Recent& recent, const PrefixTree::InsertResult& inserted, std::uint32_t tokens) const;

  CheckpointStore& store_;
  std::uint64_t max_tree_tokens_;
  std::map<NamespaceId, std::unique_ptr<PrefixTree>> trees_;
  std::map<CheckpointId, Place> places_;
  std::map<NamespaceId, Recent> recent_;
};

}  // namespace cairn

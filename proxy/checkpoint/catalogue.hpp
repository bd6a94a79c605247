// Which saved states share a prefix with a prompt: the store's checkpoints as marks in one prefix tree a namespace.
// Thread: the I/O thread. Owner: main, beside the store.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <memory_resource>
#include <unordered_map>
#include <vector>

#include "base/populated_memory.hpp"
#include "checkpoint/evicted_states.hpp"
#include "checkpoint/state_values.hpp"
#include "checkpoint/store.hpp"
#include "plan/end_offsets.hpp"
#include "plan/leaving_marks.hpp"
#include "plan/memory_kind.hpp"
#include "plan/message_starts.hpp"
#include "prefix/prefix_tree.hpp"

namespace cairn {

class Catalogue {
 public:
  // Takes over the store's callbacks for removals and worth.
  Catalogue(CheckpointStore& store, std::uint64_t max_tree_tokens);

  // Rebuilds the trees from the index.
  ResultTask<std::size_t> load();

  struct Known {
    std::uint32_t matched_tokens = 0;  // of the prompt, known before
    std::uint32_t branch_tokens = 0;   // where it left a known path; 0: it did not
    bool shares = false;               // a good part of it was known
    bool continues = false;            // it went on from an earlier prompt, or from a little before its end
    Tokens other;                      // how the latest known prompt went on there
    // Where a later prompt is likely to leave this one: as earlier ones were left, and where its last message begins.
    LeavingPlace mark;
    LeavingPlace message;
  };
  // Makes the prompt known, and learns where it left the one before. `last_message`: tokens in front of its last message; 0: unknown.
  Known learn(NamespaceId name_space, TokenSpan prompt, std::int64_t now_ms, std::uint32_t last_message = 0);
  // That prompt was answered with so many tokens: long answers are gone on from more seldom, or more often.
  void answered(NamespaceId name_space, TokenSpan prompt, std::uint32_t answer_tokens);

  // Where next prompts of this namespace leave the one before.
  const EndOffsets& end_offsets(NamespaceId name_space) { return recent_of(name_space).offsets; }
  // Writes what was learned of this namespace's prompts (ends, return times) into the store's settings; the next process begins with it.
  ResultTask<void> keep_learned(NamespaceId name_space);

  struct Candidate {
    CheckpointId checkpoint{};
    std::uint32_t usable_tokens = 0;
    std::uint64_t bytes = 0;
  };
  // Saved states that spare the most of the prompt, best first, at most `count`; states of equal use by fewest bytes.
  // `kind` is what the backend can do now: it may be less than a file offers. Of at most `longest` tokens: what a slot has room for.
  std::vector<Candidate> candidates(NamespaceId name_space, TokenSpan prompt, MemoryKind kind, std::size_t count,
                                    std::uint32_t longest = std::numeric_limits<std::uint32_t>::max()) const;

  // A checkpoint was committed with these tokens. Returns those that it makes useless: same branch, nothing that it
  // does not offer as well but an answer that the conversation has left.
  std::vector<CheckpointId> add(CheckpointId id, TokenSpan tokens, std::int64_t now_ms);

  // A state that is about to be saved, in the tree while this lives, so that what it drives out is judged beside it.
  class [[nodiscard]] Incoming {
   public:
    // `state`: its namespace, tokens, kind, resume positions, bytes and cost; the id is given here.
    Incoming(Catalogue& catalogue, CheckpointRecord state, TokenSpan tokens, std::int64_t now_ms);
    Incoming(const Incoming&) = delete;
    Incoming& operator=(const Incoming&) = delete;
    ~Incoming();
    // False: it would drive out what is worth more.
    bool worth_saving() const { return catalogue_.store_.worth_saving(state_); }
    // The same, and of the floor of free disk as well.
    Task<bool> worth_its_room() const { return catalogue_.store_.worth_its_room(state_); }

   private:
    Catalogue& catalogue_;
    CheckpointRecord state_;
  };

  // A saved state can be resumed exactly at the end of `tokens`.
  bool has_state_at(NamespaceId name_space, TokenSpan tokens) const;

  std::uint64_t removals() const { return removals_; }  // of states, since we started, that nobody asked for
  // A state that was evicted would have spared more than `beyond` tokens of the prompt.
  bool evicted_beyond(NamespaceId name_space, TokenSpan prompt, std::uint32_t beyond) const {
    return evicted_.would_have_served(name_space, prompt, beyond);
  }

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
  enum MarkKind : std::uint32_t { inside = 0, end = 1 };
  // Rows of the index are numbered from 1 and never reused; 2^32 checkpoints are out of reach.
  static std::uint32_t mark_of(CheckpointId id) { return static_cast<std::uint32_t>(static_cast<std::int64_t>(id)); }
  static CheckpointId id_of(std::uint32_t mark) { return static_cast<CheckpointId>(static_cast<std::int64_t>(mark)); }
  void add_those_with_answers_left(const CheckpointRecord& record, std::vector<CheckpointId>& useless) const;
  void set_apart(const CheckpointRecord& record);
  void take_back(const CheckpointRecord& record);
  void attach(const CheckpointRecord& record, TokenSpan tokens, std::int64_t now_ms);
  void detach(const CheckpointRecord& record);
  StateWorth worth(const CheckpointRecord& record) const;
  void remember_evicted(const CheckpointRecord& record);

  std::uint64_t removals_ = 0;
  struct Place {
    NamespaceId name_space{};
    NodeId leaf = PrefixTree::kNone;
    std::vector<std::uint32_t> positions;  // marks set, the end last
    bool set_apart = false;                // it waits for its successor's copy: no marks, and its leaf is pinned
  };
  // The latest prompts of a namespace: where they end in its tree.
  struct Recent {
    struct Prompt {
      NodeId leaf = PrefixTree::kNone;
      std::uint32_t tokens = 0;
      std::uint32_t last_message = 0;  // tokens in front of it; 0: unknown, known before, or another prompt has left it there
      static constexpr std::size_t kept_ending = 33;  // tokens: what opens an answer, and one more
      Tokens ending;
      std::int64_t at_ms = 0;
    };
    std::deque<Prompt> prompts;  // newest first
    EndOffsets offsets;
    LeavingMarks marks;
    MessageStarts messages;
    bool changed = false;        // since they were kept
  };
  Recent& recent_of(NamespaceId name_space);
  StateValues& values_of(NamespaceId name_space);
  // True when it went on from one of the latest prompts.
  static bool learn_offset(const PrefixTree& tree, Recent& recent, const PrefixTree::InsertResult& inserted, std::uint32_t tokens);
  // Whether it left one of them where that one's last message begins.
  static void learn_message(const PrefixTree& tree, Recent& recent, const PrefixTree::InsertResult& inserted);

  CheckpointStore& store_;
  std::uint64_t max_tree_tokens_;
  std::map<NamespaceId, std::unique_ptr<PrefixTree>> trees_;
  std::pmr::unsynchronized_pool_resource place_memory_{{.max_blocks_per_chunk = 4096}, &populated_memory()};
  std::pmr::unordered_map<CheckpointId, Place> places_{&place_memory_};
  std::map<NamespaceId, Recent> recent_;
  std::uint32_t incoming_ = 0;  // states on their way in, ever
  EvictedStates evicted_;
  std::map<NamespaceId, StateValues> values_;
};

}  // namespace cairn

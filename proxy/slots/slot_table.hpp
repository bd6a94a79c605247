// What we believe each slot of a backend holds. The backend's word (an answer's cache_n, GET /slots) always wins.
// Thread: the I/O thread. Owner: one backend.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "plan/memory_kind.hpp"
#include "plan/stops.hpp"
#include "prefix/tokens.hpp"

namespace cairn {

struct SlotState {
  int id = 0;
  bool leased = false;
  bool running = false;         // a task of ours has been sent to it and has not ended
  bool upkeep = false;          // leased for being saved, not for a request
  std::shared_ptr<const Tokens> target;  // the prompt of the request that has leased it
  bool in_pieces = false;       // it is computed in pieces: more stops can still be asked for,
  std::uint32_t piece_end = 0;  // beyond this one
  std::chrono::steady_clock::time_point leased_at{};
  std::vector<Stop> wanted_stops;  // of `target`, ascending, asked for by requests that wait for a state there
  bool chosen_for_us = false;   // the backend chose the slot of the task whose end is believed to be here
  bool other_weights = false;   // what it holds to the backend may come from a request with adapters of its own
  bool taken = false;           // a request whose slot the backend chose was seen to run there
  bool doubtful = false;        // the backend may have cleared it since: believed only when it has been saved
  Tokens known;                 // ids of its first tokens
  std::chrono::steady_clock::time_point attempted_at{};
  std::shared_ptr<const Tokens> attempted;  // the prompt of a task that was broken off: how much of it is there, GET /slots tells
  std::uint32_t held_before = 0;            // by the slot, before that task: tokens
  bool unresolved = false;      // nor was it known what an earlier one had left: the length tells nothing
  bool by_length = false;       // `known` is what some task left, judged by its length alone
  std::uint32_t unknown_tail = 0;  // tokens after them whose ids we do not know (a generated answer)
  bool tail_counted = false;       // the backend has said how many: a slot that holds many more holds another prompt
  std::vector<std::uint32_t> resume_points;  // ascending; context checkpoints believed to be inside
  std::uint32_t pieces_since_save = 0;  // computed into it, each of which leaves context checkpoints
  bool proven = false;          // an earlier prompt was gone on from to it
  double return_chance = 0.5;   // that its content is asked for again
  bool unsaved = false;         // differs from every saved state, and is worth saving
  int saves = 0;                // of it under way, the disk's part included, during which it may be used
  std::uint64_t content = 0;    // counts how often another one began to take its place
  std::uint32_t recoverable = 0;  // tokens of it that saved states could bring back
  std::uint64_t last_used = 0;
  std::int64_t name_space = 0;  // whose tokens these are; a request of another namespace sees an empty slot

  std::uint32_t held() const { return static_cast<std::uint32_t>(known.size()) + unknown_tail; }
  StateView view() const {
    return StateView{static_cast<std::uint32_t>(known.size()), unknown_tail == 0, resume_points};
  }
};

class SlotTable {
 public:
  static constexpr int most_slots = 1024;  // further ones of the backend are left alone

  explicit SlotTable(int count = 0);

  // Another process of the backend, perhaps with another number of slots: all beliefs are gone. A SlotState that somebody
  // holds a reference to stays where it is.
  void reset(int count);

  std::span<SlotState> slots() { return {slots_.data(), count_}; }
  std::span<const SlotState> slots() const { return {slots_.data(), count_}; }
  SlotState& at(int id) { return slots_.at(static_cast<std::size_t>(id)); }
  const SlotState& at(int id) const { return slots_.at(static_cast<std::size_t>(id)); }

  // A task with this prompt was broken off there: the slot keeps the part that was computed (build 11669), and GET /slots tells how much.
  void note_attempt(int id, TokenSpan prompt, std::uint32_t held_before);
  // What a task left whose slot the backend chose: which slot that was, GET /slots tells.
  struct Placed {
    Tokens known;
    std::uint32_t unknown_tail = 0;
    std::vector<std::uint32_t> resume_points;
    bool proven = false;
    double return_chance = 0.5;
    std::int64_t name_space = 0;
  };
  void note_placed(Placed content) { placed_.push_back(std::move(content)); }
  bool looks_for_placed() const { return !placed_.empty(); }
  bool was_placed(TokenSpan prompt) const;  // is being looked for
  // The slot was leased again before that was asked, and holds so many tokens: true when they are what was placed, which is believed now.
  bool believe_placed(int id, std::int64_t tokens);
  // Other tasks have begun since: it may have been overwritten, or cleared.
  void forget_placed() { placed_.clear(); }

  // The slot holds nothing we know of.
  void forget(int id);
  void forget_all();
  // GET /slots says the slot holds `n` tokens (nullopt: it has processed nothing since the backend started). Believed over what we remember.
  // True when our belief was wrong.
  bool believe_length(int id, std::optional<std::int64_t> n, bool processing = false);
  struct Length {
    int id = 0;
    std::optional<std::int64_t> tokens;
    bool processing = false;  // there may be more of them soon
  };
  // The same for all that were listed. A task whose slot the backend chose may have run elsewhere: where another slot holds just as
  // many tokens as that task left, unlike before, the belief moves there. Returns the slots where what was placed has been found. What
  // may be in a slot that is leased, and in which nothing runs yet, is looked for again.
  std::vector<int> believe_lengths(std::span<const Length> lengths);
  void touch(int id) { at(id).last_used = ++clock_; }

 private:
  bool holds(int id, const Placed& placed, std::optional<std::int64_t> tokens) const;
  void put_placed(int id, Placed placed);

  std::vector<SlotState> slots_;  // never reallocated, never shrunk
  std::vector<Placed> placed_;
  std::size_t count_ = 0;
  std::uint64_t clock_ = 0;
};

// Resume points that computing tokens (from, to] in one piece adds, as llama-server places its context checkpoints: at the
// end - 4 and the end - (4 + ubatch), once 64 tokens are there (measured on build 11669). Keeps the list ascending.
void add_piece_resume_points(std::vector<std::uint32_t>& points, std::uint32_t from, std::uint32_t to, std::uint32_t ubatch);
// The backend keeps so many (--ctx-checkpoints 32); of more, those go first that lie within 8,192 tokens of the one before
// (--checkpoint-min-step), the earliest of these first, then the oldest (build 11669).
void thin_resume_points(std::vector<std::uint32_t>& points);
// Those beyond `length` go: the slot was cut back or overwritten there.
void cut_resume_points(std::vector<std::uint32_t>& points, std::uint32_t length);

}  // namespace cairn

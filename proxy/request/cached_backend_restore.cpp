// How CachedBackend puts a saved state into a slot, and empties one.
#include <spdlog/spdlog.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "request/cached_backend.hpp"

namespace cairn {

namespace {
constexpr int strikes_to_drop = 2;
constexpr std::chrono::minutes not_tried_again{5};  // a state that could not be read
constexpr std::chrono::seconds no_room_again{30};   // or that found no room, in RAM or in its slot
}  // namespace

ResultTask<void> CachedBackend::read_ahead(CheckpointId id) {
  const CheckpointStore::Use use = store_->use(id);
  if (!use) co_return disk_error(ErrorCode::not_found, "the checkpoint is gone");
  const Result<VerifyOutcome> verified = co_await store_->verify_before_restore(id);
  if (verified) co_return Result<void>{};
  const bool bad = verified.error().code == ErrorCode::corrupt || verified.error().code == ErrorCode::not_found;
  spdlog::warn("checkpoint {} {}: {}", static_cast<std::int64_t>(id), bad ? "is not what was saved" : "cannot be brought back now",
               to_string(verified.error()));
  const bool full = verified.error().code == ErrorCode::no_space;  // of what others use just now
  if (!bad) unreadable_[id] = std::chrono::steady_clock::now() + (full ? no_room_again : not_tried_again);
  co_return verified.error();
}

ResultTask<void> CachedBackend::restore(int slot, CheckpointId id, CancelSource& cancel) {
  SlotState& state = slots_.at(slot);
  const CheckpointStore::Use use = store_->use(id);
  if (const Result<void> read = co_await read_ahead(id); !read) co_return read.error();
  // A request may have waited long since its plan was made: the model may be another one by now.
  if (const Result<void> ours = co_await still_ours(); !ours) co_return ours.error();
  if (co_await taken(slot, &cancel)) co_return upstream_error(ErrorCode::unsupported, "a request that the backend placed runs in the slot");
  const CheckpointRecord* record = store_->find(id);
  if (record == nullptr) co_return disk_error(ErrorCode::not_found, "the checkpoint is gone");
  if (phase_ != BackendPhase::ready || record->namespace_id != probe_.name_space) {
    co_return upstream_error(ErrorCode::closed, "the backend is another one now");
  }
  const std::string name = record->file_name;
  const std::uint32_t token_count = record->token_count;
  const std::uint64_t bytes = record->bytes;
  std::vector<std::uint32_t> resume_points = record->resume_positions;
  Tokens tokens = catalogue_->tokens_of(id);
  if (tokens.size() != token_count) co_return internal_error("a checkpoint without its path in the tree");

  // A client that has left meanwhile does not cost the slot what it holds.
  if (cancel.cancelled()) co_return upstream_error(ErrorCode::cancelled, "the client left before the state was put in");
  slots_.forget(slot);
  const std::uint64_t generation = generation_;
  const std::uint64_t foreign_epoch = foreign_epoch_;
  // Builds whose files carry no context checkpoints keep those of the slot's previous prompt through a restore, and would
  // later rewind to them: another prompt's state.
  const bool washing = probe_.state_version < 4;
  if (washing && foreign_ > 0) co_return upstream_error(ErrorCode::unsupported, "a request that may use any slot runs: it cannot be kept clean");
  // Where slots share their room a restore takes none from those that hold something idle; a task does.
  const bool crowded = !washing && probe_.clears_idle && lacks_room(slot, token_count, false);
  if (crowded) co_await save_idle_slots(slot);
  if (washing || crowded) {
    Result<void> washed = co_await wash(slot);
    if (!washed) co_return washed.error();
  }
  const auto began = std::chrono::steady_clock::now();
  // Left alone the backend ends it all the same, and the slot is one we know nothing of. A slot that must be kept clean is waited for.
  Result<SlotAction> restored = co_await api_.restore(slot, name, washing ? *background_ : cancel);
  if (generation != generation_) co_return upstream_error(ErrorCode::closed, "the backend was restarted");
  if (washing && foreign_epoch != foreign_epoch_) {
    (void)co_await wash(slot);
    co_return upstream_error(ErrorCode::unsupported, "another request may have used the slot meanwhile");
  }
  if (!restored || restored->n_tokens != static_cast<std::int64_t>(token_count)) {
    const Error error = restored ? upstream_error(ErrorCode::rejected, "restored another number of tokens") : restored.error();
    // "no available space in KV cache or invalid slot save file": where the room may be shared nobody knows which. What answers have
    // grown to is not known before they end, and nothing of requests that the backend placed.
    const auto all = std::as_const(slots_).slots();
    const bool others_run = foreign_ > 0 || std::ranges::any_of(all, [&](const SlotState& other) { return other.id != slot && other.running; });
    const bool room = error.status == 400 && (lacks_room(slot, token_count, false) || (probe_.clears_idle && others_run));
    if (room) unreadable_[id] = std::chrono::steady_clock::now() + no_room_again;
    const bool its_fault = error.code == ErrorCode::rejected && !room;
    if (its_fault && ++strikes_[id] >= strikes_to_drop) {
      spdlog::warn("checkpoint {} was refused by the backend twice and is dropped: {}", static_cast<std::int64_t>(id), to_string(error));
      (void)co_await store_->erase(id, RemovalReason::bad_file);
    }
    co_return error;
  }
  const double wall_s = std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
  // Told without the time that it waited for others' batches: learned with it, a state might never seem worth bringing back again.
  costs_.observe_restore(static_cast<double>(bytes), restored->seconds > 0 ? restored->seconds : wall_s);
  store_->mark_used(id);
  state.known = std::move(tokens);
  state.unknown_tail = 0;
  state.tail_counted = true;
  state.resume_points = std::move(resume_points);
  state.unsaved = false;
  state.pieces_since_save = 0;
  state.recoverable = token_count;
  state.name_space = static_cast<std::int64_t>(probe_.name_space);
  slots_.touch(slot);
  co_return Result<void>{};
}

bool CachedBackend::lacks_room(int slot, std::uint32_t tokens, bool beside_running_only) const {
  std::uint64_t all = tokens;
  for (const SlotState& other : slots_.slots()) {
    if (other.id == slot || (beside_running_only && !other.running)) continue;
    // What runs grows to its prompt, and what was there before may have gone.
    const std::uint64_t computes = other.running && other.target ? other.target->size() : 0;
    all += computes > 0 && beside_running_only ? computes : std::max<std::uint64_t>(computes, other.held());
  }
  return all > context_tokens();
}

ResultTask<void> CachedBackend::wash(int slot) {
  note_task_started(slot);
  Result<void> washed = co_await api_.wash(slot, *background_);
  slots_.at(slot).running = false;
  co_return washed;
}

bool CachedBackend::can_empty() const { return can_save() && probe_.state_version >= 4 && foreign_ == 0; }

ResultTask<void> CachedBackend::empty(int slot, CancelSource* cancel) {
  // A wash would be a task: the server puts what the slot holds into its RAM cache then, and brings it back to the next one.
  // Older builds keep context checkpoints through an erase.
  Result<void> emptied;
  if (probe_.state_version >= 4) {
    Result<SlotAction> erased = co_await api_.erase(slot, cancel != nullptr ? *cancel : *background_);
    if (!erased) emptied = erased.error();
  } else {
    emptied = co_await wash(slot);
  }
  slots_.forget(slot);
  if (emptied) slots_.at(slot).other_weights = false;
  co_return emptied;
}

}  // namespace cairn

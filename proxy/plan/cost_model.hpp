// What things cost on one backend: learned from its own timings, so that plans come out right on a fast GPU and on a laptop.
// Thread: the I/O thread.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "plan/least_squares.hpp"

namespace cairn {

class CostModel {
 public:
  CostModel();

  // One computation of `tokens` prompt tokens that began at depth `from` (tokens before it in the slot).
  void observe_prefill(double from, double tokens, double seconds);
  void observe_save(double bytes, double seconds);
  void observe_restore(double bytes, double seconds);
  // From what the backend has written to a committed state: checking, syncing, and the index.
  void observe_commit(double bytes, double seconds);
  // The time of a request of Cairn's own beyond what the backend counts as computing.
  void observe_piece_overhead(double seconds);
  // Before any file of a prompt was seen: what those of a few tokens tell.
  void expect_state(double base_bytes, double bytes_a_token);
  // Each context checkpoint has that many bytes at least: likewise.
  void expect_context_checkpoints(double bytes);
  // A saved file: tokens in it, context checkpoints in it, the bytes of these (as the file says), all its bytes.
  void observe_state(double tokens, double context_checkpoints, double context_checkpoint_bytes, double bytes);

  double prefill_seconds(double from, double to) const;  // one piece; 0 for nothing
  double piece_seconds() const;  // of a request's computation, whatever its tokens
  // Added by one more piece of the same prompt: small batches, a request of its own, and copying two context checkpoints.
  double boundary_seconds() const;
  double save_seconds(double bytes) const;  // for all slots of the backend
  // What a request waits, beyond that, for a save that comes before it.
  double commit_seconds(double bytes) const;
  double restore_seconds(double bytes) const;
  double state_bytes(double tokens, double context_checkpoints) const;
  // Bytes that each context checkpoint adds to a file.
  double context_checkpoint_bytes() const;
  std::size_t prefill_samples() const { return prefill_.samples(); }

  // A line of JSON with the rates, for the index and the status page; load() takes it back as the prior.
  std::string to_json() const;
  bool load(std::string_view json);

 private:
  LeastSquares<3> prefill_;  // tokens, tokens x mean depth, 1
  double piece_overhead_s_ = 0.001;
  LeastSquares<2> save_;     // 1, bytes
  LeastSquares<2> restore_;  // 1, bytes
  LeastSquares<2> commit_;   // 1, bytes
  LeastSquares<2> state_;    // 1, tokens; of a file without its context checkpoints
  double context_checkpoint_bytes_;  // of each
};

}  // namespace cairn

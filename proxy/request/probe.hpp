// Finds out what a backend is and what can be done with it, in a handful of computed tokens.
// Thread: the I/O thread. Errors: source upstream when it does not answer; what it merely cannot do is in the result.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "backend/llama_api.hpp"
#include "base/blocking_pool.hpp"
#include "base/cancel.hpp"
#include "base/task.hpp"
#include "checkpoint/store.hpp"
#include "plan/memory_kind.hpp"

namespace cairn {

enum class ServerKind {
  single,  // one model
  router,  // llama-server with several, each in a process of its own: nothing else of the result is set
  swap,    // llama-swap: nothing either
};

// A save that ended so may have begun in the backend all the same, which writes the file when it comes to it.
inline bool may_write_yet(const Error& error) {
  if (error.status == 502 || error.status == 504) return true;  // a proxy between has given up
  return error.code != ErrorCode::rejected && error.code != ErrorCode::unsupported && error.code != ErrorCode::refused;
}

// Whether another probe of the same process could end otherwise.
enum class LookAgain {
  never,   // it cannot, or it says that it will not
  rarer,   // an answer made no sense, or others' tasks came into the slot: after longer and longer times
  often,   // trouble with the disk
};

struct ProbeResult {
  ServerKind server = ServerKind::single;
  BackendProps props;
  ModelMeta meta;
  std::string process;      // differs between two processes of the backend, where it tells; else empty
  bool can_pin = false;     // `id_slot` and GET /slots work
  bool can_save = false;    // slot actions work and the file appears in our slot directory
  std::string save_trouble; // why not
  LookAgain look_again = LookAgain::never;  // where it can not
  bool clears_idle = false; // starting a task empties the idle slots
  bool clears_idle_known = false;  // else it is assumed: beside others' tasks it could not be found out
  std::uint32_t state_version = 0;  // of its saved files; below 4 they carry no context checkpoints
  MemoryKind kind = MemoryKind::unknown;
  std::string kind_because;
  bool kind_certain = false;  // the model's file says so: no answer proves otherwise
  NamespaceId name_space{};
  std::string lora;         // JSON of GET /lora-adapters
  std::string identity;     // JSON: what must be equal for a state to fit
  std::string facts;        // JSON: beliefs kept for this namespace
  std::uint32_t computed_tokens = 0;
  // Of saved files of a few tokens; 0 where none was looked at.
  double state_base_bytes = 0;
  double state_bytes_a_token = 0;
  double context_checkpoint_bytes = 0;  // of each

  bool usable() const { return can_pin && can_save; }
};

// `store` may be null. The kind is taken from the namespace's facts when the same build was probed before. One that sleeps is not
// woken unless it `may` be: an error then.
ResultTask<ProbeResult> probe_backend(LlamaApi& api, CheckpointStore* store, BlockingPool& pool, bool may_wake, CancelSource& cancel);

std::string make_facts(const ProbeResult& probe, MemoryKind kind);

}  // namespace cairn

// What happened to one request, step by step: its log line and its share of the metrics.
// Thread: the I/O thread.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "plan/planner.hpp"

namespace cairn {

class Metrics;
struct WarmedPrompt;

// The steps of a request, in the order of the log line; every path ends in `finish`. Not quite that of time: `route` begins before `read`,
// `plan` is entered when `acquire` has made it, and `save` may also come before them and before `restore`.
enum class Step {
  accept, read, route, parse, tokenize, match, plan, acquire, restore, prefill, forward, relay, save, finish,
};
inline constexpr std::size_t step_count = 14;
std::string_view to_string(Step step);

// Why the cache was not used for a request; `used` when it was asked.
enum class NoCacheReason {
  used,
  not_cached_endpoint,
  backend_not_ready,   // not probed yet, or down
  unreadable_body,     // left for the backend to judge
  several_prompts,     // a batch, or n > 1
  media,               // tokens that we cannot see
  lora,                // adapters of its own, where slots do not keep their state
  client_refused,      // cache_prompt: false
  template_failed,     // /apply-template or /tokenize did not answer
  too_long,            // more tokens than the slot's context
  empty_prompt,
  other_key,           // not the key that Cairn's own calls carry
  other_prompt,        // the backend makes another prompt of the body than we do
  no_such_model,       // it names none that we know: the server is left to answer
  other_model_wanted,  // more models than can run at a time: calls of Cairn's own would be loads more
};
std::string_view to_string(NoCacheReason reason);

// Why a request that used the cache had to compute more than its new tokens.
enum class MissReason {
  unknown,          // there was no answer, or it did not say what was reused
  none,             // a full hit
  new_prompt,       // nothing like it was known
  not_admitted,     // known, but no state was left that far
  evicted,          // one was, and had to make room
  cannot_rewind,    // the state goes on differently and cannot be cut back there
  cheaper,          // bringing it back would have cost more
  cleared,          // the backend had emptied the slot
  restore_failed,
  broken_promise,   // the state was there and the backend did not reuse it
  other_prompt,     // the backend's prompt had another number of tokens than ours
};
std::string_view to_string(MissReason reason);

struct RequestRecord {
  using Clock = std::chrono::steady_clock;

  std::uint64_t id = 0;
  std::string method;
  std::string path;
  std::string model;  // where there are several
  Clock::time_point started = Clock::now();
  Step step = Step::accept;
  std::array<double, step_count> step_s{};

  NoCacheReason no_cache = NoCacheReason::not_cached_endpoint;
  std::int64_t prompt_tokens = -1;    // -1: not known
  std::uint32_t known_tokens = 0;     // shared with any earlier prompt
  Source source = Source::recompute;
  std::string plan_reason;
  std::uint32_t planned_tokens = 0;   // expected to be reused
  std::int64_t reused_tokens = -1;    // what the backend reported
  std::int64_t computed_tokens = -1;  // by it, our own pieces included
  std::uint32_t pieces = 0;
  MissReason miss = MissReason::unknown;
  int slot = -1;
  std::int64_t checkpoint = 0;
  // Where it left the known prompt that shares the most with it; -1: it left none, or nothing came there.
  std::int64_t left_at = -1;          // tokens
  std::int64_t own_token = -1;
  std::int64_t other_token = -1;      // what the known one has there
  std::string own_text, other_text;   // around it, when prompts may be shown
  std::shared_ptr<WarmedPrompt> warmed;  // while it runs, where it was posted to be saved ahead of time

  int status = 0;            // of the answer; 499: the client left
  std::uint64_t answer_bytes = 0;
  std::string error;

  // Spent in it so far, also when it is the current one.
  double seconds_in(Step which) const;
  // Ends the current step and begins `next`.
  void enter(Step next);
  // The last step: one log line, and the counters.
  void finish(Metrics& metrics);

 private:
  Clock::time_point entered_ = started;
};

}  // namespace cairn

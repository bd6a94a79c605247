// The saved states as a resource: what `/cairn/checkpoints` answers, and the command line with it when nobody serves.
//   GET    /cairn/checkpoints             all of them, without details
//   POST   /cairn/checkpoints             what `cairn warm` reads: computed, and saved when the backend has a quiet moment (`Router::warm`)
//   GET    /cairn/checkpoints/warmed/N    what became of the prompt whose answer said `X-Cairn-Warmed: N` (`WarmedPrompts`)
//   GET    /cairn/checkpoints/ID          one; while it is verified, with the bytes that have been read (verified_bytes)
//   POST   /cairn/checkpoints/ID/pin      {"label": "…"} (may be missing)
//   POST   /cairn/checkpoints/ID/unpin
//   POST   /cairn/checkpoints/ID/verify   reads its files; bad ones are dropped
//   POST   /cairn/checkpoints/verify      reads all of the index; a damaged one is built anew
//   DELETE /cairn/checkpoints/ID          evicts it, unless it is pinned (409)
// Thread: the I/O thread. Errors: as answers of status 400 and above, {"error": {"message": …}}.
#pragma once

#include <string>
#include <string_view>

#include "base/task.hpp"
#include "checkpoint/store.hpp"
#include "http/own_endpoints.hpp"

namespace cairn {

inline constexpr std::string_view checkpoints_path = "/cairn/checkpoints";

// `path` begins with checkpoints_path.
Task<OwnAnswer> checkpoints_answer(CheckpointStore& store, std::string method, std::string path, std::string body);

}  // namespace cairn

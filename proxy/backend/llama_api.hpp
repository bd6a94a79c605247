// Typed calls of llama-server's HTTP API, as far as Cairn drives it. Field names and behaviour: llama.cpp
// tools/server/README.md; what that page does not say was measured on build 11669 (see ARCHITECTURE.md, "Backend facts").
// Thread: the I/O thread. Errors: source upstream; a non-2xx answer is `rejected` with its status.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "backend/timings.hpp"
#include "backend/upstream.hpp"
#include "base/cancel.hpp"
#include "base/task.hpp"
#include "prefix/tokens.hpp"

namespace cairn {

// Where one model's API is, at a server that has several.
struct ModelRoute {
  std::string prefix;  // of each path: llama-swap's
  std::string model;   // named in each query and body: a router's, which then loads no model because of our calls
};

struct BackendProps {
  int total_slots = 0;
  std::string model_path;
  std::string build_info;
  bool endpoint_metrics = false;  // --metrics
  bool sleeping = false;
  bool router = false;  // of several models: none of the above
  std::string media_marker;  // random per process (builds since spring 2026; empty before)
};

struct ModelMeta {
  std::string id;
  std::int64_t n_vocab = 0;
  std::int64_t n_ctx = 0;  // of one slot, tokens
  std::int64_t n_embd = 0;
  std::int64_t n_params = 0;
  std::int64_t size_bytes = 0;
  std::string ftype;
};

struct SlotInfo {
  int id = 0;
  bool processing = false;
  std::int64_t n_ctx = 0;     // tokens
  std::int64_t id_task = -1;  // of its latest task: grows while the process lives; -1 before the first
  // Tokens now in the slot; nullopt until the slot's first request, even after a restore that filled it.
  std::optional<std::int64_t> n_prompt_tokens;
};

struct SlotAction {
  std::int64_t n_tokens = 0;  // n_saved / n_restored
  std::int64_t bytes = 0;     // n_written / n_read
  double seconds = 0;         // the backend's own timing, queueing not included
};

struct TokenPieces {
  Tokens tokens;
  std::vector<std::uint32_t> piece_bytes;  // length of each token's text; sums to the content's length unless the
                                           // tokenizer adds or normalises text
};

// A model of a server that has several.
struct ListedModel {
  std::string name;
  std::vector<std::string> aliases;
  bool running = false;  // loaded, loading or asleep
};
struct ServerListing {
  std::vector<ListedModel> models;
  int most_running = 0;  // at a time; 0: no limit, or not told
};

struct TopLogprob {
  Token token = 0;
  double logprob = 0;
};

class LlamaApi {
 public:
  // `api_key` (may be empty) goes out as a bearer token on Cairn's own calls.
  LlamaApi(Upstream& upstream, std::string api_key, ModelRoute route = {})
      : upstream_(upstream), api_key_(std::move(api_key)), route_(std::move(route)) {}

  ResultTask<bool> healthy(CancelSource& cancel);  // false while the model loads (503)
  ResultTask<BackendProps> props(CancelSource& cancel);
  // The same, but the server may load the model first, as it would for a client's request. Errors: rejected, when it does not.
  ResultTask<BackendProps> load(CancelSource& cancel);
  // Errors: not_found, when the server has no model of the route's name (any more).
  ResultTask<ModelMeta> model_meta(CancelSource& cancel);
  ResultTask<std::vector<SlotInfo>> slots(CancelSource& cancel);
  ResultTask<std::string> lora_adapters(CancelSource& cancel);  // the answer's JSON, "[]" where there are none

  // Of a server of several models (llama_server_listing.cpp); for an api without a route. None of them loads or wakes a model.
  ResultTask<std::string> models(CancelSource& cancel);  // the JSON of GET /v1/models
  ResultTask<bool> is_llama_swap(CancelSource& cancel);
  ResultTask<ServerListing> router_listing(CancelSource& cancel);
  ResultTask<ServerListing> swap_listing(CancelSource& cancel);
  // The names of models that llama-swap runs; those that start or stop are not among them.
  ResultTask<std::vector<std::string>> swap_running(CancelSource& cancel);

  // The prompt text of a chat body. `body` is the client's, unchanged.
  ResultTask<std::string> apply_template(std::string_view body, CancelSource& cancel);
  // How many tokens an endpoint's counterpart at `target` (".../count_tokens") makes of the client's body.
  ResultTask<std::int64_t> count_tokens(std::string_view target, std::string_view body, CancelSource& cancel);
  ResultTask<std::string> detokenize(TokenSpan tokens, CancelSource& cancel);
  ResultTask<TokenPieces> tokenize(std::string_view content, bool add_special, CancelSource& cancel, bool parse_special = true);
  // The prompt text that a body of /infill leads to; `body` asks for no answer, and computes it. Errors: unsupported, where the
  // model knows no infilling.
  ResultTask<std::string> infill_prompt(std::string_view body, CancelSource& cancel);

  // `filename` is a plain name inside --slot-save-path. Errors: unsupported without that flag.
  ResultTask<SlotAction> save(int slot, std::string_view filename, CancelSource& cancel);
  // A failed restore leaves the slot empty.
  ResultTask<SlotAction> restore(int slot, std::string_view filename, CancelSource& cancel);

  ResultTask<SlotAction> erase(int slot, CancelSource& cancel);

  // Computes exactly these tokens in a slot and generates nothing. A stream with progress, because only such a request is
  // cancelled promptly when we close it.
  ResultTask<Timings> prefill(int slot, TokenSpan tokens, CancelSource& cancel);

  // Empties a slot together with its context checkpoints, which on builds before September 2026 survive `erase` and
  // `restore`. Costs one token.
  ResultTask<void> wash(int slot, CancelSource& cancel);

  // Log-probabilities of the likeliest next tokens after `prompt`, from a fresh computation. `slot` -1: any.
  ResultTask<std::vector<TopLogprob>> top_logprobs(int slot, TokenSpan prompt, int count, CancelSource& cancel);

 private:
  enum class Loading { never, allowed };
  ResultTask<std::string> get(std::string_view target, CancelSource& cancel, Loading loading = Loading::never);
  ResultTask<std::string> post(std::string_view target, std::string_view body, std::chrono::milliseconds timeout,
                               CancelSource& cancel);
  // Errors: rejected, with the status; refused where nobody got it.
  ResultTask<std::string> call(const RequestHead& request, std::string_view target, std::string_view body, std::chrono::milliseconds timeout,
                               CancelSource& cancel);
  RequestHead head(std::string_view method, std::string_view target, Loading loading = Loading::never) const;
  std::string with_model(std::string_view body) const;  // a JSON object
  ResultTask<BackendProps> read_props(Loading loading, CancelSource& cancel);
  ResultTask<SlotAction> slot_action(int slot, std::string_view action, std::string_view filename, CancelSource& cancel);

  Upstream& upstream_;
  std::string api_key_;
  ModelRoute route_;
};

// As a path's segment or a query's value.
std::string percent_encoded(std::string_view text);

}  // namespace cairn

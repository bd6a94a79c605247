#include "request/probe.hpp"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <boost/json.hpp>

#include <algorithm>
#include <optional>
#include <utility>

#include "backend/gguf_metadata.hpp"
#include "base/unix_time.hpp"
#include "checkpoint/file_layer.hpp"
#include "checkpoint/state_file.hpp"
#include "request/behaviour.hpp"
#include "request/weights_sample.hpp"

namespace cairn {

namespace {

namespace json = boost::json;

constexpr std::uint32_t fingerprint_tokens = 4;
constexpr int fingerprint_top = 10;
// A context checkpoint is only made once 64 tokens are there, at the end - 4 (llama.cpp server-context.cpp).
constexpr std::uint32_t kind_tokens = 80;
constexpr std::size_t random_marker_bytes = 32;  // without what stands around them (build 11669)

// Any ids do: the same vocabulary size gives the same ones.
Tokens probe_tokens(std::int64_t n_vocab, std::uint32_t count, std::uint64_t seed) {
  Tokens tokens;
  const auto range = static_cast<std::uint64_t>(std::max<std::int64_t>(n_vocab, 16));
  std::uint64_t state = seed;
  while (tokens.size() < count) {
    state = state * 6364136223846793005ULL + 1442695040888963407ULL;
    tokens.push_back(static_cast<Token>((state >> 33) % range));
  }
  return tokens;
}

// May pass without anybody's doing anything about the backend; 500 is llama-server's "Unable to save slot".
bool is_disk_trouble(const Error& error) {
  if (error.source == ErrorSource::upstream) return error.code == ErrorCode::rejected && error.status >= 500;
  return error.source == ErrorSource::disk &&
         (error.code == ErrorCode::no_space || error.code == ErrorCode::io || error.code == ErrorCode::not_found);
}

// A task of somebody else's came into the slot between what was computed and what was saved.
bool is_disturbed(const Error& error) { return error.source == ErrorSource::upstream && error.code == ErrorCode::malformed; }

LookAgain look_again(const Error& error) {
  if (is_disk_trouble(error)) return LookAgain::often;
  return error.code == ErrorCode::unsupported || error.code == ErrorCode::invalid ? LookAgain::never : LookAgain::rarer;
}

constexpr std::uint64_t tiny_save_bytes = 4u << 20;  // generously

struct TinySave {
  std::uint64_t bytes = 0;
  std::uint32_t version = 0;
  ContextCheckpoints context_checkpoints;  // that it carries
};

// Saves a slot that holds a few tokens and reads the file's head back.
ResultTask<TinySave> tiny_save(LlamaApi& api, CheckpointStore& store, BlockingPool& pool, int slot, TokenSpan expected,
                               CancelSource& cancel) {
  Result<CheckpointStore::Reservation> reservation = co_await store.reserve_scratch(tiny_save_bytes);
  if (!reservation) co_return reservation.error();
  const std::string name = reservation->temporary_name();
  Result<SlotAction> saved = co_await api.save(slot, name, cancel);
  if (!saved) {
    (void)co_await store.discard(std::move(*reservation), may_write_yet(saved.error()));
    if (is_disk_trouble(saved.error())) store.note_save_refused(saved.error());
    co_return saved.error();
  }
  const std::string path = store.options().slot_dir + "/" + name;
  const auto read = [path]() -> Result<std::pair<StateHeader, ContextCheckpoints>> {
    PosixFileLayer files;
    Result<StateHeader> head = read_state_header(files, path);
    if (!head) return head.error();
    Result<ContextCheckpoints> inside = read_context_checkpoints(files, path);
    if (!inside) return inside.error();
    return std::make_pair(std::move(*head), std::move(*inside));
  };
  Result<std::pair<StateHeader, ContextCheckpoints>> header = co_await pool.run(read);
  (void)co_await store.discard(std::move(*reservation));
  if (!header) {
    Error error = header.error();
    if (error.code == ErrorCode::not_found) {
      error.code = ErrorCode::invalid;
      error.context = fmt::format("the backend saved {}, but it is not in {}: --slot-dir must be the backend's --slot-save-path",
                                  name, store.options().slot_dir);
    }
    co_return error;
  }
  const std::size_t shared = common_prefix(header->first.tokens, expected);
  if (shared != expected.size()) {
    co_return upstream_error(ErrorCode::malformed, "a saved file holds other tokens than were computed: somebody else uses the slots");
  }
  TinySave tiny;
  tiny.bytes = static_cast<std::uint64_t>(saved->bytes);
  tiny.version = header->first.version;
  tiny.context_checkpoints = std::move(header->second);
  co_return tiny;
}

std::string save_trouble(const Error& error) {
  if (error.code != ErrorCode::unsupported) return error.context;
  // The flag is one reason; many builds have another with --mmproj, whatever the flags.
  if (error.context.find("slot-save-path") == std::string::npos) return fmt::format("slots cannot be saved: {}", error.context);
  return "slots cannot be saved: start llama-server with --slot-save-path DIR";
}

// Whether the model can be cut back, and if not, whether its files carry the context checkpoints that make up for it.
// `tiny_bytes`: of a file of `fingerprint_tokens`.
ResultTask<MemoryKind> probe_kind(LlamaApi& api, CheckpointStore& store, BlockingPool& pool, int slot, std::uint64_t tiny_bytes,
                                  ProbeResult& probe, CancelSource& cancel) {
  const std::string model_path = probe.props.model_path;
  const auto read = [model_path] { return read_gguf_metadata(model_path); };
  Result<GgufMetadata> metadata = co_await pool.run(read);
  if (metadata && !metadata->recurrent && metadata->sliding_window == 0) {
    probe.kind_because = fmt::format("the model file says {}: full attention", metadata->architecture);
    probe.kind_certain = true;
    probe.state_bytes_a_token = static_cast<double>(tiny_bytes) / fingerprint_tokens;
    co_return MemoryKind::truncatable;
  }

  Tokens tokens = probe_tokens(probe.meta.n_vocab, kind_tokens, 2);
  Result<Timings> timings = co_await api.prefill(slot, tokens, cancel);
  if (!timings) co_return timings.error();
  probe.computed_tokens += static_cast<std::uint32_t>(timings->prompt_n);
  Result<TinySave> eighty = co_await tiny_save(api, store, pool, slot, tokens, cancel);
  if (!eighty) co_return eighty.error();

  const ContextCheckpoints& inside = eighty->context_checkpoints;
  const double added = static_cast<double>(eighty->bytes - inside.bytes) - static_cast<double>(tiny_bytes);
  probe.state_bytes_a_token = std::max(added / (kind_tokens - fingerprint_tokens), 0.0);
  probe.state_base_bytes = std::max(static_cast<double>(tiny_bytes) - fingerprint_tokens * probe.state_bytes_a_token, 0.0);
  if (inside.count > 0) {
    probe.context_checkpoint_bytes = static_cast<double>(inside.bytes) / inside.count;
    probe.kind_because = "its saved files carry context checkpoints";
    co_return MemoryKind::checkpointed;
  }
  if (metadata) {
    probe.kind_because = fmt::format("the model file says {}: {}; its saved files carry no context checkpoints",
                                     metadata->architecture, metadata->recurrent ? "recurrent" : "sliding window");
    co_return MemoryKind::exact;
  }
  // We cannot read the model. Does the slot let itself be cut back?
  constexpr std::uint32_t cut = 60;
  for (std::uint32_t i = cut; i < cut + 4; ++i) tokens[i] ^= 1;
  const TokenSpan rewound{tokens.data(), cut + 4};
  timings = co_await api.prefill(slot, rewound, cancel);
  if (!timings) co_return timings.error();
  probe.computed_tokens += static_cast<std::uint32_t>(timings->prompt_n);
  if (timings->cache_n == cut) {
    probe.kind_because = "a state of 80 tokens could be cut back";
    co_return MemoryKind::truncatable;
  }
  probe.kind_because = "a state of 80 tokens could not be cut back";
  co_return MemoryKind::exact;
}

// Does a task in one slot empty the others? One token tells. nullopt: not while others' tasks are in the way.
ResultTask<std::optional<bool>> probe_clearing(LlamaApi& api, const std::vector<SlotInfo>& by_content, ProbeResult& probe, CancelSource& cancel) {
  if (by_content.size() == 1) co_return std::optional<bool>{false};
  const int slot = by_content[0].id;  // it holds the fingerprint's tokens
  if (by_content[1].processing) co_return std::optional<bool>{};
  Result<void> washed = co_await api.wash(by_content[1].id, cancel);
  if (!washed) co_return washed.error();
  probe.computed_tokens += 1;
  Result<std::vector<SlotInfo>> after = co_await api.slots(cancel);
  if (!after) co_return after.error();
  const auto now = std::ranges::find(*after, slot, &SlotInfo::id);
  if (now == after->end() || now->processing) co_return std::optional<bool>{};
  const std::int64_t held = now->n_prompt_tokens.value_or(0);
  if (held > fingerprint_tokens + 1) co_return std::optional<bool>{};  // somebody else's
  co_return std::optional<bool>{held == 0};
}

// Of the model that the process has loaded.
struct Weights {
  std::optional<std::string> sample;  // of its file, where it can be read
  bool uncertain = false;             // `sample` is of this probe alone
};

// The file may have been replaced since the process has loaded it: what it gave when that was first looked at counts, although it may not
// be there to be read any more.
Task<Weights> weights_of(const ProbeResult& probe, CheckpointStore& store, BlockingPool& pool) {
  const std::string path = probe.props.model_path;
  const auto sample = [path] { return sample_weights(path); };
  Weights weights;
  weights.sample = co_await pool.run(sample);
  if (probe.process.empty()) co_return weights;
  const std::string key = "first_samples", unknown = "unknown";
  const std::string kept = store.setting(key).value_or("");
  std::optional<std::string> first = first_sample(kept, probe.process);
  if (probe.props.sleeping) first.reset();  // it has just loaded it anew
  if (!first) {
    // Of one that has slept an unreadable file must not leave the old sample: whoever looks next would take it for the new one's.
    const std::string noted = weights.sample.value_or(probe.props.sleeping ? unknown : "");
    if (!noted.empty() && !store.options().look_only) {
      (void)co_await store.put_setting(key, with_first_sample(kept, probe.process, noted));
    }
    co_return weights;
  }
  if (!weights.sample && *first == unknown) co_return weights;
  if (!weights.sample || *weights.sample == *first) {
    weights.sample = std::move(first);
    co_return weights;
  }
  // It may also have slept meanwhile and loaded the new one.
  spdlog::warn("{} was replaced while the backend runs: until that is restarted it is not known which of the two it has loaded, and saved "
               "states of neither are used", path);
  weights.sample = fmt::format("{} or {} at {}", *first, *weights.sample, unix_now_ms());
  weights.uncertain = true;
  co_return weights;
}

Task<bool> is_llama_swap(LlamaApi& api, CancelSource& cancel) {
  const Result<bool> answer = co_await api.is_llama_swap(cancel);
  co_return answer && *answer;
}

void give_up(ProbeResult& probe, const Error& error) {
  probe.look_again = look_again(error);
  probe.save_trouble = save_trouble(error);
}

// What kind of server it is, and the properties and the model of one that has a single one. False: it has several.
ResultTask<bool> find_model(LlamaApi& api, bool may_wake, ProbeResult& probe, CancelSource& cancel) {
  Result<BackendProps> props = co_await api.props(cancel);
  constexpr int not_found = 404;
  if (!props && props.error().status == not_found && co_await is_llama_swap(api, cancel)) {
    probe.server = ServerKind::swap;
    co_return false;
  }
  if (!props) co_return props.error();
  if (props->router) {
    probe.server = ServerKind::router;
    co_return false;
  }
  if (props->sleeping && !may_wake) co_return upstream_error(ErrorCode::rejected, "it sleeps, until a request wakes it");
  probe.props = std::move(*props);
  // Where LLAMA_MEDIA_MARKER sets it, it is the same for each process.
  if (probe.props.media_marker.size() >= random_marker_bytes) probe.process = probe.props.media_marker;
  Result<ModelMeta> meta = co_await api.model_meta(cancel);
  if (!meta) co_return meta.error();
  probe.meta = std::move(*meta);
  co_return true;
}

// Those first that hold least: what Cairn's own probe overwrites is then lost least. None: they are of no use, and `probe` says why.
ResultTask<std::vector<SlotInfo>> find_slots(LlamaApi& api, const CheckpointStore* store, ProbeResult& probe, CancelSource& cancel) {
  Result<std::vector<SlotInfo>> slots = co_await api.slots(cancel);
  if (!slots) {
    if (slots.error().code != ErrorCode::rejected) co_return slots.error();
    probe.save_trouble = "GET /slots is refused: start llama-server without --no-slots";
    probe.look_again = LookAgain::rarer;
    co_return std::vector<SlotInfo>{};
  }
  probe.props.total_slots = static_cast<int>(slots->size());
  if (slots->empty()) {
    probe.save_trouble = "the backend has no slots";
    probe.look_again = LookAgain::rarer;
    co_return std::vector<SlotInfo>{};
  }
  probe.can_pin = true;
  if (store == nullptr) {
    probe.save_trouble = "there is no slot directory";
    probe.look_again = LookAgain::often;  // it may come
    co_return std::vector<SlotInfo>{};
  }
  if (slots->front().n_ctx > 0) probe.meta.n_ctx = slots->front().n_ctx;
  std::ranges::stable_sort(*slots, {}, [](const SlotInfo& info) { return std::pair{info.processing, info.n_prompt_tokens.value_or(0)}; });
  co_return std::move(*slots);
}

// Nothing is computed where saving is impossible anyway. (A slot that holds something is not saved just to see.)
ResultTask<void> try_saving(LlamaApi& api, CheckpointStore& store, BlockingPool& pool, const SlotInfo& slot, CancelSource& cancel) {
  if (!slot.processing && slot.n_prompt_tokens.value_or(0) == 0) {
    const Result<TinySave> empty = co_await tiny_save(api, store, pool, slot.id, {}, cancel);
    if (!empty && look_again(empty.error()) != LookAgain::rarer) co_return empty.error();
    co_return Result<void>{};
  }
  Result<CheckpointStore::Reservation> room = co_await store.reserve_scratch(tiny_save_bytes);
  if (!room) co_return room.error();
  (void)co_await store.discard(std::move(*room));
  co_return Result<void>{};
}

struct Fingerprint {
  std::vector<TopLogprob> top;  // after a prompt that is always the same
  TinySave file;                // of the slot that holds it
};

// nullopt: there is none, or it cannot be saved, and `probe` says why.
ResultTask<std::optional<Fingerprint>> take_fingerprint(LlamaApi& api, CheckpointStore& store, BlockingPool& pool, int slot,
                                                        ProbeResult& probe, CancelSource& cancel) {
  const Tokens prompt = probe_tokens(probe.meta.n_vocab, fingerprint_tokens, 1);
  Result<std::vector<TopLogprob>> top = upstream_error(ErrorCode::internal, "not asked");
  Result<TinySave> tiny = upstream_error(ErrorCode::internal, "not asked");
  for (int attempt = 0; attempt < 3; ++attempt) {
    top = co_await api.top_logprobs(slot, prompt, fingerprint_top, cancel);
    // Some builds now and then leave the probabilities out of an answer; asking again helps.
    if (!top && top.error().code == ErrorCode::malformed) top = co_await api.top_logprobs(slot, prompt, fingerprint_top, cancel);
    if (!top) break;
    probe.computed_tokens += fingerprint_tokens;
    tiny = co_await tiny_save(api, store, pool, slot, prompt, cancel);
    if (tiny || !is_disturbed(tiny.error())) break;
  }
  if (!top) {
    if (top.error().code != ErrorCode::malformed && top.error().code != ErrorCode::rejected) co_return top.error();
    probe.save_trouble = fmt::format("no fingerprint of the model: {}", to_string(top.error()));
    probe.look_again = LookAgain::rarer;
    co_return std::optional<Fingerprint>{};
  }
  if (!tiny) {
    const Error& error = tiny.error();
    if (error.source == ErrorSource::upstream && error.code != ErrorCode::rejected && error.code != ErrorCode::unsupported &&
        error.code != ErrorCode::malformed) {
      co_return error;
    }
    give_up(probe, error);
    co_return std::optional<Fingerprint>{};
  }
  co_return std::optional<Fingerprint>{Fingerprint{std::move(*top), std::move(*tiny)}};
}

// Without the sample of its weights.
json::object identity_of(const ProbeResult& probe, const TinySave& tiny) {
  json::object identity;
  identity["n_vocab"] = probe.meta.n_vocab;
  identity["n_params"] = probe.meta.n_params;
  identity["n_embd"] = probe.meta.n_embd;
  identity["size"] = probe.meta.size_bytes;
  identity["ftype"] = probe.meta.ftype;
  identity["lora"] = probe.lora;
  // Layout of the memory: number of layers, types of the KV cache, version of the file.
  identity["state_bytes"] = tiny.bytes;
  identity["state_version"] = tiny.version;
  return identity;
}

// nullptr: what fits this backend is not known yet. `without`: its identity without the weights.
const NamespaceRecord* find_namespace(const CheckpointStore& store, const ProbeResult& probe, const std::string& without,
                                      const Weights& weights, const std::vector<TopLogprob>& top) {
  const auto find = [&](auto fits) -> const NamespaceRecord* {
    const auto found = std::ranges::find_if(store.namespaces(), [&](const auto& one) {
      return fits(one.second.identity) && same_behaviour(one.second.probe, top);
    });
    return found == store.namespaces().end() ? nullptr : &found->second;
  };
  const NamespaceRecord* found = find([&](const std::string& other) { return other == probe.identity; });
  if (found == nullptr && weights.sample && !weights.uncertain) {
    // Of a time when the file could not be read, or was not: its identity is renewed later.
    found = find([&](const std::string& other) { return other == without; });
  } else if (found == nullptr && !weights.sample) {
    const std::string beginning = without.substr(0, without.size() - 1) + ",";
    if (find([&](const std::string& other) { return other.starts_with(beginning); }) != nullptr) {
      spdlog::warn("{} cannot be read: it may hold other weights than those whose states were saved while it could, and these are not used",
                   probe.props.model_path);
    }
  }
  return found;
}

// What the namespace tells; the kind, too, when the same build was probed before.
void recall(const NamespaceRecord& known, ProbeResult& probe) {
  probe.name_space = known.id;
  probe.facts = known.facts;
  boost::system::error_code error;
  const json::value facts = json::parse(known.facts, error);
  if (error || !facts.is_object()) return;
  const json::object& object = facts.get_object();
  const json::value* build = object.if_contains("build");
  const json::value* kind = object.if_contains("kind");
  if (build == nullptr || kind == nullptr || !build->is_string() || !kind->is_string() || build->get_string() != probe.props.build_info) return;
  probe.kind = memory_kind_from_string(std::string_view{kind->get_string()});
  probe.kind_because = "remembered";
  const json::value* certain = object.if_contains("kind_certain");
  probe.kind_certain = certain != nullptr && certain->is_bool() && certain->get_bool();
  // Somebody may have followed our advice to switch context checkpoints on: worth looking again.
  if (probe.kind == MemoryKind::exact) probe.kind = MemoryKind::unknown;
}

}  // namespace

std::string make_facts(const ProbeResult& probe, MemoryKind kind) {
  json::object facts;
  facts["kind"] = to_string(kind);
  facts["kind_certain"] = probe.kind_certain && kind == MemoryKind::truncatable;
  facts["build"] = probe.props.build_info;
  facts["total_slots"] = probe.props.total_slots;
  facts["state_version"] = probe.state_version;
  facts["model"] = probe.meta.id;
  return json::serialize(facts);
}

ResultTask<ProbeResult> probe_backend(LlamaApi& api, CheckpointStore* store, BlockingPool& pool, bool may_wake, CancelSource& cancel) {
  ProbeResult probe;
  const Result<bool> single = co_await find_model(api, may_wake, probe, cancel);
  if (!single) co_return single.error();
  if (!*single) co_return probe;
  const Result<std::vector<SlotInfo>> slots = co_await find_slots(api, store, probe, cancel);
  if (!slots) co_return slots.error();
  if (slots->empty()) co_return probe;
  const int slot = slots->front().id;
  const Result<void> possible = co_await try_saving(api, *store, pool, slots->front(), cancel);
  if (!possible) {
    give_up(probe, possible.error());
    co_return probe;
  }
  const Result<std::optional<Fingerprint>> taken = co_await take_fingerprint(api, *store, pool, slot, probe, cancel);
  if (!taken) co_return taken.error();
  if (!*taken) co_return probe;
  const Fingerprint& fingerprint = **taken;
  probe.can_save = true;
  probe.state_version = fingerprint.file.version;

  const Result<std::optional<bool>> clears = co_await probe_clearing(api, *slots, probe, cancel);
  if (!clears) co_return clears.error();
  // Assumed in vain it costs some waiting for each other; not assumed where it is so, states.
  probe.clears_idle = clears->value_or(true);
  probe.clears_idle_known = clears->has_value();

  Result<std::string> lora = co_await api.lora_adapters(cancel);
  if (!lora) co_return lora.error();
  probe.lora = std::move(*lora);
  json::object identity = identity_of(probe, fingerprint.file);
  const std::string without = json::serialize(identity);
  // The behaviour below tells strangers apart, not two of a kind (another quantization run, one more step of training).
  const Weights weights = co_await weights_of(probe, *store, pool);
  if (weights.sample) identity["weights"] = *weights.sample;
  probe.identity = json::serialize(identity);

  const NamespaceRecord* const known = find_namespace(*store, probe, without, weights, fingerprint.top);
  // What its states were made with, however many small steps lie between.
  std::string reference = known != nullptr ? known->probe : pack_logprobs(fingerprint.top);
  const bool is_new = known == nullptr;
  if (!is_new) recall(*known, probe);
  if (probe.kind == MemoryKind::unknown) {
    Result<MemoryKind> kind = co_await probe_kind(api, *store, pool, slot, fingerprint.file.bytes, probe, cancel);
    if (!kind) co_return kind.error();
    probe.kind = *kind;
    probe.facts = make_facts(probe, probe.kind);
  }
  if (is_new) {
    Result<NamespaceId> added = co_await store->add_namespace(probe.identity, std::move(reference), probe.facts);
    if (!added) {
      probe.can_save = false;
      probe.look_again = LookAgain::often;
      probe.save_trouble = to_string(added.error());
      co_return probe;
    }
    probe.name_space = *added;
  } else {
    (void)co_await store->update_namespace(probe.name_space, probe.identity, std::move(reference), probe.facts);
  }
  co_return probe;
}

}  // namespace cairn

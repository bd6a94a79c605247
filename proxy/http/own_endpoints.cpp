#include "http/own_endpoints.hpp"

#include <fmt/format.h>

#include <boost/json.hpp>

#include <filesystem>
#include <system_error>
#include <utility>
#include <vector>

#include "base/printable_text.hpp"
#include "checkpoint/store_identity.hpp"

namespace cairn {

namespace json = boost::json;

namespace {

// What is known of one model.
json::object describe(CachedBackend& backend) {
  json::object status;
  const ProbeResult& probe = backend.probe();
  json::object about;
  about["address"] = backend.upstream().address().host_header();
  about["phase"] = to_string(backend.phase());
  if (!backend.trouble().empty()) about["trouble"] = backend.trouble();
  about["model"] = probe.meta.id;
  about["build"] = probe.props.build_info;
  about["context_tokens"] = probe.meta.n_ctx;
  about["memory_kind"] = to_string(backend.kind());
  about["memory_kind_because"] = probe.kind_because;
  about["clears_idle_slots"] = probe.clears_idle;
  about["can_save"] = backend.can_save();
  about["state_file_version"] = probe.state_version;
  about["namespace"] = static_cast<std::int64_t>(probe.name_space);
  about["open_connections"] = backend.upstream().open_connections();
  status["backend"] = std::move(about);

  json::array slots;
  for (const SlotState& state : std::as_const(backend.slots()).slots()) {
    json::object slot;
    slot["id"] = state.id;
    slot["leased"] = state.leased;
    slot["tokens"] = state.held();
    slot["resume_points"] = state.resume_points.size();
    slot["unsaved"] = state.unsaved || state.saves > 0;
    slots.push_back(std::move(slot));
  }
  status["slots"] = std::move(slots);
  json::object queue;
  queue["leased"] = backend.scheduler().leased();
  queue["waiting"] = backend.scheduler().waiting();
  queue["unpinned"] = backend.foreign();
  status["queue"] = std::move(queue);

  const CostModel& costs = backend.costs();
  json::object rates;
  const double first_thousand_s = costs.prefill_seconds(0, 1000);
  const double deep_thousand_s = costs.prefill_seconds(16000, 17000);
  constexpr double mib = 1048576.0;
  rates["prefill_tokens_per_s"] = 1000 / first_thousand_s;
  rates["prefill_tokens_per_s_at_16000"] = 1000 / deep_thousand_s;
  rates["piece_boundary_ms"] = costs.boundary_seconds() * 1000;
  constexpr std::uint32_t typical_tokens = 16384;
  rates["checkpoint_interval_tokens"] = backend.checkpoint_interval(typical_tokens);
  rates["save_mib_per_s"] = 256 / (costs.save_seconds(256 * mib) - costs.save_seconds(0));
  rates["restore_mib_per_s"] = 256 / (costs.restore_seconds(256 * mib) - costs.restore_seconds(0));
  rates["save_fixed_ms"] = costs.save_seconds(0) * 1000;
  rates["restore_fixed_ms"] = costs.restore_seconds(0) * 1000;
  rates["commit_fixed_ms"] = costs.commit_seconds(0) * 1000;
  rates["context_checkpoint_bytes"] = costs.context_checkpoint_bytes();
  rates["state_bytes_at_10000_tokens"] = costs.state_bytes(10000, 2);
  rates["prefill_samples"] = costs.prefill_samples();
  status["rates"] = std::move(rates);

  json::object tokenizer;
  tokenizer["whole_texts"] = backend.memo().whole_texts();
  tokenizer["tails"] = backend.memo().tails();
  tokenizer["repeats"] = backend.memo().repeats();
  status["tokenizer"] = std::move(tokenizer);
  return status;
}

struct NamedModel {
  std::string name;
  CachedBackend* backend;
};

// Of every backend and every model of one; a backend of one model goes by the names that it serves, or its own.
std::vector<NamedModel> all_models(const ServedModels& served) {
  std::vector<NamedModel> models;
  for (const ServedModels::Entry& entry : served.entries()) {
    for (const auto& [name, backend] : entry.server->models()) models.push_back(NamedModel{name, backend.get()});
    if (!entry.server->models().empty() || !served.several()) continue;
    CachedBackend& front = entry.server->front();
    models.push_back(NamedModel{entry.models.empty() ? front.probe().meta.id : entry.models.front(), &front});
  }
  return models;
}

// Whose working directory it is relative to, others cannot know. The disk is not asked.
std::string absolute_path(const std::string& path) {
  std::error_code unknown;
  const std::filesystem::path absolute = std::filesystem::absolute(path, unknown);
  return unknown ? path : absolute.string();
}

}  // namespace

OwnAnswer status_answer(const ServedModels& served, const RecentRequests& recent) {
  CachedBackend& backend = served.entries().front().server->front();
  json::object status = describe(backend);
  if (backend.catalogue() != nullptr) {
    const Catalogue::Totals totals = backend.catalogue()->totals();
    json::object tree;
    tree["nodes"] = totals.nodes;
    tree["tokens"] = totals.tokens;
    tree["bytes"] = totals.bytes;
    status["tree"] = std::move(tree);
  }
  if (backend.store() != nullptr) {
    const StoreCounters counters = backend.store()->counters();
    json::object store;
    store["state_dir"] = absolute_path(backend.store()->options().state_dir);
    store["index_id"] = backend.store()->setting(std::string(index_id_setting)).value_or("");
    store["checkpoints"] = counters.files;
    store["bytes"] = counters.bytes;
    store["budget_bytes"] = counters.budget_bytes;
    store["pinned_bytes"] = counters.pinned_bytes;
    store["commits"] = counters.commits;
    store["failed_commits"] = counters.failed_commits;
    store["refused_for_space"] = counters.refused_reservations;
    store["evictions"] = counters.evictions;
    store["declined"] = counters.declined;
    store["saving_paused"] = backend.store()->saving_waits();
    if (backend.store()->has_tiers()) {
      store["ram_bytes"] = counters.slot_bytes;
      store["ram_budget_bytes"] = counters.ram_budget_bytes;
      store["disk_bytes"] = counters.disk_bytes;
      store["copied_down"] = counters.copied_down;
      store["brought_up"] = counters.brought_up;
      store["left_ram"] = counters.left_slots;
    }
    store["dropped_bad"] = counters.dropped_bad;
    store["disk_errors"] = counters.disk_errors;
    status["store"] = std::move(store);
  }

  json::array models;
  for (const NamedModel& model : all_models(served)) {
    json::object one = describe(*model.backend);
    one["name"] = model.name;
    models.push_back(std::move(one));
  }
  if (!models.empty()) status["models"] = std::move(models);

  json::object plans;
  for (const Source source : RecentRequests::sources) {
    const PlanOutcome& outcome = recent.outcome_of(source);
    plans[to_string(source)] = {{"requests", outcome.requests},
                                {"planned_tokens", outcome.planned_tokens},
                                {"reused_tokens", outcome.reused_tokens},
                                {"fell_short", outcome.fell_short}};
  }
  status["plans"] = std::move(plans);

  json::array requests;
  for (const RequestRecord& record : recent.latest_first()) {
    json::object request;
    request["id"] = record.id;
    request["path"] = record.path;
    if (!record.model.empty()) request["model"] = record.model;
    request["status"] = record.status;
    request["cache"] = to_string(record.no_cache);
    const bool used = record.no_cache == NoCacheReason::used;
    request["prompt_tokens"] = record.prompt_tokens;
    request["known_tokens"] = record.known_tokens;
    request["plan"] = used ? to_string(record.source) : "passed_by";
    request["plan_because"] = record.plan_reason;
    request["planned_tokens"] = record.planned_tokens;
    request["reused_tokens"] = record.reused_tokens;
    request["computed_tokens"] = record.computed_tokens;
    request["miss"] = used ? to_string(record.miss) : "passed_by";
    if (record.left_at >= 0) {
      request["left_at"] = record.left_at;
      request["token"] = record.own_token;
      request["instead_of"] = record.other_token;
    }
    if (!record.own_text.empty()) request["text"] = record.own_text;
    if (!record.other_text.empty()) request["instead_of_text"] = record.other_text;
    requests.push_back(std::move(request));
  }
  status["latest_requests"] = std::move(requests);

  OwnAnswer answer;
  answer.content_type = "application/json";
  answer.body = json_text(status);
  return answer;
}

Task<OwnAnswer> models_answer(const ServedModels& served, CancelSource& cancel) {
  json::array models;
  for (const ServedModels::Entry& entry : served.entries()) {
    const Result<std::string> told = co_await entry.server->api().models(cancel);
    boost::system::error_code bad;
    const json::value listing = told ? json::parse(*told, bad) : json::value{};
    const json::value* data = listing.find_pointer("/data", bad);
    const json::array listed = data != nullptr && data->is_array() ? data->get_array() : json::array{};
    if (entry.models.empty()) models.insert(models.end(), listed.begin(), listed.end());
    for (const std::string& name : entry.models) {
      // One that is not there, or not loaded, is served all the same.
      json::object model;
      for (const json::value& one : listed) {
        const json::value* id = one.is_object() ? one.get_object().if_contains("id") : nullptr;
        const bool its_own = id != nullptr && id->is_string() && std::string_view{id->get_string()} == name;
        if (one.is_object() && (its_own || !entry.server->by_name())) model = one.get_object();
        if (its_own) break;
      }
      model["id"] = name;
      if (!model.contains("object")) model["object"] = "model";
      if (!model.contains("owned_by")) model["owned_by"] = "llamacpp";
      models.push_back(std::move(model));
    }
  }
  json::object list;
  list["object"] = "list";
  list["data"] = std::move(models);
  OwnAnswer answer;
  answer.content_type = "application/json; charset=utf-8";
  answer.body = json::serialize(list);
  co_return answer;
}

OwnAnswer metrics_answer(const ServedModels& served, const Metrics& metrics) {
  CachedBackend& backend = served.entries().front().server->front();
  std::string text = metrics.text();
  const auto gauge = [&text](std::string_view name, std::string_view help, double value) {
    Metrics::write_gauge(text, name, help, value);
  };
  gauge("cairn_backend_ready", "1 when states are saved and restored.", backend.phase() == BackendPhase::ready ? 1 : 0);
  gauge("cairn_slots_leased", "Slots in use.", static_cast<double>(backend.scheduler().leased()));
  gauge("cairn_requests_waiting", "Requests that wait for a slot.", static_cast<double>(backend.scheduler().waiting()));
  gauge("cairn_upstream_connections", "Open connections to the backend.", static_cast<double>(backend.upstream().open_connections()));
  if (backend.catalogue() != nullptr) {
    const Catalogue::Totals totals = backend.catalogue()->totals();
    gauge("cairn_tree_nodes", "Nodes of the prefix tree.", static_cast<double>(totals.nodes));
    gauge("cairn_tree_tokens", "Tokens in the prefix tree.", static_cast<double>(totals.tokens));
  }
  if (backend.store() != nullptr) {
    const StoreCounters counters = backend.store()->counters();
    gauge("cairn_store_checkpoints", "Saved states.", static_cast<double>(counters.files));
    gauge("cairn_store_bytes", "Bytes of saved states.", static_cast<double>(counters.bytes));
    gauge("cairn_store_budget_bytes", "What they may take.", static_cast<double>(counters.budget_bytes));
    gauge("cairn_store_commits", "States saved since the start.", static_cast<double>(counters.commits));
    gauge("cairn_store_evictions", "States evicted since the start.", static_cast<double>(counters.evictions));
  }
  const std::vector<NamedModel> models = all_models(served);
  const auto gauges = [&](std::string_view name, std::string_view help, double (*value)(CachedBackend&)) {
    std::vector<Metrics::Labelled> values;
    for (const NamedModel& model : models) values.push_back(Metrics::Labelled{fmt::format("model={:?}", model.name), value(*model.backend)});
    Metrics::write_gauges(text, name, help, values);
  };
  if (!models.empty()) {
    gauges("cairn_model_ready", "1 when states of the model are saved and restored.",
           [](CachedBackend& one) { return one.phase() == BackendPhase::ready ? 1.0 : 0.0; });
    gauges("cairn_model_slots_leased", "Slots of the model in use.", [](CachedBackend& one) { return static_cast<double>(one.scheduler().leased()); });
    gauges("cairn_model_requests_waiting", "Requests that wait for a slot of the model.",
           [](CachedBackend& one) { return static_cast<double>(one.scheduler().waiting()); });
  }
  OwnAnswer answer;
  answer.content_type = "text/plain; version=0.0.4";
  answer.body = std::move(text);
  return answer;
}

}  // namespace cairn

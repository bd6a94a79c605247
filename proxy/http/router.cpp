#include "http/router.hpp"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <array>
#include <exception>
#include <memory>
#include <string>
#include <utility>

#include "http/checkpoint_endpoints.hpp"
#include "http/warm_request.hpp"
#include "request/api_key.hpp"
#include "request/cached_request.hpp"
#include "request/error_answer.hpp"
#include "request/model_name.hpp"
#include "request/relay.hpp"
#include "request/request_record.hpp"

namespace cairn {

namespace {

struct Row {
  std::string_view path;
  Route route;
};

constexpr std::string_view lora_path = "/lora-adapters";

constexpr Route chat{RouteKind::cached, PromptForm::chat};
constexpr Route completion{RouteKind::cached, PromptForm::completion};
constexpr Route messages{RouteKind::cached, PromptForm::messages};
constexpr Route responses{RouteKind::cached, PromptForm::responses};
constexpr Route infill{RouteKind::cached, PromptForm::infill};
constexpr Route unpinned{RouteKind::unpinned, PromptForm::chat};

// The endpoints of llama-server that use a slot, all POST. What is not here passes straight through.
constexpr std::array table{
    Row{"/v1/chat/completions", chat},
    Row{"/chat/completions", chat},
    Row{"/api/chat", chat},
    Row{"/v1/completions", completion},
    Row{"/completions", completion},
    Row{"/completion", completion},
    Row{"/v1/messages", messages},
    Row{"/v1/responses", responses},
    Row{"/responses", responses},
    Row{"/infill", infill},
    Row{"/embedding", unpinned},
    Row{"/embeddings", unpinned},
    Row{"/v1/embeddings", unpinned},
    Row{"/rerank", unpinned},
    Row{"/reranking", unpinned},
    Row{"/v1/rerank", unpinned},
    Row{"/v1/reranking", unpinned},
    Row{"/v1/audio/transcriptions", unpinned},
    Row{"/audio/transcriptions", unpinned},
    Row{"/v1/systemone", unpinned},
};

}  // namespace

Route find_route(std::string_view method, std::string_view path) {
  if (path == "/cairn" || path.starts_with("/cairn/")) return Route{RouteKind::own, PromptForm::chat};
  if (method == "POST") {
    for (const Row& row : table) {
      if (row.path == path) return row.route;
    }
  }
  return Route{};
}

Task<void> Router::handle(Downstream& downstream) {
  RequestRecord record;
  record.id = ++last_id_;
  record.method = downstream.head().method;
  record.path = downstream.head().path();
  record.enter(Step::route);
  bool bug = false;
  try {
    co_await dispatch(downstream, record);
  } catch (const std::exception& error) {
    spdlog::error("req={} ended by a bug in step {}: {}", record.id, to_string(record.step), error.what());
    record.error = error.what();
    bug = true;
  }
  if (bug) {
    record.status = 500;
    (void)co_await write_error(downstream, 500, "an error inside Cairn; its log has more");
  }
  record.finish(metrics_);
  if (record.no_cache != NoCacheReason::not_cached_endpoint) recent_.add(record);
}

Task<void> Router::dispatch(Downstream& downstream, RequestRecord& record) {
  const Route route = find_route(record.method, record.path);
  if (route.kind == RouteKind::own) {
    if (co_await may_ask_cairn(downstream, record)) co_await answer_own(downstream, record);
    co_return;
  }
  const bool reads = record.method == "GET" || record.method == "HEAD";
  if (served_.several() && reads && (record.path == "/v1/models" || record.path == "/models")) {
    OwnAnswer answer = co_await models_answer(served_, downstream.cancel());
    co_await send(downstream, record, std::move(answer));
    co_return;
  }
  // The model is named in the query of a GET and in the body of a POST; where one server has several, only there.
  const std::string& target = downstream.head().target;
  const bool by_name = served_.by_name();
  const bool posted = record.method == "POST";
  std::optional<std::string> model, body;
  if (by_name && !posted) model = model_in_query(target);
  const bool body_tells = by_name && posted && (route.kind != RouteKind::plain || served_.several() || record.path == lora_path);
  if (route.kind == RouteKind::cached || body_tells) {
    Result<std::string> read = co_await read_body(downstream, record);
    if (!read) co_return;
    body = std::move(*read);
    if (by_name) model = model_in_body(downstream.head().fields.get("Content-Type").value_or(""), *body);
  }
  record.model = model.value_or("");
  ModelServer* const server = served_.server_of((model || !by_name) ? model : model_in_query(target));
  if (server == nullptr) {
    record.no_cache = NoCacheReason::no_such_model;
    record.status = 400;
    (void)co_await write_error(downstream, 400, fmt::format("model '{}' not found", record.model));
    co_return;
  }
  if (route.kind == RouteKind::plain) {
    const ModelServer::Visit visit(*server, model);
    co_await pass_on(downstream, record, *server, std::move(body));
    // Other adapters are another model. What the backend refuses changes nothing.
    const bool refused = record.status / 100 == 4 && record.status != status_client_left;
    CachedBackend* const changed = record.method == "POST" && record.path == lora_path && !refused ? server->known(model) : nullptr;
    if (changed != nullptr) changed->suspect_down();
    co_return;
  }
  // Who says himself whether the model may be loaded is left alone.
  const bool says_so = server->by_name() && target.find("autoload=") != std::string::npos;
  CachedBackend* backend = nullptr;
  const ModelServer::Visit visit(*server, model);
  if (says_so) {
    backend = server->known(model);
  } else {
    backend = co_await server->find(record.path, model, downstream.cancel());
  }
  if (backend == nullptr) {
    const bool there = server->front().phase() == BackendPhase::plain;
    record.no_cache = there ? NoCacheReason::no_such_model : NoCacheReason::backend_not_ready;
    if (there && model && server->contested(*model)) record.no_cache = NoCacheReason::other_model_wanted;
    co_await pass_on(downstream, record, *server, std::move(body));
    co_return;
  }
  CachedRequest request(*backend, downstream, record);
  if (route.kind == RouteKind::cached && !says_so) {
    co_await request.run(route.form, std::move(*body));
  } else {
    co_await request.run_unpinned(std::move(body));
  }
}

// On an error it is answered and recorded.
ResultTask<std::string> Router::read_body(Downstream& downstream, RequestRecord& record) {
  record.enter(Step::read);
  Result<std::string> body = co_await downstream.read_body(max_body_bytes_);
  if (!body) {
    record.status = downstream.cancel().cancelled() ? status_client_left : error_status(body.error());
    record.error = to_string(body.error());
    (void)co_await write_error(downstream, body.error());
  }
  co_return body;
}

// `body`: what was read of it already.
Task<void> Router::pass_on(Downstream& downstream, RequestRecord& record, ModelServer& server, std::optional<std::string> body) {
  record.enter(Step::forward);
  Result<RelayOutcome> outcome = co_await pass_through(server.upstream(), downstream, body);
  if (outcome) {
    record.status = outcome->status;
    record.answer_bytes = outcome->body_bytes;
    if (outcome->broken) record.error = to_string(*outcome->broken);
  } else {
    record.status = error_status(outcome.error());
    record.error = to_string(outcome.error());
    if (outcome.error().code == ErrorCode::refused) server.front().suspect_down();
    (void)co_await write_error(downstream, outcome.error());
  }
  if (downstream.cancel().cancelled()) record.status = status_client_left;
}

Task<bool> Router::may_ask_cairn(Downstream& downstream, RequestRecord& record) {
  if (own_key_.empty() || carries_key(downstream.head().fields, own_key_)) co_return true;
  record.status = 401;
  (void)co_await write_error(downstream, 401, "Cairn's own endpoints want the key that own_api_key (--own-api-key) says");
  co_return false;
}

Task<void> Router::warm(Downstream& downstream, RequestRecord& record) {
  const Result<std::string> text = co_await read_body(downstream, record);
  if (!text) co_return;
  Result<WarmRequest> request = warm_request(*text);
  if (!request) {
    record.status = 400;
    (void)co_await write_error(downstream, 400, "the body " + request.error().context);
    co_return;
  }
  record.path = request->path;
  WarmingDownstream warming(downstream, std::move(*request), record);
  if (!own_key_.empty()) {
    // It is Cairn's and no business of the backend's; who has it may have Cairn ask that.
    const CacheOptions& options = served_.entries().front().server->front().options();
    warming.change_key(own_key_, options.api_key);
  }
  const std::shared_ptr<WarmedPrompt> prompt = warmed_.add();
  record.warmed = prompt;
  co_await dispatch(warming, record);
  record.warmed.reset();
  if (record.no_cache != NoCacheReason::used) {
    prompt->why = fmt::format("it was passed on uncached ({})", to_string(record.no_cache));
  } else if (record.miss == MissReason::other_prompt) {
    prompt->why = "the backend made another prompt of it";
  } else if (prompt->backend == nullptr) {
    prompt->why = "states of adapters of a request's own are not saved";
  }
  prompt->answered = true;
}

Task<void> Router::answer_own(Downstream& downstream, RequestRecord& record) {
  const std::string_view path = downstream.head().path();
  const std::string& method = downstream.head().method;
  const bool about_checkpoints = path == checkpoints_path || path.starts_with(std::string(checkpoints_path) + "/");
  if (method != "GET" && method != "HEAD" && !about_checkpoints) {
    record.status = 405;
    (void)co_await write_error(downstream, 405, "only GET is understood here");
    co_return;
  }
  OwnAnswer answer;
  CheckpointStore* const store = served_.entries().front().server->front().store();
  if (about_checkpoints && store == nullptr) {
    record.status = 503;
    (void)co_await write_error(downstream, 503, "there is no store: see slot_dir and state_dir, and the log");
    co_return;
  }
  if (method == "POST" && path == checkpoints_path) {
    co_await warm(downstream, record);
    co_return;
  }
  if (path.starts_with(warmed_path)) {
    if (method != "GET" && method != "HEAD") {
      record.status = 405;
      (void)co_await write_error(downstream, 405, "GET");
      co_return;
    }
    answer = warmed_.answer(path.substr(warmed_path.size()));
    co_await send(downstream, record, std::move(answer));
    co_return;
  }
  if (about_checkpoints) {
    constexpr std::size_t most_bytes = 64 * 1024;
    std::string body;
    if (method == "POST") {
      Result<std::string> read = co_await downstream.read_body(most_bytes);
      if (!read) {
        record.status = error_status(read.error());
        (void)co_await write_error(downstream, read.error());
        co_return;
      }
      body = std::move(*read);
    }
    answer = co_await checkpoints_answer(*store, method, std::string(path), std::move(body));
  } else if (path == "/cairn/status") {
    answer = status_answer(served_, recent_);
  } else if (path == "/cairn/metrics") {
    answer = metrics_answer(served_, metrics_);
  } else {
    record.status = 404;
    (void)co_await write_error(downstream, 404, "Cairn's own endpoints are /cairn/status, /cairn/metrics and /cairn/checkpoints");
    co_return;
  }
  co_await send(downstream, record, std::move(answer));
}

Task<void> Router::send(Downstream& downstream, RequestRecord& record, OwnAnswer answer) {
  ResponseHead head;
  head.status = answer.status;
  head.reason = status_reason(answer.status);
  head.fields.add("Content-Type", answer.content_type);
  head.fields.add("Cache-Control", "no-store");
  if (record.method == "HEAD") head.fields.add("Content-Length", std::to_string(answer.body.size()));
  BodyFraming framing;
  framing.kind = BodyFraming::Kind::length;
  framing.length = answer.body.size();
  record.status = answer.status;
  record.answer_bytes = answer.body.size();
  Result<void> written = co_await downstream.write_head(head, framing);
  const std::span<const char> bytes{answer.body.data(), answer.body.size()};
  if (written && record.method != "HEAD") written = co_await downstream.write_body(bytes);
  if (written) written = co_await downstream.finish();
  if (!written) record.error = to_string(written.error());
}

}  // namespace cairn

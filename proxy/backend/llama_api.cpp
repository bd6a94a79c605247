#include "backend/llama_api.hpp"

#include <fmt/format.h>
#include <simdjson.h>

#include <boost/json.hpp>

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

namespace cairn {

namespace {

namespace json = boost::json;
using std::chrono::milliseconds;

constexpr milliseconds quick_timeout{10'000};
// Slot actions wait for the backend's main loop, and a big state takes its time on a slow disk.
constexpr milliseconds slot_action_timeout{300'000};
constexpr milliseconds template_timeout{60'000};
constexpr milliseconds load_timeout{1'800'000};  // of a big model from a slow disk

Error bad_answer(std::string_view target) {
  return upstream_error(ErrorCode::malformed, fmt::format("{}: not the JSON expected", target));
}

// The beginning of a body that may be cut in the middle of a character, or be no text at all: errors end up in JSON and in the log.
std::string beginning_of(std::string_view body) {
  constexpr std::size_t longest = 200;
  std::string text{body.substr(0, longest)};
  for (char& c : text) {
    const auto byte = static_cast<unsigned char>(c);  // a plain char is signed on some machines only
    if (byte < 0x20 || byte >= 0x7f) c = c == '\n' || c == '\t' ? ' ' : '?';
  }
  return text;
}

// A router says it in its own name when it could not reach the process of a model, which may last no longer than a moment.
bool came_to_nobody(const Upstream::Answer& answer) {
  return answer.head.status == 500 && answer.body.find("Could not establish connection") != std::string::npos;
}

Result<json::value> parse(std::string_view text, std::string_view target) {
  boost::system::error_code error;
  json::value value = json::parse(text, error);
  if (error) return bad_answer(target);
  return value;
}

// One member of an answer that may be large.
Result<std::string> string_member(std::string_view answer, std::string_view key, std::string_view target) {
  const simdjson::padded_string padded{answer};
  simdjson::ondemand::parser parser;
  simdjson::ondemand::document document;
  std::string_view text;
  if (parser.iterate(padded).get(document) != simdjson::SUCCESS || document[key].get_string().get(text) != simdjson::SUCCESS) {
    return bad_answer(target);
  }
  return std::string{text};
}

std::int64_t integer_or(const json::object& object, std::string_view key, std::int64_t fallback) {
  const json::value* value = object.if_contains(key);
  if (value == nullptr) return fallback;
  if (const std::int64_t* number = value->if_int64()) return *number;
  if (const std::uint64_t* number = value->if_uint64()) return static_cast<std::int64_t>(*number);
  if (const double* number = value->if_double()) return static_cast<std::int64_t>(*number);
  return fallback;
}

double number_or(const json::object& object, std::string_view key, double fallback) {
  const json::value* value = object.if_contains(key);
  if (value == nullptr || !value->is_number()) return fallback;
  return value->to_number<double>();
}

std::string string_or(const json::object& object, std::string_view key) {
  const json::value* value = object.if_contains(key);
  if (value == nullptr || !value->is_string()) return {};
  return std::string{value->get_string()};
}

bool bool_or(const json::object& object, std::string_view key, bool fallback) {
  const json::value* value = object.if_contains(key);
  if (value == nullptr || !value->is_bool()) return fallback;
  return value->get_bool();
}

std::string token_list(TokenSpan tokens) {
  std::string text;
  text.reserve(tokens.size() * 7 + 2);
  text += '[';
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    if (i != 0) text += ',';
    fmt::format_to(std::back_inserter(text), "{}", tokens[i]);
  }
  text += ']';
  return text;
}

}  // namespace

std::string percent_encoded(std::string_view text) {
  std::string encoded;
  for (const char c : text) {
    const bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || std::strchr("-_.~", c) != nullptr;
    if (plain && c != '\0') {
      encoded += c;
    } else {
      fmt::format_to(std::back_inserter(encoded), "%{:02X}", static_cast<unsigned char>(c));
    }
  }
  return encoded;
}

RequestHead LlamaApi::head(std::string_view method, std::string_view target, Loading loading) const {
  RequestHead head;
  head.method = method;
  head.target = route_.prefix;
  head.target += target;
  if (!route_.model.empty()) {
    head.target += target.find('?') == std::string_view::npos ? '?' : '&';
    head.target += "model=" + percent_encoded(route_.model);
    if (loading == Loading::never) head.target += "&autoload=false";
  }
  head.fields.add("Accept", "application/json");
  if (method == "POST") head.fields.add("Content-Type", "application/json");
  if (!api_key_.empty()) head.fields.add("Authorization", "Bearer " + api_key_);
  return head;
}

// The client's own name for the model stands behind ours in a body that is the client's, and counts: llama-server takes the last.
std::string LlamaApi::with_model(std::string_view body) const {
  const std::size_t open = body.find('{');
  if (route_.model.empty() || open == std::string_view::npos) return std::string{body};
  std::string named{body.substr(0, open + 1)};
  named += "\"model\":" + json::serialize(json::string_view{route_.model});
  const std::size_t next = body.find_first_not_of(" \t\r\n", open + 1);
  if (next != std::string_view::npos && body[next] != '}') named += ',';
  named += body.substr(open + 1);
  return named;
}

ResultTask<std::string> LlamaApi::get(std::string_view target, CancelSource& cancel, Loading loading) {
  const RequestHead request = head("GET", target, loading);
  co_return co_await call(request, target, {}, loading == Loading::allowed ? load_timeout : quick_timeout, cancel);
}

ResultTask<std::string> LlamaApi::post(std::string_view target, std::string_view body, milliseconds timeout,
                                       CancelSource& cancel) {
  const RequestHead request = head("POST", target);
  std::string named;
  if (!route_.model.empty()) {
    named = with_model(body);
    body = named;
  }
  co_return co_await call(request, target, body, timeout, cancel);
}

ResultTask<std::string> LlamaApi::call(const RequestHead& request, std::string_view target, std::string_view body, milliseconds timeout,
                                       CancelSource& cancel) {
  Upstream::CallOptions options;
  options.timeout = timeout;
  for (bool again = true;; again = false) {
    Result<Upstream::Answer> answer = co_await upstream_.call(request, body, options, cancel);
    if (!answer) co_return answer.error();
    if (answer->head.status / 100 == 2) co_return std::move(answer->body);
    const bool nobody = !route_.model.empty() && came_to_nobody(*answer);
    if (nobody && again) continue;
    const ErrorCode code = nobody ? ErrorCode::refused : ErrorCode::rejected;
    Error error = upstream_error(code, fmt::format("{} {}: {}", request.method, target, beginning_of(answer->body)));
    error.status = answer->head.status;
    co_return error;
  }
}

ResultTask<bool> LlamaApi::healthy(CancelSource& cancel) {
  Result<std::string> body = co_await get("/health", cancel);
  if (body) co_return true;
  if (body.error().status == 503) co_return false;
  co_return body.error();
}

ResultTask<BackendProps> LlamaApi::props(CancelSource& cancel) { return read_props(Loading::never, cancel); }

ResultTask<BackendProps> LlamaApi::load(CancelSource& cancel) { return read_props(Loading::allowed, cancel); }

ResultTask<BackendProps> LlamaApi::read_props(Loading loading, CancelSource& cancel) {
  Result<std::string> body = co_await get("/props", cancel, loading);
  if (!body) co_return body.error();
  Result<json::value> value = parse(*body, "/props");
  if (!value) co_return value.error();
  const json::object* object = value->if_object();
  if (object == nullptr) co_return bad_answer("/props");
  BackendProps props;
  props.total_slots = static_cast<int>(integer_or(*object, "total_slots", 0));
  props.model_path = string_or(*object, "model_path");
  props.build_info = string_or(*object, "build_info");
  props.endpoint_metrics = bool_or(*object, "endpoint_metrics", false);
  props.media_marker = string_or(*object, "media_marker");
  props.sleeping = bool_or(*object, "is_sleeping", false);
  props.router = string_or(*object, "role") == "router";
  co_return props;
}

ResultTask<ModelMeta> LlamaApi::model_meta(CancelSource& cancel) {
  Result<std::string> body = co_await get("/v1/models", cancel);
  if (!body) co_return body.error();
  Result<json::value> value = parse(*body, "/v1/models");
  if (!value) co_return value.error();
  ModelMeta meta;
  const json::object* object = value->if_object();
  const json::value* data = object != nullptr ? object->if_contains("data") : nullptr;
  const json::array* models = data != nullptr ? data->if_array() : nullptr;
  if (models == nullptr || models->empty() || !models->front().is_object()) co_return bad_answer("/v1/models");
  const json::value* found = &models->front();
  if (!route_.model.empty()) {
    const auto named = [this](const json::value& one) {
      return one.is_object() && string_or(one.get_object(), "id") == route_.model && one.get_object().contains("status");
    };
    found = std::find_if(models->begin(), models->end(), named);
    if (found == models->end()) co_return upstream_error(ErrorCode::not_found, fmt::format("it has no model {}", route_.model));
  }
  const json::object& model = found->get_object();
  meta.id = string_or(model, "id");
  if (const json::value* inner = model.if_contains("meta"); inner != nullptr && inner->is_object()) {
    const json::object& fields = inner->get_object();
    meta.n_vocab = integer_or(fields, "n_vocab", 0);
    meta.n_ctx = integer_or(fields, "n_ctx", 0);
    meta.n_embd = integer_or(fields, "n_embd", 0);
    meta.n_params = integer_or(fields, "n_params", 0);
    meta.size_bytes = integer_or(fields, "size", 0);
    meta.ftype = string_or(fields, "ftype");
  }
  co_return meta;
}

ResultTask<std::vector<SlotInfo>> LlamaApi::slots(CancelSource& cancel) {
  Result<std::string> body = co_await get("/slots", cancel);
  if (!body) co_return body.error();
  Result<json::value> value = parse(*body, "/slots");
  if (!value) co_return value.error();
  const json::array* list = value->if_array();
  if (list == nullptr) co_return bad_answer("/slots");
  std::vector<SlotInfo> slots;
  for (const json::value& item : *list) {
    const json::object* object = item.if_object();
    if (object == nullptr) co_return bad_answer("/slots");
    SlotInfo slot;
    slot.id = static_cast<int>(integer_or(*object, "id", static_cast<std::int64_t>(slots.size())));
    slot.n_ctx = integer_or(*object, "n_ctx", 0);
    slot.id_task = integer_or(*object, "id_task", -1);
    slot.processing = bool_or(*object, "is_processing", false);
    const std::int64_t tokens = integer_or(*object, "n_prompt_tokens", -1);
    if (tokens >= 0) slot.n_prompt_tokens = tokens;
    slots.push_back(slot);
  }
  co_return slots;
}

ResultTask<std::string> LlamaApi::lora_adapters(CancelSource& cancel) {
  Result<std::string> body = co_await get("/lora-adapters", cancel);
  if (!body && body.error().code == ErrorCode::rejected) co_return std::string{"[]"};
  co_return body;
}

ResultTask<std::string> LlamaApi::apply_template(std::string_view body, CancelSource& cancel) {
  Result<std::string> answer = co_await post("/apply-template", body, template_timeout, cancel);
  if (!answer) co_return answer.error();
  co_return string_member(*answer, "prompt", "/apply-template");
}

ResultTask<std::int64_t> LlamaApi::count_tokens(std::string_view target, std::string_view body, CancelSource& cancel) {
  Result<std::string> answer = co_await post(target, body, template_timeout, cancel);
  if (!answer) co_return answer.error();
  Result<json::value> value = parse(*answer, target);
  if (!value) co_return value.error();
  const json::object* object = value->if_object();
  const std::int64_t count = object != nullptr ? integer_or(*object, "input_tokens", -1) : -1;
  if (count < 0) co_return bad_answer(target);
  co_return count;
}

ResultTask<std::string> LlamaApi::infill_prompt(std::string_view body, CancelSource& cancel) {
  Result<std::string> answer = co_await post("/infill", body, template_timeout, cancel);
  if (!answer) {
    constexpr int not_implemented = 501;
    Error error = answer.error();
    if (error.status == not_implemented) error.code = ErrorCode::unsupported;
    co_return error;
  }
  co_return string_member(*answer, "prompt", "/infill");
}

ResultTask<std::string> LlamaApi::detokenize(TokenSpan tokens, CancelSource& cancel) {
  json::object request;
  request["tokens"] = json::array(tokens.begin(), tokens.end());
  const std::string body = json::serialize(request);
  Result<std::string> answer = co_await post("/detokenize", body, template_timeout, cancel);
  if (!answer) co_return answer.error();
  // Half a character at either end does not matter here.
  co_return string_member(*answer, "content", "/detokenize");
}

ResultTask<TokenPieces> LlamaApi::tokenize(std::string_view content, bool add_special, CancelSource& cancel,
                                                bool parse_special) {
  json::object request;
  request["content"] = json::string_view{content.data(), content.size()};
  request["add_special"] = add_special;
  request["parse_special"] = parse_special;
  request["with_pieces"] = true;
  const std::string body = json::serialize(request);
  Result<std::string> answer = co_await post("/tokenize", body, template_timeout, cancel);
  if (!answer) co_return answer.error();

  simdjson::padded_string padded{*answer};
  simdjson::ondemand::parser parser;
  simdjson::ondemand::document document;
  simdjson::ondemand::array list;
  if (parser.iterate(padded).get(document) != simdjson::SUCCESS ||
      document["tokens"].get_array().get(list) != simdjson::SUCCESS) {
    co_return bad_answer("/tokenize");
  }
  TokenPieces pieces;
  for (auto item : list) {
    std::int64_t id = 0;
    if (item["id"].get_int64().get(id) != simdjson::SUCCESS) co_return bad_answer("/tokenize");
    std::uint32_t length = 0;
    simdjson::ondemand::value piece;
    if (item["piece"].get(piece) != simdjson::SUCCESS) co_return bad_answer("/tokenize");
    // A piece that is no valid UTF-8 by itself comes as a list of bytes.
    simdjson::ondemand::json_type type{};
    if (piece.type().get(type) != simdjson::SUCCESS) co_return bad_answer("/tokenize");
    if (type == simdjson::ondemand::json_type::string) {
      std::string_view text;
      if (piece.get_string().get(text) != simdjson::SUCCESS) co_return bad_answer("/tokenize");
      length = static_cast<std::uint32_t>(text.size());
    } else {
      simdjson::ondemand::array bytes;
      if (piece.get_array().get(bytes) != simdjson::SUCCESS) co_return bad_answer("/tokenize");
      for (auto byte : bytes) {
        std::int64_t ignored = 0;
        if (byte.get_int64().get(ignored) != simdjson::SUCCESS) co_return bad_answer("/tokenize");
        ++length;
      }
    }
    pieces.tokens.push_back(static_cast<Token>(id));
    pieces.piece_bytes.push_back(length);
  }
  co_return pieces;
}

ResultTask<SlotAction> LlamaApi::slot_action(int slot, std::string_view action, std::string_view filename,
                                             CancelSource& cancel) {
  const std::string target = fmt::format("/slots/{}?action={}", slot, action);
  json::object request;
  request["filename"] = json::string_view{filename.data(), filename.size()};
  const std::string body = json::serialize(request);
  Result<std::string> answer = co_await post(target, body, slot_action_timeout, cancel);
  if (!answer) {
    Error error = answer.error();
    // 501: slot actions are off; the message of a 400 for the missing flag names it.
    if (error.status == 501 || error.context.find("slot-save-path") != std::string::npos) {
      error.code = ErrorCode::unsupported;
    }
    co_return error;
  }
  Result<json::value> value = parse(*answer, target);
  if (!value) co_return value.error();
  const json::object* object = value->if_object();
  if (object == nullptr) co_return bad_answer(target);
  SlotAction result;
  const bool saving = action == "save";
  result.n_tokens = integer_or(*object, saving ? "n_saved" : "n_restored", 0);
  result.bytes = integer_or(*object, saving ? "n_written" : "n_read", 0);
  if (const json::value* timings = object->if_contains("timings"); timings != nullptr && timings->is_object()) {
    result.seconds = number_or(timings->get_object(), saving ? "save_ms" : "restore_ms", 0) / 1000.0;
  }
  co_return result;
}

ResultTask<SlotAction> LlamaApi::save(int slot, std::string_view filename, CancelSource& cancel) {
  return slot_action(slot, "save", filename, cancel);
}

ResultTask<SlotAction> LlamaApi::restore(int slot, std::string_view filename, CancelSource& cancel) {
  return slot_action(slot, "restore", filename, cancel);
}

ResultTask<SlotAction> LlamaApi::erase(int slot, CancelSource& cancel) { return slot_action(slot, "erase", {}, cancel); }

ResultTask<Timings> LlamaApi::prefill(int slot, TokenSpan tokens, CancelSource& cancel) {
  const std::string body = with_model(fmt::format(
      R"({{"prompt":{},"n_predict":0,"id_slot":{},"cache_prompt":true,"stream":true,"return_progress":true,)"
      R"("temperature":0,"response_fields":["timings"]}})",
      token_list(tokens), slot));
  RequestHead request = head("POST", "/completion");
  BodyFraming framing;
  framing.kind = BodyFraming::Kind::length;
  framing.length = body.size();
  const std::span<const char> bytes{body.data(), body.size()};
  std::unique_ptr<Exchange> exchange;
  Result<ResponseHead> answer = internal_error("not sent");
  for (int attempt = 0; attempt < 2; ++attempt) {
    Result<std::unique_ptr<Exchange>> started = co_await upstream_.start(request, framing, cancel);
    if (!started) co_return started.error();
    exchange = std::move(*started);
    Result<void> written = co_await exchange->write_body(bytes);
    if (written) written = co_await exchange->finish_body();
    answer = co_await exchange->read_head();
    if (answer || !answer.error().may_retry) break;
    // llama-server closes a kept connection after a stream without saying so: the next attempt gets a fresh one.
    upstream_.close_idle();
  }
  if (!answer) co_return answer.error();

  TimingsTail tail;
  std::array<char, 16 * 1024> buffer;
  for (;;) {
    const std::span<char> into{buffer};
    Result<std::size_t> n = co_await exchange->read_some(into);
    if (!n) co_return n.error();
    if (*n == 0) break;
    const std::span<const char> got{buffer.data(), *n};
    tail.on_bytes(got);
  }
  if (answer->status / 100 != 2) {
    Error error = upstream_error(ErrorCode::rejected, fmt::format("prefill: {}", beginning_of(tail.text())));
    error.status = answer->status;
    co_return error;
  }
  const std::optional<Timings> timings = tail.timings();
  if (!timings) {
    co_return upstream_error(ErrorCode::rejected, fmt::format("prefill: {}", beginning_of(tail.text())));
  }
  co_return *timings;
}

ResultTask<void> LlamaApi::wash(int slot, CancelSource& cancel) {
  // Token 0 exists in every vocabulary.
  const std::string body =
      fmt::format(R"({{"prompt":[0],"n_predict":0,"id_slot":{},"cache_prompt":false,"response_fields":["timings"]}})", slot);
  Result<std::string> answer = co_await post("/completion", body, slot_action_timeout, cancel);
  if (!answer) co_return answer.error();
  co_return Result<void>{};
}

ResultTask<std::vector<TopLogprob>> LlamaApi::top_logprobs(int slot, TokenSpan prompt, int count, CancelSource& cancel) {
  const std::string body = fmt::format(
      R"({{"prompt":{},"n_predict":1,"n_probs":{},"id_slot":{},"cache_prompt":false,"temperature":0,"seed":1,)"
      R"("response_fields":["timings","completion_probabilities"]}})",
      token_list(prompt), count, slot);
  Result<std::string> answer = co_await post("/completion", body, slot_action_timeout, cancel);
  if (!answer) co_return answer.error();
  Result<json::value> value = parse(*answer, "/completion");
  if (!value) co_return value.error();
  std::vector<TopLogprob> top;
  const json::object* object = value->if_object();
  const json::value* list = object != nullptr ? object->if_contains("completion_probabilities") : nullptr;
  const json::array* positions = list != nullptr ? list->if_array() : nullptr;
  if (positions == nullptr || positions->empty() || !positions->front().is_object()) {
    co_return bad_answer("completion_probabilities");
  }
  const json::value* inner = positions->front().get_object().if_contains("top_logprobs");
  if (inner == nullptr || !inner->is_array()) co_return bad_answer("top_logprobs");
  for (const json::value& item : inner->get_array()) {
    const json::object* entry = item.if_object();
    if (entry == nullptr) continue;
    TopLogprob one;
    one.token = static_cast<Token>(integer_or(*entry, "id", -1));
    one.logprob = number_or(*entry, "logprob", 0);
    top.push_back(one);
  }
  if (top.empty()) co_return bad_answer("top_logprobs");
  co_return top;
}

}  // namespace cairn

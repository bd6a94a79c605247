#include "http/checkpoint_endpoints.hpp"

#include <fmt/format.h>

#include <boost/json.hpp>

#include <algorithm>
#include <charconv>
#include <optional>
#include <utility>
#include <vector>

#include "base/printable_text.hpp"
#include "request/error_answer.hpp"

namespace cairn {

namespace json = boost::json;

namespace {

OwnAnswer refusal(int status, std::string_view message) {
  return OwnAnswer{"application/json", error_body(status, message), status};
}

OwnAnswer trouble(const Error& error) {
  return refusal(error.code == ErrorCode::not_found ? 404 : error_status(error), to_string(error));
}

OwnAnswer answer_with(const json::object& object) { return OwnAnswer{"application/json", json_text(object), 200}; }

json::object outline(const CheckpointStore& store, const CheckpointRecord& record) {
  json::object object;
  object["id"] = static_cast<std::int64_t>(record.id);
  object["namespace"] = static_cast<std::int64_t>(record.namespace_id);
  object["tokens"] = record.token_count;
  object["bytes"] = record.bytes;
  object["kind"] = to_string(record.kind);
  object["resume_points"] = record.resume_positions.size();
  object["cost_to_recompute_s"] = record.cost_to_recompute_s;
  object["uses"] = record.uses;
  object["created_unix_ms"] = record.created_unix_ms;
  object["last_used_unix_ms"] = record.last_used_unix_ms;
  object["pinned"] = record.pinned;
  if (!record.pin_label.empty()) object["pin_label"] = record.pin_label;
  if (store.has_tiers()) object["tier"] = !record.in_slots ? "disk" : record.on_disk ? "ram+disk" : "ram";
  return object;
}

OwnAnswer list(const CheckpointStore& store) {
  std::vector<const CheckpointRecord*> records;
  store.for_each([&](const CheckpointRecord& record) { records.push_back(&record); });
  std::sort(records.begin(), records.end(), [](const auto* a, const auto* b) { return a->id < b->id; });
  json::array checkpoints;
  for (const CheckpointRecord* record : records) checkpoints.push_back(outline(store, *record));
  const StoreCounters counters = store.counters();
  json::object answer;
  answer["checkpoints"] = std::move(checkpoints);
  answer["bytes"] = counters.bytes;
  answer["pinned_bytes"] = counters.pinned_bytes;
  answer["budget_bytes"] = counters.budget_bytes;
  answer["absent"] = counters.absent_entries;
  answer["damaged"] = store.options().look_only ? counters.damaged_entries : 0;  // else they have been dropped
  if (store.has_tiers()) {
    answer["ram_bytes"] = counters.slot_bytes;
    answer["ram_budget_bytes"] = counters.ram_budget_bytes;
    answer["disk_bytes"] = counters.disk_bytes;
  }
  return answer_with(answer);
}

OwnAnswer show(const CheckpointStore& store, const CheckpointRecord& record) {
  json::object object = outline(store, record);
  json::array positions;
  for (const std::uint32_t position : record.resume_positions) positions.push_back(position);
  object["resume_positions"] = std::move(positions);
  object["checksum"] = fmt::format("{:016x}{:016x}", record.checksum.high, record.checksum.low);
  json::array files;
  for (const FileStamp& stamp : record.files) {
    json::object file;
    file["name"] = record.file_name + stamp.suffix;
    file["bytes"] = stamp.bytes;
    files.push_back(std::move(file));
  }
  object["files"] = std::move(files);
  if (const std::optional<std::uint64_t> read = store.read_afresh(record.id)) object["verified_bytes"] = *read;
  const auto model = store.namespaces().find(record.namespace_id);
  if (model != store.namespaces().end()) {
    boost::system::error_code bad;
    json::value facts = json::parse(model->second.facts, bad);
    if (!bad) object["model"] = std::move(facts);
  }
  return answer_with(object);
}

// Its file whole, and its tokens in the index: without these the next start drops it.
ResultTask<VerifyOutcome> read_all_of(CheckpointStore& store, CheckpointId id) {
  Result<VerifyOutcome> verified = co_await store.verify_before_restore(id, true);
  if (!verified) co_return verified;
  const Result<Tokens> tokens = co_await store.tokens_of(id);
  if (tokens || store.find(id) == nullptr) co_return verified;  // gone meanwhile, but not for being bad
  const ErrorCode why = tokens.error().code;
  if (why == ErrorCode::corrupt || why == ErrorCode::not_found) (void)co_await store.erase(id, RemovalReason::bad_file);
  co_return tokens.error();
}

Task<OwnAnswer> verify(CheckpointStore& store, CheckpointId id) {
  CheckpointStore::Use use = store.use(id);
  const Result<VerifyOutcome> verified = co_await read_all_of(store, id);
  use = {};
  if (!verified) (void)co_await store.flush();  // its file waited for the Use
  if (!verified && verified.error().code != ErrorCode::corrupt && verified.error().code != ErrorCode::not_found) {
    co_return trouble(verified.error());  // nothing is known of it then
  }
  json::object object;
  object["id"] = static_cast<std::int64_t>(id);
  object["good"] = verified.has_value();
  if (verified) {
    object["bytes"] = verified->bytes;
    object["seconds"] = verified->seconds;
    if (!verified->other_copy.empty()) object["other_copy"] = verified->other_copy;
  } else {
    object["why"] = verified.error().context;
  }
  co_return answer_with(object);
}

Task<OwnAnswer> verify_index(CheckpointStore& store) {
  const Result<IndexCheck> check = co_await store.check_index();
  if (!check) co_return trouble(check.error());
  json::object object;
  object["good"] = check->damage.empty();
  if (!check->damage.empty()) {
    object["why"] = check->damage;
    object["rebuilt"] = check->rebuilt;
  }
  co_return answer_with(object);
}

Task<OwnAnswer> pin(CheckpointStore& store, CheckpointId id, bool pinned, std::string body) {
  std::string label;
  if (pinned && !body.empty()) {
    boost::system::error_code bad;
    const json::value value = json::parse(body, bad);
    const json::object* object = bad ? nullptr : value.if_object();
    const json::value* given = object != nullptr ? object->if_contains("label") : nullptr;
    if (object == nullptr || (given != nullptr && !given->is_string())) {
      co_return refusal(400, "the body of a pin is {\"label\": \"...\"}, or empty");
    }
    if (given != nullptr) label = std::string{given->get_string()};
    if (printable_text(label) != label) co_return refusal(400, "a label is one line of text, without control characters");
  }
  const Result<void> done = pinned ? co_await store.pin(id, std::move(label)) : co_await store.unpin(id);
  if (!done) co_return trouble(done.error());
  const CheckpointRecord* record = store.find(id);
  if (record == nullptr) co_return refusal(404, "it was removed meanwhile");
  co_return answer_with(outline(store, *record));
}

// Of states whose files are to be deleted and still there.
std::uint64_t undeleted_bytes(const CheckpointStore& store) {
  const StoreCounters counters = store.counters();
  return counters.condemned_bytes + counters.condemned_disk_bytes;
}

Task<OwnAnswer> evict(CheckpointStore& store, CheckpointId id) {
  const CheckpointRecord* record = store.find(id);
  if (record->pinned) co_return refusal(409, "it is pinned: unpin it first");
  const std::uint64_t bytes = record->bytes;
  const std::uint64_t undeleted_before = undeleted_bytes(store);
  const Result<void> done = co_await store.erase(id);
  // Where only the index could not be written (its disk is full) the state is gone all the same. Its row goes later, at the next start
  // at the latest: its file is missing.
  const bool row_alone = !done && done.error().context.starts_with("index: ") && undeleted_bytes(store) <= undeleted_before;
  if (!done && !row_alone) co_return trouble(done.error());
  json::object object;
  object["id"] = static_cast<std::int64_t>(id);
  object["bytes"] = bytes;
  if (row_alone) object["row_left"] = done.error().context;
  co_return answer_with(object);
}

}  // namespace

Task<OwnAnswer> checkpoints_answer(CheckpointStore& store, std::string method, std::string path, std::string body) {
  std::string_view rest = path;
  rest.remove_prefix(checkpoints_path.size());
  const bool reads = method == "GET" || method == "HEAD";
  if (rest.empty()) {
    if (!reads) co_return refusal(405, "GET, or POST of a prompt through `cairn serve`");
    co_return list(store);
  }
  if (rest == "/verify") {
    if (method != "POST") co_return refusal(405, "POST");
    co_return co_await verify_index(store);
  }
  std::int64_t number = 0;
  const char* const end = rest.data() + rest.size();
  const auto [stop, error] = std::from_chars(rest.data() + 1, end, number);
  const std::string_view action{stop, static_cast<std::size_t>(end - stop)};
  const CheckpointId id{number};
  if (rest.front() != '/' || error != std::errc{} || (!action.empty() && action.front() != '/')) {
    co_return refusal(404, "a checkpoint is named by its number");
  }
  const CheckpointRecord* record = store.find(id);
  if (record == nullptr) co_return refusal(404, fmt::format("there is no checkpoint {}", number));
  if (action.empty()) {
    if (method == "DELETE") co_return co_await evict(store, id);
    if (!reads) co_return refusal(405, "GET or DELETE");
    co_return show(store, *record);
  }
  if (method != "POST") co_return refusal(405, "POST");
  if (action == "/pin") co_return co_await pin(store, id, true, std::move(body));
  if (action == "/unpin") co_return co_await pin(store, id, false, {});
  if (action == "/verify") co_return co_await verify(store, id);
  co_return refusal(404, "pin, unpin or verify");
}

}  // namespace cairn

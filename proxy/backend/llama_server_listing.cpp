// What LlamaApi asks a server that has several models: llama-server's router mode, or llama-swap in front of servers.
#include <boost/json.hpp>

#include <algorithm>
#include <utility>

#include "backend/llama_api.hpp"

namespace cairn {

namespace json = boost::json;

namespace {

// nullptr: there is no such list.
const json::array* list_in(const json::value& answer, std::string_view key) {
  const json::object* object = answer.if_object();
  const json::value* list = object != nullptr ? object->if_contains(key) : nullptr;
  return list != nullptr ? list->if_array() : nullptr;
}

std::string text_in(const json::value& item, std::string_view key) {
  const json::object* object = item.if_object();
  const json::value* text = object != nullptr ? object->if_contains(key) : nullptr;
  return text != nullptr && text->is_string() ? std::string{text->get_string()} : std::string{};
}

json::value parsed(const std::string& text) {
  boost::system::error_code bad;
  json::value value = json::parse(text, bad);
  return bad ? json::value{} : value;
}

Error no_listing() { return upstream_error(ErrorCode::malformed, "its list of models is not the JSON expected"); }

// Ids and aliases; `running` is not set.
Result<std::vector<ListedModel>> listed(const std::string& answer) {
  const json::value value = parsed(answer);
  const json::array* data = list_in(value, "data");
  if (data == nullptr) return no_listing();
  std::vector<ListedModel> models;
  for (const json::value& item : *data) {
    ListedModel model;
    model.name = text_in(item, "id");
    if (model.name.empty()) continue;
    if (const json::array* aliases = list_in(item, "aliases")) {
      for (const json::value& alias : *aliases) {
        if (alias.is_string()) model.aliases.emplace_back(alias.get_string());
      }
    }
    const json::object* object = item.if_object();
    const json::value* status = object->if_contains("status");
    model.running = status != nullptr && (text_in(*status, "value") == "loaded" || text_in(*status, "value") == "loading" ||
                                          text_in(*status, "value") == "sleeping");
    models.push_back(std::move(model));
  }
  return models;
}

}  // namespace

ResultTask<std::string> LlamaApi::models(CancelSource& cancel) { return get("/v1/models", cancel); }

ResultTask<ServerListing> LlamaApi::router_listing(CancelSource& cancel) {
  Result<std::string> answer = co_await models(cancel);
  if (!answer) co_return answer.error();
  Result<std::vector<ListedModel>> found = listed(*answer);
  if (!found) co_return found.error();
  ServerListing listing;
  listing.models = std::move(*found);
  const Result<std::string> props = co_await get("/props", cancel);
  if (!props) co_return props.error();
  const json::value value = parsed(*props);
  boost::system::error_code missing;
  const json::value* most = value.find_pointer("/max_instances", missing);
  if (most != nullptr && most->is_int64()) listing.most_running = static_cast<int>(most->get_int64());
  co_return listing;
}

ResultTask<bool> LlamaApi::is_llama_swap(CancelSource& cancel) {
  const Result<std::string> answer = co_await get("/running", cancel);
  if (!answer && answer.error().code != ErrorCode::rejected) co_return answer.error();
  co_return answer && list_in(parsed(*answer), "running") != nullptr;
}

ResultTask<ServerListing> LlamaApi::swap_listing(CancelSource& cancel) {
  Result<std::string> answer = co_await models(cancel);
  if (!answer) co_return answer.error();
  Result<std::vector<ListedModel>> found = listed(*answer);
  if (!found) co_return found.error();
  Result<std::vector<std::string>> running = co_await swap_running(cancel);
  if (!running) co_return running.error();
  ServerListing listing;
  listing.models = std::move(*found);
  for (ListedModel& model : listing.models) {
    model.running = std::find(running->begin(), running->end(), model.name) != running->end();
  }
  co_return listing;
}

ResultTask<std::vector<std::string>> LlamaApi::swap_running(CancelSource& cancel) {
  Result<std::string> answer = co_await get("/running", cancel);
  if (!answer) co_return answer.error();
  const json::value value = parsed(*answer);
  const json::array* running = list_in(value, "running");
  if (running == nullptr) co_return no_listing();
  std::vector<std::string> names;
  for (const json::value& item : *running) {
    if (text_in(item, "state") == "ready") names.push_back(text_in(item, "model"));
  }
  co_return names;
}

}  // namespace cairn

#include "store_client.hpp"

#include <fmt/format.h>

#include <boost/json.hpp>

#include <utility>

#include "base/place.hpp"
#include "checkpoint/store_identity.hpp"
#include "http/checkpoint_endpoints.hpp"
#include "served_store.hpp"

namespace cairn {

namespace json = boost::json;

StoreClient::StoreClient(boost::asio::any_io_executor executor, const Config& config, BlockingPool& pool)
    : executor_(executor), config_(config), pool_(pool) {}

ResultTask<void> StoreClient::connect() {
  if (config_.slot_dir.empty()) {
    co_return connect_to_server();
  }
  StoreOptions options = store_options(config_);
  options.look_only = true;
  Result<std::unique_ptr<CheckpointStore>> opened = co_await CheckpointStore::open(std::move(options), files_, pool_);
  if (opened) {
    store_ = std::move(*opened);
    co_return Result<void>{};
  }
  const ErrorCode why = opened.error().code;
  if (why == ErrorCode::unsupported || why == ErrorCode::corrupt) co_return opened.error();  // what was found there, by whoever may look
  Result<void> connected = connect_to_server();
  if (connected) connected = co_await has_named_store();
  if (connected) co_return connected;
  if (connected.error().code == ErrorCode::rejected || connected.error().code == ErrorCode::invalid) {
    Error error = opened.error();
    error.context += "; " + connected.error().context;
    co_return error;
  }
  // A server's directories are often its user's alone, or in a container; but nobody answers.
  if (why == ErrorCode::invalid) co_return connected;  // although somebody has them
  co_return opened.error();
}

ResultTask<void> StoreClient::has_named_store(std::chrono::milliseconds limit) {
  const Result<json::value> status = co_await call("GET", "/cairn/status", {}, limit);
  if (!status) co_return status.error();
  const json::object* members = status->if_object();
  const json::value* named = members == nullptr ? nullptr : members->if_contains("store");
  const json::object* store = named == nullptr ? nullptr : named->if_object();
  const std::string host = server_->address().host_header();
  if (store == nullptr) {
    co_return upstream_error(ErrorCode::rejected, fmt::format("the Cairn at {} has no store: see slot_dir and state_dir, and its log", host));
  }
  const auto told = [store](const char* name) {
    const json::value* value = store->if_contains(name);
    const json::string* text = value == nullptr ? nullptr : value->if_string();
    return text == nullptr ? std::string{} : std::string{*text};
  };
  const std::string its_dir = told("state_dir"), its_id = told("index_id");
  // In a container the same directory may go by another path, and another one by the same.
  const auto same = [&] {
    const std::string id = index_id_in(config_.state_dir);
    return id.empty() ? place_of(its_dir) == place_of(config_.state_dir) : id == its_id;
  };
  if (!its_dir.empty() && co_await pool_.run(same)) co_return Result<void>{};
  co_return disk_error(ErrorCode::invalid,
                       fmt::format("the Cairn at {} has another store than the one in {}: {} (with --listen alone it is asked all the same)",
                                   host, config_.state_dir, its_dir.empty() ? "it is older and does not say which" : "its index is in " + its_dir));
}

Result<void> StoreClient::connect_to_server() {
  const ListenAddress listen = *parse_listen(config_.listen);
  const bool any = listen.host == "0.0.0.0" || listen.host == "::";
  UpstreamAddress address;
  address.host = any ? "127.0.0.1" : listen.host;
  address.port = std::to_string(listen.port);
  address.tls = !config_.tls_certificate.empty();
  UpstreamOptions options;
  if (address.tls) {
    const auto trusted = TlsContext::for_own_server(config_.tls_certificate);
    if (!trusted) return trusted.error();
    options.tls = *trusted;
  }
  server_ = make_upstream(executor_, std::move(address), std::move(options));
  return {};
}

ResultTask<json::value> StoreClient::call(std::string_view method, std::string path, std::string body,
                                          std::chrono::milliseconds limit, HeaderFields* fields) {
  int status = 0;
  std::string text;
  if (store_ != nullptr) {
    const OwnAnswer answer = co_await checkpoints_answer(*store_, std::string(method), path, std::move(body));
    status = answer.status;
    text = answer.body;
  } else {
    RequestHead head;
    head.method = method;
    head.target = path;
    head.fields.add("Content-Type", "application/json");
    // Where Cairn has no key of its own, what is posted there to be warmed goes to the backend with the key that it comes with.
    const bool warms = method == "POST" && path == checkpoints_path;
    const bool own = path.starts_with("/cairn/") && !(warms && config_.own_api_key.empty());
    const std::string& key = own ? config_.own_api_key : config_.backend_api_key;
    if (!key.empty()) head.fields.add("Authorization", "Bearer " + key);
    Upstream::CallOptions options;
    options.timeout = limit;
    Result<Upstream::Answer> answer = co_await server_->call(head, body, options, never_);
    if (!answer) {
      Error error = answer.error();
      error.context = fmt::format("no Cairn answers at {}: {}", server_->address().host_header(), error.context);
      co_return error;
    }
    status = answer->head.status;
    if (fields != nullptr) *fields = answer->head.fields;
    text = std::move(answer->body);
  }
  boost::system::error_code bad;
  json::value value = json::parse(text, bad);
  if (bad) co_return upstream_error(ErrorCode::malformed, fmt::format("{} {}: the answer is no JSON", method, path));
  if (status / 100 == 2) co_return value;
  std::string message = text;
  const auto said = value.find_pointer("/error/message", bad);
  if (!bad && said != nullptr && said->is_string()) message = std::string{said->get_string()};
  Error error = upstream_error(ErrorCode::rejected, std::move(message));
  error.status = status;
  co_return error;
}

}  // namespace cairn

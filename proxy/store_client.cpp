#include "store_client.hpp"

#include <fmt/format.h>

#include <boost/json.hpp>

#include <utility>

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
  if (why == ErrorCode::invalid) co_return connected;  // somebody has it
  // A server's directories are often its user's alone, or in a container.
  if (connected) {
    const Result<json::value> told = co_await call("GET", std::string(checkpoints_path));
    if (told || told.error().code == ErrorCode::rejected) co_return Result<void>{};
  }
  co_return opened.error();
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
                                          std::chrono::milliseconds limit) {
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
    const std::string& key = path.starts_with("/cairn/") ? config_.own_api_key : config_.backend_api_key;
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

// Which request goes where: Cairn's own endpoints, the cached ones, and everything else straight through.
// Thread: the I/O thread. To add an endpoint of the backend: a row in the table of router.cpp; one of Cairn's own: a branch in answer_own().
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "http/own_endpoints.hpp"
#include "http/warmed_prompts.hpp"
#include "observe/metrics.hpp"
#include "request/prompt_body.hpp"
#include "request/recent_requests.hpp"
#include "request/request_handler.hpp"
#include "request/request_record.hpp"
#include "request/served_models.hpp"

namespace cairn {

enum class RouteKind {
  own,       // answered by Cairn
  cached,    // its prompt is known to us
  unpinned,  // uses a slot that we cannot choose
  plain,     // uses none
};

struct Route {
  RouteKind kind = RouteKind::plain;
  PromptForm form = PromptForm::chat;  // for RouteKind::cached
};

Route find_route(std::string_view method, std::string_view path);

class Router final : public RequestHandler {
 public:
  // `own_key`: what Cairn's own endpoints ask for; empty: nothing.
  Router(ServedModels& served, Metrics& metrics, std::size_t max_body_bytes, std::string own_key)
      : served_(served), metrics_(metrics), max_body_bytes_(max_body_bytes), own_key_(std::move(own_key)) {}
  Task<void> handle(Downstream& downstream) override;

 private:
  Task<void> dispatch(Downstream& downstream, RequestRecord& record);
  ResultTask<std::string> read_body(Downstream& downstream, RequestRecord& record);
  Task<void> pass_on(Downstream& downstream, RequestRecord& record, ModelServer& server, std::optional<std::string> body);
  Task<void> answer_own(Downstream& downstream, RequestRecord& record);
  Task<bool> may_ask_cairn(Downstream& downstream, RequestRecord& record);
  // The request that a posted prompt means goes its way, generating nothing.
  Task<void> warm(Downstream& downstream, RequestRecord& record);
  Task<void> send(Downstream& downstream, RequestRecord& record, OwnAnswer answer);

  ServedModels& served_;
  Metrics& metrics_;
  std::size_t max_body_bytes_;
  std::string own_key_;
  RecentRequests recent_;
  WarmedPrompts warmed_;
  std::uint64_t last_id_ = 0;
};

}  // namespace cairn

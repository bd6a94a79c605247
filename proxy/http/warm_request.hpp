// A prompt that is to be computed and saved before anybody asks it: the request that does so.
// Thread: any.
#pragma once

#include <span>
#include <string>

#include "base/result.hpp"
#include "request/downstream.hpp"
#include "request/request_record.hpp"

namespace cairn {

// In the answer: how many tokens Cairn had computed of the prompt when it asked the backend for the rest, whose own counts take them
// for reused.
inline constexpr const char* computed_before_field = "X-Cairn-Computed-Before";

struct WarmRequest {
  std::string path;  // of the endpoint that takes it
  std::string body;
};

// Of a request's body (chat, completion, messages, responses, infill) the same request, generating nothing; of anything else, which is a
// prompt's text, a completion. Errors: invalid, what is wrong with it in words.
Result<WarmRequest> warm_request(const std::string& text);

// `request` as if `client` had sent it; the answer goes to that one. `record`: of the same request.
class WarmingDownstream final : public Downstream {
 public:
  WarmingDownstream(Downstream& client, WarmRequest request, const RequestRecord& record);

  // Where the client's key is `from`, `to` goes up instead; empty: none does.
  void change_key(const std::string& from, const std::string& to);

  const RequestHead& head() const override { return head_; }
  BodyFraming request_framing() const override;
  ResultTask<std::string> read_body(std::size_t max_bytes) override;
  ResultTask<std::size_t> read_some(std::span<char> into) override;
  CancelSource& cancel() override { return client_.cancel(); }
  ResultTask<void> write_head(const ResponseHead& head, BodyFraming framing) override;
  ResultTask<void> write_body(std::span<const char> bytes) override { return client_.write_body(bytes); }
  ResultTask<void> finish() override { return client_.finish(); }
  bool head_written() const override { return client_.head_written(); }
  void abort() override { client_.abort(); }

 private:
  Downstream& client_;
  const RequestRecord& record_;
  RequestHead head_;
  std::string body_;
  std::size_t read_bytes_ = 0;
};

}  // namespace cairn

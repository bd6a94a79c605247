// One request of a client and its answer: the Downstream that the steps of a request see.
// Thread: the I/O thread. Owner: the session; lives from the parsed head to the end of the answer.
#pragma once

#include <chrono>
#include <memory>

#include "backend/http_parser.hpp"
#include "http/client_connection.hpp"
#include "request/downstream.hpp"

namespace cairn {

struct ClientRequestOptions {
  std::size_t max_body_bytes = 256u << 20;
  std::chrono::milliseconds body_timeout{60000};  // without a byte
  std::size_t max_drain_bytes = 64 * 1024;        // of a body that nobody read, to keep the connection
};

class ClientRequest final : public Downstream {
 public:
  // `parser` has parsed the head; the connection's input begins with the body.
  ClientRequest(std::shared_ptr<ClientConnection> connection, MessageParser parser, ClientRequestOptions options);

  const RequestHead& head() const override { return head_; }
  BodyFraming request_framing() const override { return framing_; }
  ResultTask<std::string> read_body(std::size_t max_bytes) override;
  ResultTask<std::size_t> read_some(std::span<char> into) override;
  CancelSource& cancel() override { return cancel_; }
  ResultTask<void> write_head(const ResponseHead& head, BodyFraming framing) override;
  ResultTask<void> write_body(std::span<const char> bytes) override;
  ResultTask<void> finish() override;
  bool head_written() const override { return head_written_; }
  // Before finish(): cuts the connection. After it: only ends a pending read, and the connection's reuse.
  void abort() override;

  // For the session. Begins watching when there is no body to read.
  void begin();
  // Ends the watch, cuts an unfinished answer, drains a small rest of the body. True: the connection can be used again.
  Task<bool> complete();
  // The answer will say that the connection ends after it.
  void forbid_reuse() { reuse_ = false; }
  bool body_read() const { return parser_.done(); }

 private:
  void body_ended();
  void client_gone();
  ResultTask<void> send_continue();
  Error gone() const;

  std::shared_ptr<ClientConnection> connection_;
  MessageParser parser_;
  ClientRequestOptions options_;
  RequestHead head_;
  BodyFraming framing_;
  CancelSource cancel_;
  bool is_head_;
  bool continue_pending_;
  bool reuse_;
  std::uint64_t body_bytes_ = 0;

  BodyFraming answer_;
  std::uint64_t answer_bytes_ = 0;
  bool head_written_ = false;
  bool finished_ = false;
  bool aborted_ = false;
};

}  // namespace cairn

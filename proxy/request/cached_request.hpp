// The steps of a request to a cached endpoint, from its body (read by the router) to the last byte of the answer.
// Thread: the I/O thread. Errors: none come out; what goes wrong is answered, recorded and logged here.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "request/cached_backend.hpp"
#include "request/downstream.hpp"
#include "request/prompt_body.hpp"
#include "request/relay.hpp"
#include "request/request_record.hpp"

namespace cairn {

class CachedRequest {
 public:
  CachedRequest(CachedBackend& backend, Downstream& downstream, RequestRecord& record)
      : backend_(backend), downstream_(downstream), record_(record) {}

  // parse · tokenize · match · acquire (with the plan) · restore · prefill · forward · relay · save. The caller finishes the record.
  Task<void> run(PromptForm form, std::string body);
  // For endpoints that use a slot which we cannot choose: idle slots are saved first, and looked at afterwards. `body`: what was
  // read of it already; nullopt: nothing, it goes up as it comes.
  Task<void> run_unpinned(std::optional<std::string> body);

 private:
  Task<NoCacheReason> understand(PromptForm form);
  ResultTask<Tokens> tokenize(PromptForm form);
  ResultTask<Tokens> tokenize_chat(const std::string& chat);
  Task<bool> derived_right();
  ResultTask<Tokens> tokenize_completion();
  void find_last_message(std::string_view text, std::size_t suffix_bytes, std::size_t tokens);
  ResultTask<Tokens> tokenize_infill();
  Task<void> serve_cached();
  // The best plan over the idle slots; sets plan_.
  // nullopt: it waits for a better slot, as far as it is `patient`.
  std::optional<int> choose(std::span<const int> idle, bool patient);
  SlotOption slot_option(int id, std::int64_t space) const;
  std::vector<RestoreOption> restore_options() const;  // of candidates_
  void announce(const Plan& plan);
  std::vector<WaitOption> waits_worth(bool patient, std::uint32_t own_base) const;
  bool in_pieces() const;  // it may be computed in pieces
  bool own_weights() const { return parsed_.lora.empty(); }  // the model as it was probed
  std::int64_t name_space() const;                           // of its state in a slot
  void ask_for_stop(SlotState& busy, std::uint32_t at, bool save) const;
  void ask_for_stops() const;
  AdmissionInput admission(std::uint32_t done) const;
  double overhead_seconds() const;  // that Cairn has added before anything was computed
  Task<void> show_difference();
  Task<void> leave_to_backend(StartGate& gate);
  Task<void> bring_back();
  // A piece from `done` to `end` tokens would, with those before, leave a stream's client without a head for too long.
  bool would_keep_silent(std::uint32_t done, std::uint32_t end) const;
  Task<void> compute_pieces(StartGate& gate);
  // True: the slot holds the prompt but for a token or a few, whose logits are not to come from a context checkpoint's very end.
  Task<bool> come_from_before();
  // Computes the prompt up to `end` in the slot; false: it could not, or the client has left.
  Task<bool> compute_piece(std::uint32_t end, std::uint32_t expected_base);
  Task<void> make_findable();
  // Sends the (spliced) body and relays the answer; takes the gate and gives it up when the task has begun.
  Task<void> forward(const std::string& body, StartGate& gate);
  Task<void> forward_unpinned(const std::string& body);
  bool knows_the_key() const;
  void find_candidates();
  void plan_again();
  void plan_in_our_slot();  // the same, once the choice cannot be left to the backend any more
  void plan_recompute();
  void account(const std::optional<Timings>& timings, bool computed);
  void note_content();
  double chance_to_return() const;  // of this prompt's conversation
  void learn(std::int64_t reused);
  void note_pieces(std::int64_t reused);
  void backend_is_done();
  void account_unpinned(const Timings& timings);
  MissReason explain() const;
  Task<void> fail(const Error& error);
  Task<bool> has_left();
  Task<bool> is_one_too_many();

  CachedBackend& backend_;
  Downstream& downstream_;
  RequestRecord& record_;

  std::string body_;
  PromptBody parsed_;
  Tokens prompt_;
  std::uint32_t suffix_tokens_ = 0;  // of the template's generation suffix, which the next turn may not repeat
  std::uint32_t system_tokens_ = 0;  // in front of the first user's words; 0: nothing that sessions share, or unknown
  std::uint32_t message_tokens_ = 0;  // in front of the last message; 0: unknown, or there is one alone
  std::uint64_t options_ = 0;          // that the backend may yet refuse
  Catalogue::Known known_;
  std::vector<Catalogue::Candidate> candidates_;
  Plan plan_;
  int slot_ = -1;
  std::uint64_t generation_ = 0;  // of the backend's probe when the slot was given
  SharedServer::Turn turn_;  // until the backend has the request
  std::optional<CachedBackend::Presence> presence_;
  std::optional<CachedBackend::Foreign> foreign_;
  Lease lease_;
  std::uint32_t base_common_ = 0;  // what the prompt and the state that it goes on from share
  std::uint32_t base_length_ = 0;  // how long that state was
  bool base_by_length_ = false;
  std::uint64_t base_epoch_ = 0;      // of requests that may use any slot, when we went on from it,
  bool base_beside_foreign_ = false;  // or one ran
  std::int64_t first_reused_ = -1;  // cache_n of the first task of this request
  std::int64_t computed_in_pieces_ = 0;
  bool learned_ = false;
  std::vector<std::uint32_t> kept_stops_;
  std::vector<std::uint32_t> stops_made_;
  bool pieces_lost_ = false;  // somebody cleared or took the slot between two of them
  double inline_saves_s_ = 0;
  bool restore_failed_ = false;
};

}  // namespace cairn

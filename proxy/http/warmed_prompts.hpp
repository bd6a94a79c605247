// The latest prompts that were posted to be saved ahead of time, by the number that their answers carry.
// Thread: the I/O thread. Owner: the router.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <random>
#include <string_view>

#include "http/own_endpoints.hpp"
#include "request/warmed_prompt.hpp"

namespace cairn {

// In the answer: the number under which `GET /cairn/checkpoints/warmed/NUMBER` says what became of the prompt.
inline constexpr const char* warmed_field = "X-Cairn-Warmed";
inline constexpr std::string_view warmed_path = "/cairn/checkpoints/warmed/";

class WarmedPrompts {
 public:
  // Its number is no other Cairn's, that ran before this one, say.
  std::shared_ptr<WarmedPrompt> add();
  // {"id": …, "outcome": "waiting", "saved", "there", "not_worth_saving" or "failed", "why": …}. 404: it is not known, or not any more.
  // `number`: what follows warmed_path.
  OwnAnswer answer(std::string_view number) const;

 private:
  static constexpr std::size_t kept = 64;
  static constexpr std::size_t kept_tokens = 4u << 20;  // of all but the latest
  std::deque<std::shared_ptr<WarmedPrompt>> latest_;    // first
  std::uint64_t last_id_ = std::uint64_t{std::random_device{}()} << 20U;  // below 2^53: exact in JSON
};

}  // namespace cairn

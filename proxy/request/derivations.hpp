// Whether the prompts that Cairn derives for one kind of body are those of the backend: asked of it beforehand as long as that is
// open, told by each answer afterwards.
// Thread: the I/O thread. Owner: one backend.
#pragma once

#include <array>
#include <cstddef>

#include "request/prompt_body.hpp"

namespace cairn {

class Derivations {
 public:
  // The backend should be asked how long its prompt is, before anything is computed of ours.
  bool open(PromptForm form) const { return to_prove_[index(form)] > 0; }
  void agreed(PromptForm form) {
    if (int& left = to_prove_[index(form)]; left > 0) --left;
  }
  void differed(PromptForm form) { to_prove_[index(form)] = proofs_after_difference; }
  // Another backend.
  void reset() { to_prove_.fill(proofs_at_first); }

 private:
  static std::size_t index(PromptForm form) { return static_cast<std::size_t>(form); }
  static constexpr int proofs_at_first = 2;
  static constexpr int proofs_after_difference = 16;
  std::array<int, prompt_form_count> to_prove_ = [] {
    std::array<int, prompt_form_count> all{};
    all.fill(proofs_at_first);
    return all;
  }();
};

}  // namespace cairn

// How a model behaves: the log-probabilities of the likeliest tokens after a fixed prompt, as a namespace keeps them.
// Pure.
#pragma once

#include <string>
#include <vector>

#include "backend/llama_api.hpp"

namespace cairn {

std::string pack_logprobs(const std::vector<TopLogprob>& top);

// Whether the same weights may have given both. The likeliest half must be there on both sides with nearly the same value; the tail may
// change places.
bool same_behaviour(const std::string& packed, const std::vector<TopLogprob>& top);

}  // namespace cairn

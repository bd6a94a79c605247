// `cairn check`: validates the configuration, talks to the backend, and says in words what was found and what to change.
#pragma once

#include "config.hpp"

namespace cairn {

// Exit status: 0 when Cairn can work, 1 when it cannot.
int check(const Config& config);

}  // namespace cairn

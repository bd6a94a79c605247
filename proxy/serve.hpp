// `cairn serve`: puts the parts together, runs them on one thread, and takes them down in order.
#pragma once

#include "config.hpp"

namespace cairn {

// Returns the process's exit status: 0 after a signal, 1 when it could not begin.
int serve(const Config& config);

}  // namespace cairn

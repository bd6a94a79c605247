// Refuses request heads that two parsers could read in two ways, before anything else looks at them.
// Errors: none; a rejection says which status to answer with.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

namespace cairn {

struct HeadRejection {
  int status = 400;
  std::string reason;
};

// Where the first head in `bytes` ends, its empty line included; nullopt while it is not whole. `scanned` is how far an
// earlier call has looked (0 at first). Bare line feeds end a head too: check_head() refuses it then, instead of waiting.
std::optional<std::size_t> find_head_end(std::string_view bytes, std::size_t& scanned);

// `head` is a whole head with its empty line.
std::optional<HeadRejection> check_head(std::string_view head);

}  // namespace cairn

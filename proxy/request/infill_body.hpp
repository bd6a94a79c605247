// The parts of a request to /infill (fill in the middle).
// Pure.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/result.hpp"

namespace cairn {

// Other files that come before the one to fill.
struct InfillFile {
  std::string name;
  std::string text;
};

struct InfillBody {
  std::string prefix;
  std::string suffix;
  std::string prompt;  // what the answer begins with
  std::vector<InfillFile> files;
};

// Errors: downstream malformed, for what the backend would refuse or is not text.
Result<InfillBody> parse_infill_body(std::string_view body);

}  // namespace cairn

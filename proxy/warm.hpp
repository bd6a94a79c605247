// `cairn warm`: has prompts computed and saved before anybody asks them.
#pragma once

#include <string>
#include <vector>

#include "base/task.hpp"
#include "store_client.hpp"

namespace cairn {

// One after the other through the server's front door, without generating. No files, or "-": stdin. Returns the exit status: 1 when one
// of them could not be read, was refused or was not saved, unless that is not worth it. What became of each the server says.
Task<int> warm(StoreClient& server, const std::vector<std::string>& files, bool as_json);

}  // namespace cairn

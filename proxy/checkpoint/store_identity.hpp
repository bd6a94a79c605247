// Which store it is: for those who are told of one and may mean another.
// Thread: one that may wait for the disk. Errors: none; what cannot be read is empty.
#pragma once

#include <string>
#include <string_view>

namespace cairn {

// Random, and beside the states, too: an empty index at the same path may be there because the true one's disk is late.
inline constexpr std::string_view index_id_setting = "index_id";

std::string index_in(const std::string& state_dir);

// Of the index there, which another process may have open.
std::string index_id_in(const std::string& state_dir);

}  // namespace cairn

// What tells one model file from another of the same name, size and make: states of the one must not be put into the other.
// Thread: a pool thread (it reads a file).
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace cairn {

// Hex digits of a hash over the file's size and blocks from its beginning to its end (a small one whole), and of the other files
// when it is split (`NAME-00001-of-00003.gguf`). nullopt when one of them cannot be read.
std::optional<std::string> sample_weights(const std::string& path);

// What the file of each process of a backend gave when it was first looked at, as JSON for the index: it may be replaced under a process
// that goes on with what it has loaded. `kept` may be empty. Any thread.
std::optional<std::string> first_sample(std::string_view kept, std::string_view process);
std::string with_first_sample(std::string_view kept, std::string_view process, std::string_view sample);

}  // namespace cairn

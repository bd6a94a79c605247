// What tells one model file from another of the same name, size and make: states of the one must not be put into the other.
// Thread: a pool thread (it reads a file).
#pragma once

#include <optional>
#include <string>

namespace cairn {

// Hex digits of a hash over the file's size and blocks from its beginning to its end (a small one whole), and of the other files
// when it is split (`NAME-00001-of-00003.gguf`). nullopt when one of them cannot be read.
std::optional<std::string> sample_weights(const std::string& path);

}  // namespace cairn

// Where a directory is, whatever it is called: with or without a slash at its end, by '..', a symbolic link, or from here.
#pragma once

#include <filesystem>
#include <string>
#include <system_error>

namespace cairn {

// An absolute path. Of what is not there, or we may not look at, as far as can be told.
inline std::string place_of(const std::string& directory) {
  std::error_code failed;
  std::filesystem::path place = std::filesystem::absolute(directory, failed);
  if (failed) return directory;
  const std::filesystem::path found = std::filesystem::weakly_canonical(place, failed);
  place = failed ? place.lexically_normal() : found;
  return (place.has_filename() ? place : place.parent_path()).string();
}

}  // namespace cairn

#include "checkpoint/store_identity.hpp"

#include <filesystem>
#include <map>
#include <memory>
#include <system_error>

#include "checkpoint/index.hpp"

namespace cairn {

std::string index_in(const std::string& state_dir) { return state_dir + "/index.sqlite"; }

std::string canonical_state_dir(const std::string& state_dir) {
  std::error_code failed;
  const std::filesystem::path path = std::filesystem::weakly_canonical(std::filesystem::absolute(state_dir), failed);
  const std::filesystem::path& shown = failed ? std::filesystem::path(state_dir) : path;
  return (shown.has_filename() ? shown : shown.parent_path()).string();
}

std::string index_id_in(const std::string& state_dir) {
  const Result<std::unique_ptr<Index>> index = Index::open(index_in(state_dir), Index::Missing::not_found);
  if (!index) return {};
  const Result<std::map<std::string, std::string>> settings = (*index)->settings();
  if (!settings) return {};
  const auto id = settings->find(std::string(index_id_setting));
  return id == settings->end() ? std::string{} : id->second;
}

}  // namespace cairn

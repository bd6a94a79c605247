#include "checkpoint/store_identity.hpp"

#include <map>
#include <memory>

#include "checkpoint/index.hpp"

namespace cairn {

std::string index_in(const std::string& state_dir) { return state_dir + "/index.sqlite"; }

std::string index_id_in(const std::string& state_dir) {
  const Result<std::unique_ptr<Index>> index = Index::open(index_in(state_dir), Index::Missing::not_found);
  if (!index) return {};
  const Result<std::map<std::string, std::string>> settings = (*index)->settings();
  if (!settings) return {};
  const auto id = settings->find(std::string(index_id_setting));
  return id == settings->end() ? std::string{} : id->second;
}

}  // namespace cairn

#include "request/weights_sample.hpp"

#include <fmt/format.h>
#include <xxhash.h>

#include <boost/json.hpp>

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

namespace cairn {

namespace {

constexpr std::uint64_t whole_bytes = 64u << 20;  // up to here nothing is left out
constexpr std::uint64_t chunk_bytes = 1u << 20;
constexpr std::uint64_t block_bytes = 4096;
constexpr std::uint64_t blocks = 256;  // a change of one layer in a hundred is hardly missed

struct FreeHash {
  void operator()(XXH3_state_t* state) const { XXH3_freeState(state); }
};
using Hash = std::unique_ptr<XXH3_state_t, FreeHash>;

bool add_block(std::ifstream& in, std::uint64_t at, std::uint64_t bytes, const Hash& hash) {
  std::vector<char> data(bytes);
  in.seekg(static_cast<std::streamoff>(at));
  if (!in.read(data.data(), static_cast<std::streamsize>(bytes))) return false;
  return XXH3_128bits_update(hash.get(), data.data(), data.size()) == XXH_OK;
}

bool add_file(const std::string& path, const Hash& hash) {
  std::error_code failed;
  if (!std::filesystem::is_regular_file(path, failed)) return false;
  const std::uint64_t size = std::filesystem::file_size(path, failed);
  std::ifstream in(path, std::ios::binary);
  if (failed || !in) return false;
  if (XXH3_128bits_update(hash.get(), &size, sizeof size) != XXH_OK) return false;
  if (size <= whole_bytes) {
    for (std::uint64_t at = 0; at < size; at += chunk_bytes) {
      if (!add_block(in, at, std::min(chunk_bytes, size - at), hash)) return false;
    }
    return true;
  }
  for (std::uint64_t i = 0; i < blocks; ++i) {
    if (!add_block(in, (size - block_bytes) / (blocks - 1) * i, block_bytes, hash)) return false;
  }
  return add_block(in, size - block_bytes, block_bytes, hash);
}

// All files of a model that is split; else the one.
std::vector<std::string> files_of(const std::string& path) {
  constexpr std::string_view first = "-00001-of-", pattern = "-00001-of-00003.gguf";
  const std::size_t base = path.size() < pattern.size() ? 0 : path.size() - pattern.size();
  int count = 0;
  if (path.ends_with(".gguf") && path.compare(base, first.size(), first) == 0) {
    const char* const digits = path.data() + base + first.size();
    (void)std::from_chars(digits, digits + 5, count);
  }
  if (count <= 1) return {path};
  std::vector<std::string> files;
  for (int i = 1; i <= count; ++i) files.push_back(fmt::format("{}-{:05}-of-{:05}.gguf", path.substr(0, base), i, count));
  return files;
}

// Pairs of process and sample, latest first.
using FirstSamples = std::vector<std::pair<std::string, std::string>>;

FirstSamples read_first_samples(std::string_view kept) {
  boost::system::error_code error;
  const boost::json::value json = boost::json::parse(kept, error);
  if (error) return {};
  auto samples = boost::json::try_value_to<FirstSamples>(json);
  return samples ? std::move(*samples) : FirstSamples{};
}

}  // namespace

std::optional<std::string> sample_weights(const std::string& path) {
  Hash hash{XXH3_createState()};
  if (hash == nullptr) return std::nullopt;
  if (XXH3_128bits_reset(hash.get()) != XXH_OK) return std::nullopt;
  for (const std::string& file : files_of(path)) {
    if (!add_file(file, hash)) return std::nullopt;
  }
  const XXH128_hash_t sum = XXH3_128bits_digest(hash.get());
  return fmt::format("{:016x}{:016x}", sum.high64, sum.low64);
}

std::optional<std::string> first_sample(std::string_view kept, std::string_view process) {
  for (auto& [name, sample] : read_first_samples(kept)) {
    if (name == process) return std::move(sample);
  }
  return std::nullopt;
}

std::string with_first_sample(std::string_view kept, std::string_view process, std::string_view sample) {
  constexpr std::size_t remembered = 64;  // processes
  FirstSamples samples = read_first_samples(kept);
  std::erase_if(samples, [&](const auto& one) { return one.first == process; });
  samples.emplace(samples.begin(), process, sample);
  if (samples.size() > remembered) samples.resize(remembered);
  return boost::json::serialize(boost::json::value_from(samples));
}

}  // namespace cairn

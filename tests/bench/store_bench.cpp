// Start-up at size: an index whose saved states hold 100 million tokens in all, opened through CheckpointStore::open and
// Catalogue::load. The state files are empty but for their length; they and the index lie where TMPDIR says.
#include <benchmark/benchmark.h>
#include <fcntl.h>
#include <unistd.h>

#include <filesystem>
#include <random>
#include <stdexcept>
#include <string>

#include "checkpoint/catalogue.hpp"
#include "checkpoint/index.hpp"
#include "checkpoint/store_disk.hpp"
#include "unit/run_to_end.hpp"

namespace cairn {
namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t kFileBytes = 4096;

class Folder {
 public:
  Folder() {
    std::string pattern = (fs::temp_directory_path() / "cairn-bench-XXXXXX").string();
    if (::mkdtemp(pattern.data()) == nullptr) throw std::runtime_error("mkdtemp " + pattern);
    path_ = pattern;
    fs::create_directory(slots());
    fs::create_directory(state());
  }
  ~Folder() { fs::remove_all(path_); }
  std::string slots() const { return path_ + "/slots"; }
  std::string state() const { return path_ + "/state"; }

 private:
  std::string path_;
};

// `states` of `tokens` each that share nothing: the most that an index of so many tokens can be.
void fill(const Folder& folder, std::size_t states, std::size_t tokens) {
  auto index = Index::open(folder.state() + "/index.sqlite");
  if (!index) throw std::runtime_error(to_string(index.error()));
  NamespaceRecord model;
  model.identity = "{}";
  model.facts = "{}";
  const auto name_space = (*index)->add_namespace(model);
  if (!name_space) throw std::runtime_error(to_string(name_space.error()));
  std::mt19937 random(1);
  Tokens prompt(tokens);
  for (std::size_t i = 0; i < states; ++i) {
    for (std::size_t t = 0; t < tokens; ++t) prompt[t] = static_cast<Token>(random() % 150'000);
    CheckpointRecord record;
    record.namespace_id = *name_space;
    record.file_name = new_base_name() + std::string(state_suffix);
    record.token_count = static_cast<std::uint32_t>(tokens);
    record.kind = CheckpointKind::checkpointed;
    record.bytes = kFileBytes;
    record.resume_positions = {static_cast<std::uint32_t>(tokens / 2)};
    const std::string path = folder.slots() + "/" + record.file_name;
    const int file = ::open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    if (file < 0 || ::ftruncate(file, kFileBytes) != 0) throw std::runtime_error("create " + path);
    ::close(file);
    record.files = {FileStamp{"", kFileBytes, i, 0, 0}};
    if (const auto added = (*index)->add_checkpoint(record, prompt); !added) throw std::runtime_error(to_string(added.error()));
  }
}

void start_up(benchmark::State& state) {
  const auto states = static_cast<std::size_t>(state.range(0));
  const auto tokens = static_cast<std::size_t>(state.range(1));
  const Folder folder;
  fill(folder, states, tokens);
  PosixFileLayer files;
  BlockingPool pool(2);
  StoreOptions options;
  options.slot_dir = folder.slots();
  options.state_dir = folder.state();
  options.budget_bytes = std::uint64_t{1} << 50;
  for (auto _ : state) {
    {
      auto store = test::run_to_end(CheckpointStore::open(options, files, pool));
      if (!store) throw std::runtime_error(to_string(store.error()));
      Catalogue catalogue(**store, std::uint64_t{1} << 40);
      const auto loaded = test::run_to_end(catalogue.load());
      state.PauseTiming();  // taking it all down is no part of it
      if (!loaded || *loaded != states) state.SkipWithError("not all of them came back");
      state.counters["distinct_tokens"] = static_cast<double>(catalogue.totals().tokens);
      state.counters["tree_bytes_a_token"] = static_cast<double>(catalogue.totals().bytes) / static_cast<double>(catalogue.totals().tokens);
    }
    state.ResumeTiming();
  }
}
BENCHMARK(start_up)
    ->ArgNames({"states", "tokens"})
    ->Args({1'000, 100'000})
    ->Args({100'000, 1'000})
    ->Args({1'000'000, 100})
    ->Iterations(1)
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace cairn

BENCHMARK_MAIN();

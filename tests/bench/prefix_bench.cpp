// The prefix tree at size: a million prompts, 100 million distinct tokens. Prints time and memory (resident, measured).
#include <benchmark/benchmark.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <random>
#include <vector>

#include "prefix/prefix_tree.hpp"

namespace cairn {
namespace {

constexpr std::size_t kPrompts = 1'000'000;
constexpr std::size_t kNewTokens = 90;  // a prompt adds, after it left an earlier one in mid-edge
constexpr std::size_t kLongPrompts = 100;
constexpr std::size_t kLongTokens = 100'000;
constexpr std::uint32_t kDeepest = 4'000;  // of the short ones: bounds the time to build
constexpr std::size_t kBranchesOffEachLong = 1'000;

std::uint64_t resident_bytes() {
  std::uint64_t size = 0, resident = 0;
  std::ifstream("/proc/self/statm") >> size >> resident;
  return resident * static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE));
}

struct Loaded {
  PrefixTree tree;
  std::vector<Tokens> long_prompts;
  std::vector<NodeId> leaves;
  std::uint64_t resident_bytes_grown = 0;
};

Token draw_token(std::mt19937& random) { return static_cast<Token>(random() % 150'000); }

// Every prompt but the first thousand leaves another in mid-edge, so that there are two nodes a prompt: the worst case
// for memory. The long ones are met by a thousand branches each, or by none (the second half).
Loaded& loaded() {
  static Loaded it = [] {
    Loaded made;
    std::mt19937 random(1);
    made.long_prompts.resize(kLongPrompts, Tokens(kLongTokens));
    for (Tokens& prompt : made.long_prompts) {
      for (Token& token : prompt) token = draw_token(random);
    }
    made.leaves.reserve(kPrompts);
    const std::uint64_t before = resident_bytes();
    std::int64_t now_ms = 0;
    Tokens prompt;
    const auto add = [&](std::size_t new_tokens) {
      for (std::size_t i = 0; i < new_tokens; ++i) prompt.push_back(draw_token(random));
      made.leaves.push_back(made.tree.insert(prompt, ++now_ms).leaf);
    };
    for (const Tokens& tokens : made.long_prompts) made.leaves.push_back(made.tree.insert(tokens, ++now_ms).leaf);
    for (std::size_t i = 0; i < kLongPrompts / 2; ++i) {
      for (std::size_t branch = 0; branch < kBranchesOffEachLong; ++branch) {
        prompt.assign(made.long_prompts[i].begin(), made.long_prompts[i].begin() + 1 + random() % (kLongTokens - 1));
        add(kNewTokens);
      }
    }
    const std::size_t first_short = made.leaves.size();
    while (made.leaves.size() < kPrompts) {
      const std::size_t known = made.leaves.size() - first_short;
      prompt.clear();
      if (known >= 1000) {
        const NodeId other = made.leaves[first_short + random() % known];
        const std::uint32_t end = std::min(made.tree.end_tokens(other), kDeepest);
        prompt = made.tree.tokens_to(other, end - 1 - random() % std::min<std::uint32_t>(end - 1, kNewTokens));
      }
      add(kNewTokens);
    }
    made.resident_bytes_grown = resident_bytes() - before;
    return made;
  }();
  return it;
}

void memory(benchmark::State& state) {
  const Loaded& it = loaded();
  for (auto _ : state) benchmark::DoNotOptimize(it.tree.nodes());
  const auto tokens = static_cast<double>(it.tree.edge_tokens_held());
  state.counters["prompts"] = static_cast<double>(it.leaves.size());
  state.counters["distinct_tokens"] = tokens;
  state.counters["nodes"] = static_cast<double>(it.tree.nodes());
  state.counters["resident_bytes_a_token"] = static_cast<double>(it.resident_bytes_grown) / tokens;
  state.counters["held_bytes_a_token"] = static_cast<double>(it.tree.bytes_held()) / tokens;
}
BENCHMARK(memory)->Iterations(1);

// arg 1: the prompt's path is about a thousand nodes; 0: one edge. 50 prompts in turn, 40 MB: no cache holds them.
// The median of single matches stands beside the mean, which others on the same cores spoil.
void match_100k_tokens(benchmark::State& state) {
  const Loaded& it = loaded();
  std::size_t next = 0;
  std::vector<double> took_us;
  for (auto _ : state) {
    const Tokens& prompt = it.long_prompts[next++ % (kLongPrompts / 2) + (state.range(0) ? 0 : kLongPrompts / 2)];
    const auto begin = std::chrono::steady_clock::now();
    const auto match = it.tree.match(prompt);
    took_us.push_back(std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - begin).count());
    if (match.matched_tokens != kLongTokens) state.SkipWithError("no match");
  }
  std::nth_element(took_us.begin(), took_us.begin() + static_cast<std::ptrdiff_t>(took_us.size() / 2), took_us.end());
  state.counters["median_us"] = took_us[took_us.size() / 2];
  state.counters["least_us"] = *std::min_element(took_us.begin(), took_us.end());
}
BENCHMARK(match_100k_tokens)->ArgName("branched")->Arg(0)->Arg(1)->Unit(benchmark::kMicrosecond);

void match_short_prompt(benchmark::State& state) {
  const Loaded& it = loaded();
  std::mt19937 random(2);
  std::vector<Tokens> prompts;
  for (int i = 0; i < 20'000; ++i) prompts.push_back(it.tree.tokens_to(it.leaves[random() % it.leaves.size()]));
  std::size_t next = 0;
  for (auto _ : state) benchmark::DoNotOptimize(it.tree.match(prompts[next++ % prompts.size()]));
}
BENCHMARK(match_short_prompt)->Unit(benchmark::kMicrosecond);

void insert_known_100k_tokens(benchmark::State& state) {
  Loaded& it = loaded();
  std::size_t next = 0;
  for (auto _ : state) it.tree.insert(it.long_prompts[next++ % (kLongPrompts / 2)], 1);
}
BENCHMARK(insert_known_100k_tokens)->Unit(benchmark::kMicrosecond);

void build_wide_root(benchmark::State& state) {
  for (auto _ : state) {
    PrefixTree tree;
    for (Token i = 0; i < 1'000'000; ++i) tree.insert(std::vector<Token>{i, 1, 2}, i);
    benchmark::DoNotOptimize(tree.match(std::vector<Token>{777'777, 1, 2}));
  }
}
BENCHMARK(build_wide_root)->Iterations(1)->Unit(benchmark::kMillisecond);

// A million prompts of 100 tokens of their own: what start-up from the index pays for the tree.
void build_million_prompts(benchmark::State& state) {
  std::mt19937 random(3);
  Tokens tokens(100'000'000);
  for (Token& token : tokens) token = draw_token(random);
  for (auto _ : state) {
    PrefixTree tree;
    for (std::size_t i = 0; i < kPrompts; ++i) tree.insert(TokenSpan(tokens).subspan(i * 100, 100), 1);
    benchmark::DoNotOptimize(tree.nodes());
  }
}
BENCHMARK(build_million_prompts)->Iterations(1)->Unit(benchmark::kMillisecond);

// Last, for it eats the tree: half of it in small steps. The longest one holds a compaction.
void trim_10000_tokens(benchmark::State& state) {
  PrefixTree& tree = loaded().tree;
  double longest_ms = 0;
  for (auto _ : state) {
    const auto begin = std::chrono::steady_clock::now();
    tree.trim(tree.edge_tokens_held() - 10'000);
    const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - begin;
    longest_ms = std::max(longest_ms, took.count());
  }
  state.counters["longest_ms"] = longest_ms;
  state.counters["held_bytes_a_token"] =
      static_cast<double>(tree.bytes_held()) / static_cast<double>(tree.edge_tokens_held());
}
BENCHMARK(trim_10000_tokens)->Iterations(5000)->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace cairn

BENCHMARK_MAIN();

#include "simulate/simulation.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <boost/json.hpp>

#include <algorithm>
#include <cmath>
#include <iostream>
#include <random>
#include <set>

#include "simulate/report.hpp"

namespace cairn {
namespace {

constexpr std::uint32_t block = 10;

void add(Trace& trace, double at_s, const Tokens& blocks) {
  trace.block_tokens = block;
  trace.requests.push_back(TraceRequest{at_s, static_cast<std::uint32_t>(blocks.size()) * block, 1, trace.blocks.size(), static_cast<std::uint32_t>(blocks.size())});
  trace.blocks.insert(trace.blocks.end(), blocks.begin(), blocks.end());
}

// Prompts that repeat, go on from, or leave earlier ones; a second apart, so that no two uses tie.
Trace random_trace(std::mt19937& random, int requests) {
  Trace trace;
  std::vector<Tokens> known;
  for (int i = 0; i < requests; ++i) {
    Tokens prompt;
    if (!known.empty() && random() % 4 != 0) {
      prompt = known[known.size() - 1 - random() % std::min<std::size_t>(known.size(), 8)];
      prompt.resize(random() % (prompt.size() + 1));
    }
    const std::size_t more = prompt.empty() ? 1 + random() % 6 : random() % 6;
    for (std::size_t k = 0; k < more; ++k) prompt.push_back(static_cast<Token>(random() % 3));
    if (prompt.empty()) prompt.push_back(7);
    known.push_back(prompt);
    add(trace, i, prompt);
  }
  return trace;
}

// The same by brute force: whole states as sequences, least recently used.
struct NaiveLru {
  struct State {
    Tokens tokens;
    double used_s = 0;
    int id = 0;
  };
  MemoryKind kind;
  double bytes_a_state, bytes_a_token;
  std::uint64_t budget;
  std::vector<State> states;
  std::uint64_t reused = 0, evictions = 0;
  int last_id = 0;

  std::uint64_t bytes_of(const State& state) const { return static_cast<std::uint64_t>(state.tokens.size() * block * bytes_a_token + bytes_a_state); }
  std::uint64_t bytes() const {
    std::uint64_t sum = 0;
    for (const State& state : states) sum += bytes_of(state);
    return sum;
  }
  static bool covers(const State& longer, const State& shorter) { return common_prefix(longer.tokens, shorter.tokens) == shorter.tokens.size(); }

  // What it may reuse; which of equal states is used decides what goes later, so the simulation's choice is not predicted
  // where states tie: only kinds whose best state is unique are compared after evictions.
  std::uint32_t usable(TokenSpan prompt) const {
    std::size_t best = 0;
    for (const State& state : states) {
      const std::size_t common = common_prefix(state.tokens, prompt);
      if (kind == MemoryKind::truncatable || common == state.tokens.size()) best = std::max(best, common);
    }
    return static_cast<std::uint32_t>(best);
  }
  void step(TokenSpan prompt, double now_s) {
    const std::uint32_t tokens = usable(prompt) * block;
    reused += std::min(tokens, static_cast<std::uint32_t>(prompt.size()) * block - 1);
    for (State& state : states) {
      if (kind == MemoryKind::exact && tokens > 0 && state.tokens.size() * block == tokens && common_prefix(state.tokens, prompt) == state.tokens.size()) state.used_s = now_s;
    }
    State fresh{Tokens(prompt.begin(), prompt.end()), now_s, ++last_id};
    if (budget > 0 && bytes_of(fresh) > budget) return;
    for (const State& state : states) {
      if (state.tokens == fresh.tokens) return;
    }
    if (kind == MemoryKind::truncatable) {
      std::erase_if(states, [&](const State& state) { return covers(fresh, state); });
    }
    states.push_back(fresh);
    while (budget > 0 && bytes() > budget) {
      const auto oldest = std::min_element(states.begin(), states.end(), [](const State& a, const State& b) {
        return a.used_s != b.used_s ? a.used_s < b.used_s : a.id < b.id;
      });
      states.erase(oldest);
      ++evictions;
    }
  }
};

SimulationOptions options_of(MemoryKind kind, std::uint64_t budget) {
  SimulationOptions options;
  options.profile.kind = kind;
  options.profile.bytes_a_token = 10;
  options.profile.bytes_a_state = 300;
  options.profile.prefill_tokens_per_s = 1;
  options.profile.restore_bytes_per_s = 1e12;
  options.budget_bytes = budget;
  return options;
}

TEST(Simulation, AgreesWithANaiveModelOnRandomTraces) {
  const auto seed = std::random_device{}();
  std::cout << "seed " << seed << '\n';
  std::mt19937 random(seed);
  for (int round = 0; round < 60; ++round) {
    const Trace trace = random_trace(random, 150);
    for (const MemoryKind kind : {MemoryKind::truncatable, MemoryKind::exact}) {
      // Unbounded for states that can be cut: of equal ones either may be touched.
      const std::uint64_t budget = kind == MemoryKind::exact ? 1500 + random() % 4000 : 0;
      NaiveLru model{.kind = kind, .bytes_a_state = 300, .bytes_a_token = 10, .budget = budget};
      for (const TraceRequest& request : trace.requests) model.step(trace.prompt(request), request.at_s);
      LruPolicy lru;
      const SimulationResult result = simulate(trace, options_of(kind, budget), lru);
      ASSERT_EQ(result.reused_tokens, model.reused) << "round " << round << ' ' << to_string(kind);
      ASSERT_EQ(result.evictions, model.evictions) << "round " << round << ' ' << to_string(kind);
      ASSERT_EQ(result.held_bytes, model.bytes()) << "round " << round << ' ' << to_string(kind);
    }
  }
}

TEST(Simulation, NoPolicyExceedsItsBudgetOrTheUnboundedCache) {
  const auto seed = std::random_device{}();
  std::cout << "seed " << seed << '\n';
  std::mt19937 random(seed);
  const Trace trace = random_trace(random, 600);
  for (const char* name : {"value", "lru", "gdsf", "marconi"}) {
    for (const MemoryKind kind : {MemoryKind::truncatable, MemoryKind::checkpointed, MemoryKind::exact}) {
      SCOPED_TRACE(std::string{name} + " " + std::string{to_string(kind)});
      SimulationOptions options = options_of(kind, 0);
      options.profile.interval_tokens = 2 * block;
      const SimulationResult all = simulate(trace, options, *make_policy(name));
      EXPECT_EQ(all.evictions, 0u);
      for (const std::uint64_t budget : {1200u, 4000u, 12000u}) {
        options.budget_bytes = budget;
        options.low_water = 0.9;
        const SimulationResult result = simulate(trace, options, *make_policy(name));
        EXPECT_LE(result.held_bytes, budget);
        EXPECT_LE(result.reused_tokens, all.reused_tokens);
        EXPECT_EQ(result.prompt_tokens, all.prompt_tokens);
        EXPECT_NEAR(result.computed_s, static_cast<double>(result.prompt_tokens - result.reused_tokens), 1e-3 * all.cold_s);
      }
    }
  }
}

// Many at the same time, whose order then nobody's states may decide.
TEST(Simulation, SeveralBudgetsAtOnceGiveWhatEachGivesAlone) {
  const auto seed = std::random_device{}();
  std::cout << "seed " << seed << '\n';
  std::mt19937 random(seed);
  Trace trace = random_trace(random, 2000);
  for (TraceRequest& request : trace.requests) request.at_s = std::floor(request.at_s / 5) * 5;
  const std::vector<std::uint64_t> budgets{0, 1200, 4000, 12000, 40000};
  for (const char* name : {"value", "lru", "gdsf", "marconi"}) {
    for (const MemoryKind kind : {MemoryKind::truncatable, MemoryKind::checkpointed, MemoryKind::exact}) {
      for (const bool cut : {false, true}) {
        SCOPED_TRACE(std::string{name} + " " + std::string{to_string(kind)} + (cut ? " cut" : ""));
        SimulationOptions options = options_of(kind, 0);
        options.profile.interval_tokens = 2 * block;
        options.cut = cut;
        const std::vector<SimulationResult> together = simulate(trace, options, name, budgets);
        ASSERT_EQ(together.size(), budgets.size());
        for (std::size_t i = 0; i < budgets.size(); ++i) {
          options.budget_bytes = budgets[i];
          EXPECT_EQ(together[i], simulate(trace, options, *make_policy(name))) << "budget " << budgets[i];
        }
      }
    }
  }
}

// One conversation in a stream of prompts that never come back, in room for two states.
TEST(Simulation, PromptsThatNeverReturnDoNotDriveOutAConversation) {
  Trace trace;
  Tokens chat(30, 1);
  Token fresh = 100;
  for (int turn = 0; turn < 60; ++turn) {
    add(trace, turn * 10, chat);
    chat.push_back(2);
    for (int other = 0; other < 3; ++other) add(trace, turn * 10 + 1 + other, Tokens(80, fresh++));
  }
  SimulationOptions options = options_of(MemoryKind::truncatable, 2 * (90 * block * 10 + 300));
  ValuePolicy value;
  LruPolicy lru;
  const double learned = simulate(trace, options, value).hit_rate();
  EXPECT_GT(learned, 2 * simulate(trace, options, lru).hit_rate());
}

// The latest is worth the most, except that what is as long as `favourite` comes before all.
class FavouritePolicy final : public EvictionPolicy {
 public:
  explicit FavouritePolicy(std::uint32_t favourite) : favourite_(favourite) {}
  bool judges_new_states() const override { return true; }
  double score(const CheckpointFacts& record, const StateWorth&, std::int64_t) override {
    return static_cast<double>(record.last_used_unix_ms) + (record.token_count == favourite_ ? 1e12 : 0);
  }

 private:
  std::uint32_t favourite_;
};

TEST(Simulation, AStateStaysWhereALongerOneOfItsBranchIsDeclined) {
  Trace trace;
  add(trace, 0, Tokens(50, 1));
  add(trace, 1, Tokens(10, 2));
  add(trace, 2, Tokens(60, 2));  // goes on from the one before; room only where the first is
  add(trace, 3, Tokens(60, 2));
  add(trace, 4, Tokens(50, 1));
  SimulationOptions options = options_of(MemoryKind::truncatable, 60 * block * 10 + 2 * 300);
  FavouritePolicy policy(50 * block);
  options.cut = false;
  const SimulationResult whole = simulate(trace, options, policy);
  EXPECT_EQ(whole.reused_tokens, 10 * block + 10 * block + 50 * block - 1);
  EXPECT_EQ(whole.superseded, 0u);
  EXPECT_EQ(whole.held_bytes, options.budget_bytes);
}

TEST(Simulation, WhereStatesCanBeCutTheLastToGoKeepsItsBeginning) {
  Trace trace;
  add(trace, 0, Tokens(30, 1));
  add(trace, 1, Tokens(30, 2));
  add(trace, 2, Tokens(30, 1));
  SimulationOptions options = options_of(MemoryKind::truncatable, 5000);  // one of 3,300 and 14 blocks of the other
  options.cut = true;
  FavouritePolicy policy(0);
  const SimulationResult cut = simulate(trace, options, policy);
  EXPECT_EQ(cut.reused_tokens, 14 * block);
  EXPECT_EQ(cut.held_bytes, 5000u);
  EXPECT_EQ(cut.cuts, 2u);
  EXPECT_EQ(cut.evictions, 0u);
  options.cut = false;
  EXPECT_EQ(simulate(trace, options, policy).reused_tokens, 0u);
  // Others can be resumed at their end alone.
  options = options_of(MemoryKind::exact, 5000);
  options.cut = true;
  EXPECT_EQ(simulate(trace, options, policy).reused_tokens, 0u);
}

TEST(Simulation, OfAPromptLargerThanTheBudgetItsBeginningIsKept) {
  Trace trace;
  add(trace, 0, Tokens(80, 1));
  add(trace, 1, Tokens(80, 1));
  SimulationOptions options = options_of(MemoryKind::truncatable, 5000);
  options.cut = true;
  FavouritePolicy policy(0);
  const SimulationResult cut = simulate(trace, options, policy);
  EXPECT_EQ(cut.reused_tokens, 47 * block);
  EXPECT_EQ(cut.saves, 1u);
  EXPECT_EQ(cut.held_bytes, 5000u);
  options.cut = false;
  EXPECT_EQ(simulate(trace, options, policy).saves, 0u);
}

// The last block of each prompt is another one in the next turn, as a partial one is.
TEST(Simulation, WhatNextPromptsAreSeenToLeaveIsNotKept) {
  Trace trace;
  Tokens chat(10, 1);
  for (Token turn = 0; turn < 20; ++turn) {
    chat.back() = 100 + turn;
    add(trace, turn, chat);
    chat.back() = 2;
    chat.push_back(0);
  }
  SimulationOptions options = options_of(MemoryKind::truncatable, 1 << 20);
  options.cut = true;
  ValuePolicy value;
  const SimulationResult cut = simulate(trace, options, value);
  // The first six whole, of which no other makes use; then each makes the one before useless, and the last has 29 - 1 blocks.
  std::uint64_t held_bytes = 28 * block * 10 + 300;
  for (std::uint64_t blocks = 10; blocks < 16; ++blocks) held_bytes += blocks * block * 10 + 300;
  EXPECT_EQ(cut.held_bytes, held_bytes);
  options.cut = false;
  const SimulationResult whole = simulate(trace, options, value);
  EXPECT_GT(whole.held_bytes, 2 * held_bytes);
  EXPECT_EQ(cut.reused_tokens, whole.reused_tokens);
}

TEST(Simulation, WhatIsDearerToRestoreIsComputed) {
  Trace trace;
  add(trace, 0, Tokens(10, 1));
  add(trace, 1, Tokens(10, 1));
  SimulationOptions options = options_of(MemoryKind::truncatable, 0);
  options.profile.restore_bytes_per_s = 1;  // 1,300 s for what takes 100 to compute
  LruPolicy lru;
  EXPECT_EQ(simulate(trace, options, lru).reused_tokens, 0u);
}

// The pace of saving changed nothing, and the time saved never paid for it.
TEST(Simulation, WhatIsWrittenTakesTime) {
  Trace trace;
  for (int turn = 1; turn <= 4; ++turn) {
    Tokens prompt;
    for (int i = 0; i < 10 * turn; ++i) prompt.push_back(i);
    add(trace, turn, prompt);
  }
  SimulationOptions options = options_of(MemoryKind::truncatable, 0);
  options.profile.save_bytes_per_s = 100;
  options.profile.save_fixed_s = 2;
  LruPolicy lru;
  const SimulationResult slow = simulate(trace, options, lru);
  ASSERT_EQ(slow.saves, 4u);
  EXPECT_NEAR(slow.written_s, 4 * 2 + static_cast<double>(slow.written_bytes) / 100, 1e-3);
  EXPECT_DOUBLE_EQ(slow.saved_s(), slow.cold_s - slow.computed_s - slow.restored_s - slow.written_s);
  options.profile.save_bytes_per_s = 1;
  const SimulationResult slower = simulate(trace, options, lru);
  EXPECT_EQ(slower.reused_tokens, slow.reused_tokens);
  EXPECT_LT(slower.saved_s(), 0) << "it costs more than it spares";
}

TEST(Simulation, CheckpointedStatesServeTheirResumePoints) {
  Trace trace;
  Tokens prompt{1, 2, 3, 4, 5, 6, 7, 8};
  add(trace, 0, prompt);
  prompt[5] = 99;  // shares five blocks
  add(trace, 1, prompt);
  SimulationOptions options = options_of(MemoryKind::checkpointed, 0);
  options.profile.interval_tokens = 2 * block;
  LruPolicy lru;
  EXPECT_EQ(simulate(trace, options, lru).reused_tokens, 4 * block);
  options.profile.interval_tokens = 0;
  EXPECT_EQ(simulate(trace, options, lru).reused_tokens, 0u);
}

TEST(ModelProfiles, NamesAndKeys) {
  EXPECT_EQ(parse_profile("dense-3b-h100")->bytes_a_token, 115e3);
  const auto made = parse_profile("kind=exact,bytes_a_token=100,prefill_tokens_per_s=5");
  ASSERT_TRUE(made);
  EXPECT_EQ(made->kind, MemoryKind::exact);
  EXPECT_EQ(made->bytes_a_token, 100);
  EXPECT_EQ(made->bytes_a_state, ModelProfile{}.bytes_a_state);
  for (const char* bad : {"nonsense", "kind=soft", "bytes_a_token=", "bytes_a_token=1x", "prefill_tokens_per_s=0", "colour=1", "bytes_a_state=-1"}) {
    EXPECT_FALSE(parse_profile(bad)) << bad;
  }
}

// `inf` and `nan` stood where `--json` has numbers, and bytes were counted in what no integer holds.
TEST(ModelProfiles, AbsurdNumbersAreRefusedAndTheLargestLeaveJson) {
  for (const char* absurd : {"save_fixed_s=1e308", "prefill_tokens_per_s=1e-310", "bytes_a_token=1e300", "save_bytes_per_s=1e-7"}) {
    EXPECT_FALSE(parse_profile(absurd)) << absurd;
  }
  const auto profile = parse_profile("kind=checkpointed,save_fixed_s=1e15,prefill_tokens_per_s=1e-6,restore_bytes_per_s=1e-6,"
                                     "save_bytes_per_s=1e-6,bytes_a_token=1e15,bytes_a_state=1e15,interval_tokens=1");
  ASSERT_TRUE(profile) << profile.error().context;
  Trace trace;
  for (int i = 0; i < 4; ++i) add(trace, i, Tokens(10, 1));
  SimulationReport report;
  for (const char* policy : {"value", "lru", "gdsf", "marconi"}) {
    SimulationOptions options;
    options.profile = *profile;
    report.unbounded = simulate(trace, options, *make_policy(policy));
    options.budget_bytes = 1'000'000;
    report.runs.push_back({policy, options.budget_bytes, simulate(trace, options, *make_policy(policy))});
  }
  const std::string json = to_json(report);
  EXPECT_THAT(json, testing::Not(testing::HasSubstr("inf")));
  EXPECT_THAT(json, testing::Not(testing::HasSubstr("nan")));
  boost::system::error_code bad;
  (void)boost::json::parse(json, bad);
  EXPECT_FALSE(bad) << bad.message() << json;
}

TEST(SimulationReports, TableJsonAndChartSayTheSame) {
  Trace trace;
  add(trace, 0, Tokens(10, 1));
  add(trace, 1, Tokens(10, 1));
  LruPolicy lru;
  SimulationReport report;
  report.distinct_tokens = distinct_tokens(trace);
  EXPECT_EQ(report.distinct_tokens, 100u);
  report.unbounded = simulate(trace, options_of(MemoryKind::truncatable, 0), lru);
  report.runs.push_back({"lru", 5000, simulate(trace, options_of(MemoryKind::truncatable, 5000), lru)});
  report.unbounded.written_s = 4711;
  EXPECT_THAT(to_table(report), testing::HasSubstr(" 4711 "));
  EXPECT_THAT(to_json(report), testing::HasSubstr(R"("save_seconds":4711.000)"));
  EXPECT_THAT(to_table(report), testing::HasSubstr("0.495"));  // one token of the second prompt is computed
  EXPECT_THAT(to_json(report), testing::HasSubstr(R"("hit_rate":0.495000)"));
  const std::string chart = to_svg(report, "a < b");
  EXPECT_THAT(chart, testing::HasSubstr("a &lt; b"));
  EXPECT_THAT(chart, testing::HasSubstr("<polyline"));
  EXPECT_THAT(chart, testing::EndsWith("</svg>\n"));
}

// Of budgets below a tenth of a GiB each tick of the axis said 0.0.
TEST(SimulationReports, SmallBudgetsHaveSmallUnits) {
  SimulationReport report;
  const auto with = [&](std::vector<std::uint64_t> budgets) {
    report.runs.clear();
    for (const std::uint64_t budget : budgets) report.runs.push_back({"lru", budget, {}});
    return to_svg(report, "budgets");
  };
  const std::string mib = with({1 << 20, 50 << 20});
  EXPECT_THAT(mib, testing::HasSubstr(">budget, MiB<"));
  for (const char* tick : {">0.0<", ">10.0<", ">20.0<", ">50.0<"}) EXPECT_THAT(mib, testing::HasSubstr(tick));
  EXPECT_THAT(to_table(report), testing::HasSubstr(" 1.00 MiB"));
  EXPECT_THAT(with({5000}), testing::HasSubstr(">budget, KiB<"));
  EXPECT_THAT(with({1}), testing::HasSubstr(">budget, bytes<"));
  EXPECT_THAT(with({1 << 20, 20ull << 30}), testing::AllOf(testing::HasSubstr(">budget, GiB<"), testing::HasSubstr(">16.0<")));
}

}  // namespace
}  // namespace cairn

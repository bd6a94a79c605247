#include "simulate/simulation.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <unordered_map>
#include <vector>

#include "checkpoint/state_values.hpp"
#include "plan/planner.hpp"
#include "prefix/prefix_tree.hpp"

namespace cairn {

namespace {

enum MarkKind : std::uint32_t { inside = 0, end = 1 };

class Replay {
 public:
  Replay(const Trace& trace, const SimulationOptions& options, EvictionPolicy& policy)
      : trace_(trace), options_(options), policy_(policy), profile_(options.profile) {
    const std::string rates = fmt::format(
        R"({{"prefill":[{:.6g},0,0],"save":[0,{:.6g}],"restore":[0,{:.6g}],"state":[{:.6g},{:.6g},{:.6g}]}})", 1 / profile_.prefill_tokens_per_s,
        1 / profile_.save_bytes_per_s, 1 / profile_.restore_bytes_per_s, profile_.bytes_a_state, profile_.bytes_a_token, profile_.bytes_a_state);
    (void)costs_.load(rates);
    worth_ = [this](const CheckpointRecord& record) {
      const Held& held = held_.at(record.id);
      return values_.worth(tree_, held.leaf, held.positions, mark_of(record.id), record.kind, record.uses,
                           static_cast<double>(record.last_used_unix_ms) / 1000, now_s_);
    };
  }

  SimulationResult run() {
    for (const TraceRequest& request : trace_.requests) {
      step(request);
      if (options_.replayed != nullptr) options_.replayed->fetch_add(1, std::memory_order_relaxed);
    }
    result_.requests = trace_.requests.size();
    result_.held_bytes = bytes_;
    return result_;
  }

 private:
  struct Held {
    CheckpointRecord record;
    NodeId leaf = PrefixTree::kNone;
    std::vector<std::uint32_t> positions;  // in blocks, the end last
  };
  static std::uint32_t mark_of(CheckpointId id) { return static_cast<std::uint32_t>(static_cast<std::int64_t>(id)); }
  static CheckpointId id_of(std::uint32_t mark) { return static_cast<CheckpointId>(mark); }
  std::int64_t now_ms() const { return std::llround(now_s_ * 1000); }

  // The state that spares most of the prompt, as the catalogue finds it; `usable` in blocks.
  struct Found {
    CheckpointId id{};
    std::uint32_t usable = 0;
  };
  Found best_state(const PrefixTree::Match& match) const {
    Found found;
    const PrefixTree::MarkVisitor on_path = [&](const PrefixTree::Mark& mark) {
      found = Found{id_of(mark.mark), mark.position_tokens};
      return false;
    };
    tree_.for_each_mark_on_path(match, on_path);
    if (profile_.kind != MemoryKind::truncatable) return found;
    PrefixTree::Match part = match;
    while (part.node != PrefixTree::kRoot && part.matched_tokens > found.usable) {
      if (tree_.marks_in_subtree(part.node) > 0) {
        const PrefixTree::MarkVisitor below = [&](const PrefixTree::Mark& mark) {
          found = Found{id_of(mark.mark), part.matched_tokens};
          return false;
        };
        tree_.for_each_mark_below(part, below, 64);
        if (found.usable == part.matched_tokens) break;
      }
      part.node = tree_.parent(part.node);
      part.matched_tokens = tree_.end_tokens(part.node);
    }
    return found;
  }

  void step(const TraceRequest& request) {
    now_s_ = request.at_s;
    const TokenSpan prompt = trace_.prompt(request);
    const Found found = best_state(tree_.match(prompt));
    const PrefixTree::InsertResult inserted = tree_.insert(prompt, now_ms());
    values_.observe(tree_, inserted, static_cast<std::uint32_t>(prompt.size()), now_s_, trace_.block_tokens);
    values_.answered(inserted.leaf, request.answer_tokens);
    serve(request, found);
    if (!prompt.empty()) save(prompt, inserted.leaf);
  }

  void serve(const TraceRequest& request, const Found& found) {
    const SlotOption slot;
    PlanInput input;
    input.prompt = request.prompt_tokens;
    input.costs = &costs_;
    input.slots = {&slot, 1};
    RestoreOption option;
    const auto held = held_.find(found.id);
    if (found.usable > 0 && held != held_.end()) {
      option.checkpoint = static_cast<std::int64_t>(found.id);
      // One token is always computed.
      option.usable = std::min(found.usable * trace_.block_tokens, std::max(request.prompt_tokens, 1U) - 1);
      option.bytes = static_cast<double>(held->second.record.bytes);
      input.restores = {&option, 1};
    }
    const std::optional<Plan> plan = make_plan(input);
    result_.prompt_tokens += request.prompt_tokens;
    result_.cold_s += costs_.prefill_seconds(0, request.prompt_tokens);
    result_.computed_s += costs_.prefill_seconds(plan->base, request.prompt_tokens);
    if (plan->source != Source::restore) return;
    result_.reused_tokens += plan->base;
    result_.restored_s += costs_.restore_seconds(option.bytes);
    ++held->second.record.uses;
    held->second.record.last_used_unix_ms = now_ms();
  }

  void save(TokenSpan prompt, NodeId leaf) {
    const auto blocks = static_cast<std::uint32_t>(prompt.size());
    CheckpointRecord record;
    record.token_count = blocks * trace_.block_tokens;
    record.kind = profile_.kind;
    record.last_used_unix_ms = record.created_unix_ms = now_ms();
    record.cost_to_recompute_s = costs_.prefill_seconds(0, record.token_count);
    std::vector<std::uint32_t> positions;
    if (profile_.kind == MemoryKind::checkpointed && profile_.interval_tokens > 0) {
      const std::uint32_t every = std::max(1U, profile_.interval_tokens / trace_.block_tokens);
      for (std::uint32_t at = every; at < blocks; at += every) positions.push_back(at);
    }
    record.bytes = static_cast<std::uint64_t>(record.token_count * profile_.bytes_a_token + static_cast<double>(positions.size() + 1) * profile_.bytes_a_state);
    positions.push_back(blocks);
    if (options_.budget_bytes > 0 && record.bytes > options_.budget_bytes) return;

    // The same prompt again: its state is there. A shorter one on its path that offers nothing more goes.
    std::vector<CheckpointId> useless;
    bool there = false;
    const PrefixTree::MarkVisitor visit = [&](const PrefixTree::Mark& mark) {
      if (mark.kind != MarkKind::end) return true;
      there = there || mark.position_tokens == blocks;
      const bool covered = profile_.kind == MemoryKind::truncatable || std::binary_search(positions.begin(), positions.end(), mark.position_tokens);
      if (covered && mark.position_tokens < blocks) useless.push_back(id_of(mark.mark));
      return true;
    };
    tree_.for_each_mark_on_path(PrefixTree::Match{blocks, leaf}, visit);
    if (there) return;
    std::uint64_t uses = 0;
    for (const CheckpointId id : useless) {
      uses = std::max(uses, held_.at(id).record.uses);
      remove(id);
      ++result_.superseded;
    }
    record.uses = uses;
    record.id = static_cast<CheckpointId>(++last_id_);
    for (const std::uint32_t position : positions) {
      tree_.attach(leaf, position, mark_of(record.id), position == blocks ? MarkKind::end : MarkKind::inside);
    }
    bytes_ += record.bytes;
    const CheckpointId id = record.id;
    const std::uint64_t bytes = record.bytes;
    held_.emplace(id, Held{std::move(record), leaf, std::move(positions)});
    if (!make_room(id)) return;
    result_.written_bytes += bytes;
    ++result_.saves;
  }

  // False: what is to be saved is worth the least itself, and is not saved.
  bool make_room(CheckpointId incoming) {
    if (options_.budget_bytes == 0 || bytes_ <= options_.budget_bytes) return true;
    const std::uint64_t at_least = bytes_ - options_.budget_bytes;
    const auto low = static_cast<std::uint64_t>(options_.low_water * static_cast<double>(options_.budget_bytes));
    const std::uint64_t at_most = bytes_ - std::min(low, bytes_);
    std::vector<const CheckpointRecord*> candidates;
    candidates.reserve(held_.size());
    for (const auto& [id, held] : held_) {
      if (id != incoming) candidates.push_back(&held.record);
    }
    Victims victims(policy_, worth_, candidates, now_ms());
    if (policy_.judges_new_states() && victims.bytes_below(held_.at(incoming).record) < at_least) {
      remove(incoming);
      return false;
    }
    for (std::uint64_t gone = 0; gone < at_most;) {
      const CheckpointRecord* victim = victims.worst();
      if (victim == nullptr || (gone >= at_least && gone + victim->bytes > at_most)) break;
      const CheckpointId id = victim->id;
      gone += victim->bytes;
      victims.take();
      remove(id);
      ++result_.evictions;
    }
    return true;
  }

  void remove(CheckpointId id) {
    const auto at = held_.find(id);
    for (const std::uint32_t position : at->second.positions) tree_.detach(at->second.leaf, position, mark_of(id));
    bytes_ -= at->second.record.bytes;
    held_.erase(at);
  }

  const Trace& trace_;
  const SimulationOptions& options_;
  EvictionPolicy& policy_;
  ModelProfile profile_;
  CostModel costs_;
  WorthOf worth_;
  PrefixTree tree_;
  StateValues values_;
  std::unordered_map<CheckpointId, Held> held_;
  std::uint64_t bytes_ = 0;
  std::int64_t last_id_ = 0;
  double now_s_ = 0;
  SimulationResult result_;
};

}  // namespace

SimulationResult simulate(const Trace& trace, const SimulationOptions& options, EvictionPolicy& policy) {
  Replay replay(trace, options, policy);
  return replay.run();
}

std::uint64_t distinct_tokens(const Trace& trace) {
  PrefixTree tree;
  for (const TraceRequest& request : trace.requests) tree.insert(trace.prompt(request), 0);
  return tree.edge_tokens_held() * trace.block_tokens;
}

Result<ModelProfile> parse_profile(std::string_view text) {
  ModelProfile profile;
  const auto wrong = [](std::string what) {
    Error error = internal_error("--model-profile: " + what);
    error.code = ErrorCode::invalid;
    return error;
  };
  if (text == "hybrid-3b-h100") {
    profile = ModelProfile{MemoryKind::checkpointed, 8e3, 76e6, 4096, 11000, 2e9, 2e9};
    return profile;
  }
  if (text == "dense-3b-h100") {
    profile = ModelProfile{MemoryKind::truncatable, 115e3, 0, 0, 16000, 2.6e9, 1.5e9};
    return profile;
  }
  while (!text.empty()) {
    const std::size_t end = std::min(text.find(','), text.size());
    const std::string_view part = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    const std::size_t equals = part.find('=');
    const std::string_view key = part.substr(0, equals);
    const std::string value{equals == std::string_view::npos ? std::string_view{} : part.substr(equals + 1)};
    if (key == "kind") {
      profile.kind = memory_kind_from_string(value);
      if (profile.kind == MemoryKind::unknown) return wrong(fmt::format("kind is truncatable, checkpointed or exact, not '{}'", value));
      continue;
    }
    char* rest = nullptr;
    const double number = std::strtod(value.c_str(), &rest);
    if (value.empty() || *rest != '\0' || !std::isfinite(number) || number < 0) return wrong(fmt::format("'{}' is no name and no key=number", part));
    const bool is_rate = key == "prefill_tokens_per_s" || key == "restore_bytes_per_s" || key == "save_bytes_per_s";
    if (is_rate && number <= 0) return wrong(fmt::format("{} must be above 0", key));
    if (key == "bytes_a_token") profile.bytes_a_token = number;
    else if (key == "bytes_a_state") profile.bytes_a_state = number;
    else if (key == "interval_tokens") profile.interval_tokens = static_cast<std::uint32_t>(std::min(number, 1e9));
    else if (key == "prefill_tokens_per_s") profile.prefill_tokens_per_s = number;
    else if (key == "restore_bytes_per_s") profile.restore_bytes_per_s = number;
    else if (key == "save_bytes_per_s") profile.save_bytes_per_s = number;
    else return wrong(fmt::format("no key '{}'", key));
  }
  return profile;
}

}  // namespace cairn

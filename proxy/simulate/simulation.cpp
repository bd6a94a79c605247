#include "simulate/simulation.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <unordered_map>
#include <vector>

#include "checkpoint/state_values.hpp"
#include "plan/end_offsets.hpp"
#include "plan/planner.hpp"
#include "prefix/prefix_tree.hpp"
#include "simulate/kept_victims.hpp"

namespace cairn {

namespace {

enum MarkKind : std::uint32_t { inside = 0, end = 1 };

class Replay {
 public:
  Replay(const Trace& trace, const SimulationOptions& options, EvictionPolicy& policy)
      : trace_(trace), options_(options), policy_(policy), profile_(options.profile), victims_(policy_, worth_) {
    const std::string rates = fmt::format(
        R"({{"prefill":[{:.6g},0,0],"save":[0,{:.6g}],"restore":[0,{:.6g}],"state":[{:.6g},{:.6g},{:.6g}]}})", 1 / profile_.prefill_tokens_per_s,
        1 / profile_.save_bytes_per_s, 1 / profile_.restore_bytes_per_s, profile_.bytes_a_state, profile_.bytes_a_token, profile_.bytes_a_state);
    (void)costs_.load(rates);
    worth_ = [this](const CheckpointRecord& record, std::int64_t at_ms) {
      const auto& held = static_cast<const Held&>(record);
      return values_.worth(tree_, held.leaf, held.positions, mark_of(record.id), record.kind, record.uses,
                           static_cast<double>(record.last_used_unix_ms) / 1000, static_cast<double>(at_ms) / 1000);
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
  struct Held : CheckpointRecord {  // whom victims_ asks about
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
    if (options_.budget_bytes > 0 && policy_.scores_hold() != ScoresHold::until_used) {  // somebody asks what states are worth
      const auto left = values_.observe(tree_, inserted, static_cast<std::uint32_t>(prompt.size()), now_s_, trace_.block_tokens);
      ends_.observe(left.value_or(EndOffsets::longest + 1));
      values_.answered(inserted.leaf, request.answer_tokens);
    }
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
      option.bytes = static_cast<double>(held->second.bytes);
      input.restores = {&option, 1};
    }
    const std::optional<Plan> plan = make_plan(input);
    result_.prompt_tokens += request.prompt_tokens;
    result_.cold_s += costs_.prefill_seconds(0, request.prompt_tokens);
    result_.computed_s += costs_.prefill_seconds(plan->base, request.prompt_tokens);
    if (plan->source != Source::restore) return;
    result_.reused_tokens += plan->base;
    result_.restored_s += costs_.restore_seconds(option.bytes);
    ++held->second.uses;
    held->second.last_used_unix_ms = now_ms();
    victims_.changed(found.id);
  }

  void save(TokenSpan prompt, NodeId leaf) {
    auto blocks = static_cast<std::uint32_t>(prompt.size());
    if (cuts() && options_.budget_bytes > 0) blocks -= std::min(blocks - 1, ends_.unneeded());
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
    positions.push_back(blocks);
    record.bytes = bytes_of(blocks, positions.size());
    if (options_.budget_bytes > 0 && record.bytes > options_.budget_bytes && !cuts()) return;

    // The same prompt again: its state is there. A shorter one on its path that offers nothing more goes once this one is saved.
    std::vector<CheckpointId> useless;
    bool there = false;
    const PrefixTree::MarkVisitor visit = [&](const PrefixTree::Mark& mark) {
      if (mark.kind != MarkKind::end) return true;
      there = there || mark.position_tokens == blocks;
      const bool covered = profile_.kind == MemoryKind::truncatable || std::binary_search(positions.begin(), positions.end(), mark.position_tokens);
      if (covered && mark.position_tokens < blocks) useless.push_back(id_of(mark.mark));
      return true;
    };
    tree_.for_each_mark_on_path(PrefixTree::Match{blocks, owner_of(leaf, blocks)}, visit);
    if (there) return;
    std::uint32_t known = 0;  // blocks that the longest of those has
    std::uint64_t others = bytes_;
    for (const CheckpointId id : useless) {
      Held& old = held_.at(id);
      record.uses = std::max(record.uses, old.uses);
      known = std::max(known, old.positions.back());
      others -= old.bytes;
      victims_.remove(id);
      detach(old);
    }
    record.id = static_cast<CheckpointId>(++last_id_);
    const CheckpointId id = record.id;
    bytes_ += record.bytes;
    Held& incoming = held_.emplace(id, Held{std::move(record), leaf, std::move(positions)}).first->second;
    attach(incoming);
    const bool saved = make_room(incoming, others, known);
    if (!saved) remove(id);
    for (const CheckpointId old_id : useless) {
      Held& old = held_.at(old_id);
      attach(old);
      if (!saved) {
        victims_.add(old);
        continue;
      }
      remove(old_id);
      ++result_.superseded;
    }
    if (!saved) return;
    if (options_.budget_bytes > 0) admit(incoming);
    result_.written_bytes += held_.at(id).bytes;
    ++result_.saves;
  }

  // Longer ones that go on from it are worth less beside it.
  void admit(const Held& incoming) {
    victims_.add(incoming);
    constexpr std::size_t nearest = 64;
    const PrefixTree::MarkVisitor tell = [&](const PrefixTree::Mark& mark) {
      victims_.changed(id_of(mark.mark));
      return true;
    };
    tree_.for_each_mark_below(PrefixTree::Match{incoming.positions.back(), owner_of(incoming.leaf, incoming.positions.back())}, tell, nearest);
  }

  // `others`: bytes of the states that stay beside it. Where states can be cut, the incoming one is cut to the room that it is
  // worth more than, if that is more than the `known` blocks, and the last one to go for it is only cut.
  // False: what would go for it is worth more, and nothing has changed.
  bool make_room(Held& incoming, std::uint64_t others, std::uint32_t known) {
    if (options_.budget_bytes == 0 || others + incoming.bytes <= options_.budget_bytes) return true;
    victims_.begin_round(now_ms());
    while (policy_.judges_new_states()) {
      const std::uint64_t own_room = options_.budget_bytes - others;
      const std::uint64_t room = own_room + victims_.bytes_below(incoming, incoming.bytes - std::min(own_room, incoming.bytes));
      if (incoming.bytes <= room) break;
      const std::uint32_t fitting = std::min(blocks_in(room), incoming.positions.back() - 1);
      if (!cuts() || fitting <= known) return false;
      cut(incoming, fitting);
      victims_.begin_round(now_ms());
    }
    const std::uint64_t wanted = others + incoming.bytes;
    const auto low = std::max(incoming.bytes, static_cast<std::uint64_t>(options_.low_water * static_cast<double>(options_.budget_bytes)));
    const std::uint64_t at_least = wanted - std::min(options_.budget_bytes, wanted);
    const std::uint64_t at_most = wanted - std::min(low, wanted);
    for (std::uint64_t gone = 0; gone < at_most;) {
      const CheckpointRecord* victim = victims_.worst();
      if (victim == nullptr) break;
      const CheckpointId id = victim->id;
      const std::uint64_t bytes = victim->bytes;
      if (gone + bytes > at_most) {
        const std::uint32_t keep = cuts() ? blocks_in(gone + bytes - at_most) : 0;
        if (keep > 0 && keep < held_.at(id).positions.back()) {
          cut(held_.at(id), keep);
          if (worth_(*victim, now_ms()).tokens_per_s > 0) {
            result_.written_bytes += victim->bytes;
            ++result_.cuts;
            break;
          }
        } else if (gone >= at_least) {
          break;
        }
      }
      gone += bytes;
      victims_.take();
      remove(id);
      ++result_.evictions;
    }
    return true;
  }

  bool cuts() const { return options_.cut && profile_.kind == MemoryKind::truncatable && policy_.judges_new_states(); }
  std::uint64_t bytes_of(std::uint32_t blocks, std::size_t resume_points) const {
    return static_cast<std::uint64_t>(std::uint64_t{blocks} * trace_.block_tokens * profile_.bytes_a_token + static_cast<double>(resume_points) * profile_.bytes_a_state);
  }
  // Of the longest state that takes no more than so many bytes.
  std::uint32_t blocks_in(std::uint64_t bytes) const {
    const double a_block = profile_.bytes_a_token * trace_.block_tokens;
    const double left = static_cast<double>(bytes) - profile_.bytes_a_state;
    if (left < a_block) return 0;
    return static_cast<std::uint32_t>(std::min(left / std::max(a_block, 1.0), 1e9));
  }
  void cut(Held& held, std::uint32_t blocks) {
    detach(held);
    bytes_ -= held.bytes;
    held.positions.back() = blocks;
    held.token_count = blocks * trace_.block_tokens;
    held.cost_to_recompute_s = costs_.prefill_seconds(0, held.token_count);
    held.bytes = bytes_of(blocks, 1);
    bytes_ += held.bytes;
    attach(held);
    victims_.changed(held.id);
  }

  // The node on the path to `leaf` whose edge covers the position.
  NodeId owner_of(NodeId leaf, std::uint32_t position) const {
    while (tree_.begin_tokens(leaf) >= position) leaf = tree_.parent(leaf);
    return leaf;
  }
  void attach(const Held& held) {
    for (const std::uint32_t position : held.positions) {
      tree_.attach(held.leaf, position, mark_of(held.id), position == held.positions.back() ? MarkKind::end : MarkKind::inside);
    }
  }
  void detach(const Held& held) {
    for (const std::uint32_t position : held.positions) tree_.detach(held.leaf, position, mark_of(held.id));
  }
  void remove(CheckpointId id) {
    const auto at = held_.find(id);
    victims_.remove(id);
    detach(at->second);
    bytes_ -= at->second.bytes;
    held_.erase(at);
  }

  const Trace& trace_;
  const SimulationOptions& options_;
  EvictionPolicy& policy_;
  ModelProfile profile_;
  CostModel costs_;
  KeptVictims::WorthAt worth_;
  PrefixTree tree_;
  StateValues values_;
  EndOffsets ends_;  // in blocks
  std::unordered_map<CheckpointId, Held> held_;
  std::uint64_t bytes_ = 0;
  std::int64_t last_id_ = 0;
  double now_s_ = 0;
  KeptVictims victims_;
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

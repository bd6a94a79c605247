#include "simulate/replay.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace cairn {

namespace {
enum MarkKind : std::uint32_t { inside = 0, end = 1 };
}  // namespace

Replay::Replay(const Trace& trace, const SimulationOptions& options, std::uint64_t budget_bytes, EvictionPolicy& policy, const Learned& learned)
    : trace_(trace), options_(options), budget_bytes_(budget_bytes), policy_(policy), learned_(learned), profile_(options.profile), victims_(policy_, *this) {
  const std::string rates = fmt::format(
      R"({{"prefill":[{:.6g},0,0],"save":[{:.6g},{:.6g}],"restore":[0,{:.6g}],"state":[{:.6g},{:.6g},{:.6g}]}})", 1 / profile_.prefill_tokens_per_s,
      profile_.save_fixed_s, 1 / profile_.save_bytes_per_s, 1 / profile_.restore_bytes_per_s, profile_.bytes_a_state, profile_.bytes_a_token, profile_.bytes_a_state);
  (void)costs_.load(rates);
}

const PrefixTree::InsertResult& Replay::receive(const TraceRequest& request) {
  now_s_ = request.at_s;
  return inserted_ = tree_.insert(trace_.prompt(request), now_ms());
}

void Replay::answer(const TraceRequest& request) {
  serve(request, best_state());
  const TokenSpan prompt = trace_.prompt(request);
  if (!prompt.empty()) save(prompt);
}

SimulationResult Replay::result() const {
  SimulationResult result = result_;
  result.held_bytes = bytes_;
  return result;
}

void Replay::expect(const CheckpointFacts& record) const {
  const NodeId leaf = static_cast<const Held&>(record).leaf;
  tree_.prefetch(leaf);
  learned_.values.prefetch(leaf);
}

StateWorth Replay::look_at(const CheckpointFacts& record, std::int64_t now_unix_ms) {
  const auto& held = static_cast<const Held&>(record);  // victims_ knows no others
  const StateValues::State state{held.leaf, positions(held), held.number, held.kind, held.uses, static_cast<double>(held.last_used_unix_ms) / 1000};
  learned_.values.look_ahead(tree_, state, prospects_);
  return later(now_unix_ms);
}

Replay::Found Replay::best_state() const {
  Found found;
  // What was known of the prompt before it came.
  PrefixTree::Match match{inserted_.matched_tokens, inserted_.leaf};
  if (match.node != PrefixTree::kRoot && tree_.begin_tokens(match.node) >= match.matched_tokens) match.node = tree_.parent(match.node);
  const PrefixTree::MarkVisitor on_path = [&](const PrefixTree::Mark& mark) {
    found = Found{mark.mark, mark.position_tokens};
    return false;
  };
  tree_.for_each_mark_on_path(match, on_path);
  if (profile_.kind != MemoryKind::truncatable) return found;
  while (match.node != PrefixTree::kRoot && match.matched_tokens > found.usable) {
    if (tree_.marks_in_subtree(match.node) > 0) {
      const PrefixTree::MarkVisitor below = [&](const PrefixTree::Mark& mark) {
        found = Found{mark.mark, match.matched_tokens};
        return false;
      };
      tree_.for_each_mark_below(match, below, 64);
      if (found.usable == match.matched_tokens) break;
    }
    match.node = tree_.parent(match.node);
    match.matched_tokens = tree_.end_tokens(match.node);
  }
  return found;
}

void Replay::serve(const TraceRequest& request, const Found& found) {
  const SlotOption slot;
  PlanInput input;
  input.prompt = request.prompt_tokens;
  input.costs = &costs_;
  input.slots = {&slot, 1};
  RestoreOption option;
  Held* held = found.usable > 0 ? &held_[found.number] : nullptr;
  if (held != nullptr) {
    option.checkpoint = static_cast<std::int64_t>(held->id);
    // One token is always computed.
    option.usable = std::min(found.usable * trace_.block_tokens, std::max(request.prompt_tokens, 1U) - 1);
    option.bytes = static_cast<double>(held->bytes);
    input.restores = {&option, 1};
  }
  const std::optional<Plan> plan = make_plan(input);
  ++result_.requests;
  result_.prompt_tokens += request.prompt_tokens;
  result_.cold_s += costs_.prefill_seconds(0, request.prompt_tokens);
  result_.computed_s += costs_.prefill_seconds(plan->base, request.prompt_tokens);
  if (plan->source != Source::restore) return;
  result_.reused_tokens += plan->base;
  result_.restored_s += costs_.restore_seconds(option.bytes);
  ++held->uses;
  held->last_used_unix_ms = now_ms();
  victims_.changed(held->number);
}

void Replay::save(TokenSpan prompt) {
  auto blocks = static_cast<std::uint32_t>(prompt.size());
  if (cuts() && budget_bytes_ > 0) blocks -= std::min(blocks - 1, learned_.ends.unneeded());
  Held& incoming = take_number();
  describe(incoming, blocks);
  const bool too_large = budget_bytes_ > 0 && incoming.bytes > budget_bytes_ && !cuts();
  if (too_large || !find_useless(incoming)) {
    unused_.push_back(incoming.number);
    return;
  }

  std::uint32_t known = 0;  // blocks that the longest of the useless ones has
  std::uint64_t others = bytes_;
  for (const Number number : useless_) {
    const Held& old = held_[number];
    incoming.uses = std::max(incoming.uses, old.uses);
    known = std::max(known, old.blocks);
    others -= old.bytes;
    victims_.remove(number);
    detach(old);
  }
  incoming.id = static_cast<CheckpointId>(++last_id_);
  bytes_ += incoming.bytes;
  attach(incoming);
  const bool saved = make_room(incoming, others, known);
  if (!saved) remove(incoming.number);
  for (const Number number : useless_) {
    if (saved) {
      forget(number);
      ++result_.superseded;
    } else {
      attach(held_[number]);
      victims_.add(number, held_[number]);
    }
  }
  if (!saved) return;
  if (budget_bytes_ > 0) admit(incoming);
  count_written(incoming.bytes);
  ++result_.saves;
}

void Replay::count_written(std::uint64_t bytes) {
  result_.written_bytes += bytes;
  result_.written_s += costs_.save_seconds(static_cast<double>(bytes));
}

// A whole state of so many blocks, from now.
void Replay::describe(Held& incoming, std::uint32_t blocks) const {
  incoming.leaf = inserted_.leaf;
  incoming.token_count = blocks * trace_.block_tokens;
  incoming.kind = profile_.kind;
  incoming.uses = 0;
  incoming.last_used_unix_ms = now_ms();
  incoming.cost_to_recompute_s = costs_.prefill_seconds(0, incoming.token_count);
  incoming.blocks = blocks;
  const bool has_inner = profile_.kind == MemoryKind::checkpointed && profile_.interval_tokens > 0;
  incoming.every = has_inner ? std::max(1U, profile_.interval_tokens / trace_.block_tokens) : 0;
  incoming.bytes = bytes_of(blocks, has_inner ? 1 + (blocks - 1) / incoming.every : 1);
}

// Shorter ones on its path that offer nothing more go once this one is saved. False: the same prompt's state is there.
bool Replay::find_useless(const Held& incoming) {
  useless_.clear();
  bool there = false;
  const PrefixTree::MarkVisitor visit = [&](const PrefixTree::Mark& mark) {
    if (mark.kind != MarkKind::end) return true;
    there = there || mark.position_tokens == incoming.blocks;
    const bool covered = profile_.kind == MemoryKind::truncatable || (incoming.every > 0 && mark.position_tokens % incoming.every == 0);
    if (covered && mark.position_tokens < incoming.blocks) useless_.push_back(mark.mark);
    return true;
  };
  tree_.for_each_mark_on_path(PrefixTree::Match{incoming.blocks, end_of(incoming)}, visit);
  return !there;
}

// Longer ones that go on from it are worth less beside it.
void Replay::admit(const Held& incoming) {
  victims_.add(incoming.number, incoming);
  constexpr std::size_t nearest = 64;
  const PrefixTree::MarkVisitor tell = [&](const PrefixTree::Mark& mark) {
    victims_.changed(mark.mark);
    return true;
  };
  tree_.for_each_mark_below(PrefixTree::Match{incoming.blocks, end_of(incoming)}, tell, nearest);
}

// `others`: bytes of the states that stay beside it. Where states can be cut, the incoming one is cut to the room that it is
// worth more than, if that is more than the `known` blocks, and the last one to go for it is only cut.
// False: what would go for it is worth more, and nothing has changed.
bool Replay::make_room(Held& incoming, std::uint64_t others, std::uint32_t known) {
  if (budget_bytes_ == 0 || others + incoming.bytes <= budget_bytes_) return true;
  victims_.begin_round(now_ms());
  while (policy_.judges_new_states()) {
    const std::uint64_t own_room = budget_bytes_ - others;
    const std::uint64_t room = own_room + victims_.bytes_below(incoming, incoming.bytes - std::min(own_room, incoming.bytes));
    if (incoming.bytes <= room) break;
    const std::uint32_t fitting = std::min(blocks_in(room), incoming.blocks - 1);
    if (!cuts() || fitting <= known) return false;
    cut(incoming, fitting);
    victims_.begin_round(now_ms());
  }
  const std::uint64_t wanted = others + incoming.bytes;
  const auto low = std::max(incoming.bytes, static_cast<std::uint64_t>(options_.low_water * static_cast<double>(budget_bytes_)));
  const std::uint64_t at_least = wanted - std::min(budget_bytes_, wanted);
  const std::uint64_t at_most = wanted - std::min(low, wanted);
  for (std::uint64_t gone = 0; gone < at_most;) {
    const Number number = victims_.worst();
    if (number == KeptVictims::none) break;
    Held& victim = held_[number];
    const std::uint64_t bytes = victim.bytes;
    if (gone + bytes > at_most) {
      const std::uint32_t keep = cuts() ? blocks_in(gone + bytes - at_most) : 0;
      if (keep > 0 && keep < victim.blocks) {
        cut(victim, keep);
        if (look_at(victim, now_ms()).tokens_per_s > 0) {
          count_written(victim.bytes);
          ++result_.cuts;
          break;
        }
      } else if (gone >= at_least) {
        break;
      }
    }
    gone += bytes;
    victims_.take();
    remove(number);
    ++result_.evictions;
  }
  return true;
}

void Replay::cut(Held& held, std::uint32_t blocks) {
  detach(held);
  bytes_ -= held.bytes;
  held.blocks = blocks;
  held.token_count = blocks * trace_.block_tokens;
  held.cost_to_recompute_s = costs_.prefill_seconds(0, held.token_count);
  held.bytes = bytes_of(blocks);
  bytes_ += held.bytes;
  attach(held);
  victims_.changed(held.number);
}

bool Replay::cuts() const { return options_.cut && profile_.kind == MemoryKind::truncatable && policy_.judges_new_states(); }

std::uint64_t Replay::bytes_of(std::uint32_t blocks, std::size_t resume_points) const {
  constexpr double most = 1e18;
  const double tokens = static_cast<double>(std::uint64_t{blocks} * trace_.block_tokens);
  return static_cast<std::uint64_t>(std::min(tokens * profile_.bytes_a_token + static_cast<double>(resume_points) * profile_.bytes_a_state, most));
}

// Of the longest state that takes no more than so many bytes.
std::uint32_t Replay::blocks_in(std::uint64_t bytes) const {
  const double a_block = profile_.bytes_a_token * trace_.block_tokens;
  const double left = static_cast<double>(bytes) - profile_.bytes_a_state;
  if (left < a_block) return 0;
  return static_cast<std::uint32_t>(std::min(left / std::max(a_block, 1.0), 1e9));
}

// The node whose edge covers the state's end.
NodeId Replay::end_of(const Held& held) const {
  NodeId node = held.leaf;
  while (tree_.begin_tokens(node) >= held.blocks) node = tree_.parent(node);
  return node;
}

// Where it can be resumed, its end last.
std::span<const std::uint32_t> Replay::positions(const Held& held) {
  if (held.every == 0) return {&held.blocks, 1};
  positions_.clear();
  for (std::uint32_t at = held.every; at < held.blocks; at += held.every) positions_.push_back(at);
  positions_.push_back(held.blocks);
  return positions_;
}

std::int64_t Replay::now_ms() const { return std::llround(now_s_ * 1000); }

Replay::Held& Replay::take_number() {
  if (unused_.empty()) {
    unused_.push_back(static_cast<Number>(held_.size()));
    held_.emplace_back().number = unused_.back();
  }
  Held& held = held_[unused_.back()];
  unused_.pop_back();
  return held;
}

void Replay::attach(const Held& held) {
  for (const std::uint32_t position : positions(held)) {
    tree_.attach(held.leaf, position, held.number, position == held.blocks ? MarkKind::end : MarkKind::inside);
  }
}

void Replay::detach(const Held& held) {
  for (const std::uint32_t position : positions(held)) tree_.detach(held.leaf, position, held.number);
}

void Replay::remove(Number number) {
  victims_.remove(number);
  detach(held_[number]);
  forget(number);
}

void Replay::forget(Number number) {
  bytes_ -= held_[number].bytes;
  unused_.push_back(number);
}

}  // namespace cairn

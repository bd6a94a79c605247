#include "checkpoint/catalogue.hpp"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <utility>

namespace cairn {

namespace {
std::string returns_key(NamespaceId name_space) { return fmt::format("return_times:{}", static_cast<std::int64_t>(name_space)); }
std::string marks_key(NamespaceId name_space) { return fmt::format("leaving_marks:{}", static_cast<std::int64_t>(name_space)); }
std::string messages_key(NamespaceId name_space) { return fmt::format("message_starts:{}", static_cast<std::int64_t>(name_space)); }
std::string offsets_key(NamespaceId name_space) { return fmt::format("end_offsets:{}", static_cast<std::int64_t>(name_space)); }

// The earlier prompt is on the way of the one just inserted, at least up to `parted` tokens.
bool shares(const PrefixTree& tree, NodeId earlier, NodeId own, std::uint32_t parted) {
  // Climb to the node whose edge holds the point where they part.
  while (tree.begin_tokens(earlier) >= parted && earlier != PrefixTree::kRoot) earlier = tree.parent(earlier);
  while (tree.begin_tokens(own) >= parted && own != PrefixTree::kRoot) own = tree.parent(own);
  return earlier == own && earlier != PrefixTree::kRoot;
}
}  // namespace

Catalogue::Catalogue(CheckpointStore& store, std::uint64_t max_tree_tokens)
    : store_(store), max_tree_tokens_(max_tree_tokens) {
  store_.on_removed([this](const CheckpointRecord& record, RemovalReason reason) {
    // Before its row and its files go: whoever misses them finds here why.
    spdlog::debug("checkpoint {} goes: {}", static_cast<std::int64_t>(record.id), to_string(reason));
    if (reason != RemovalReason::erased) ++removals_;  // what somebody wanted gone is not saved again
    if (reason == RemovalReason::evicted) remember_evicted(record);
    detach(record);
  });
  store_.on_standby([this](const CheckpointRecord& record, bool stands_by) {
    if (stands_by) {
      set_apart(record);  // what it offers its successor offers, who would be worth nothing beside it
    } else {
      take_back(record);
    }
  });
  store_.on_worth([this](const CheckpointRecord& record) { return worth(record); });
}

ResultTask<std::size_t> Catalogue::load() {
  CheckpointStore::TokenVisitor visitor = [this](const CheckpointRecord& record, TokenSpan tokens) {
    attach(record, tokens, record.last_used_unix_ms);
  };
  CheckpointStore::TokenVisitor announce = [this](const CheckpointRecord& record, TokenSpan tokens) {
    if (const auto tree = trees_.find(record.namespace_id); tree != trees_.end()) tree->second->announce(tokens);
  };
  static_assert(CheckpointStore::announced_ahead >= PrefixTree::kAnnouncedAhead);
  return store_.load_tokens(std::move(visitor), std::move(announce));
}

Catalogue::Known Catalogue::learn(NamespaceId name_space, TokenSpan prompt, std::int64_t now_ms, std::uint32_t last_message) {
  std::unique_ptr<PrefixTree>& tree = trees_[name_space];
  if (!tree) tree = std::make_unique<PrefixTree>();
  if (tree->edge_tokens_held() + prompt.size() > max_tree_tokens_) {
    tree->trim(max_tree_tokens_ - std::min<std::uint64_t>(max_tree_tokens_, max_tree_tokens_ / 8 + prompt.size()));
  }
  const PrefixTree::InsertResult inserted = tree->insert(prompt, now_ms);
  values_of(name_space).observe(*tree, inserted, static_cast<std::uint32_t>(prompt.size()), static_cast<double>(now_ms) / 1000);
  Known known;
  known.matched_tokens = inserted.matched_tokens;
  if (inserted.branch != PrefixTree::kNone) known.branch_tokens = inserted.matched_tokens;
  constexpr std::size_t shown = 12;  // tokens, for the log
  constexpr std::size_t longest_block = 4096;
  Tokens rest;
  if (known.branch_tokens > 0) rest = tree->latest_continuation(inserted.branch, prompt[inserted.matched_tokens], longest_block);
  known.other.assign(rest.begin(), rest.begin() + static_cast<std::ptrdiff_t>(std::min(rest.size(), shown)));
  Recent& recent = recent_of(name_space);
  learn_message(*tree, recent, inserted);
  known.continues = learn_offset(*tree, recent, inserted, static_cast<std::uint32_t>(prompt.size()));
  const TokenSpan ending = prompt.last(std::min<std::size_t>(prompt.size(), Recent::Prompt::kept_ending));
  recent.prompts.front().ending.assign(ending.begin(), ending.end());
  recent.prompts.front().at_ms = now_ms;
  constexpr std::uint32_t good_part = 4;
  known.shares = known.matched_tokens * good_part >= prompt.size();
  const bool left_inside = known.shares && !known.continues && known.branch_tokens > 0;
  recent.offsets.observe_branch(left_inside);
  // Only the first to leave there tells something: sessions that share a system prompt all leave at its end, which has its state. And
  // of a path that parts again soon it is not known how it went on.
  constexpr std::size_t least_rest = 32;
  if (left_inside && inserted.branch_is_new && rest.size() >= least_rest) recent.marks.left(rest);
  known.mark = recent.marks.offer(prompt, known.matched_tokens);
  if (last_message > known.matched_tokens) {
    known.message = LeavingPlace{last_message, recent.messages.chance(), recent.messages.seen_often()};
    recent.messages.offered();
    recent.prompts.front().last_message = last_message;
  }
  return known;
}

void Catalogue::answered(NamespaceId name_space, TokenSpan prompt, std::uint32_t answer_tokens) {
  const auto tree = trees_.find(name_space);
  if (tree == trees_.end()) return;
  const PrefixTree::Match match = tree->second->match(prompt);
  if (match.matched_tokens == prompt.size()) values_of(name_space).answered(match.node, answer_tokens);
}

Catalogue::Recent& Catalogue::recent_of(NamespaceId name_space) {
  const auto [at, is_new] = recent_.try_emplace(name_space);
  if (is_new) {
    if (const std::optional<std::string> kept = store_.setting(offsets_key(name_space))) at->second.offsets.load(*kept);
    if (const std::optional<std::string> kept = store_.setting(marks_key(name_space))) at->second.marks.load(*kept);
    if (const std::optional<std::string> kept = store_.setting(messages_key(name_space))) at->second.messages.load(*kept);
  }
  return at->second;
}

ResultTask<void> Catalogue::keep_learned(NamespaceId name_space) {
  Recent& recent = recent_of(name_space);
  if (!std::exchange(recent.changed, false)) co_return Result<void>{};
  auto kept = co_await store_.put_setting(offsets_key(name_space), recent.offsets.to_text());
  if (kept) kept = co_await store_.put_setting(marks_key(name_space), recent.marks.to_text());
  if (kept) kept = co_await store_.put_setting(messages_key(name_space), recent.messages.to_text());
  if (!kept) co_return kept;
  co_return co_await store_.put_setting(returns_key(name_space), values_of(name_space).learned());
}

StateValues& Catalogue::values_of(NamespaceId name_space) {
  const auto [at, is_new] = values_.try_emplace(name_space);
  if (is_new) {
    if (const std::optional<std::string> kept = store_.setting(returns_key(name_space))) at->second.load(*kept);
  }
  return at->second;
}

void Catalogue::learn_message(const PrefixTree& tree, Recent& recent, const PrefixTree::InsertResult& inserted) {
  constexpr std::uint32_t opening = 8;  // tokens: who speaks may be the same
  if (inserted.branch == PrefixTree::kNone) return;
  const std::uint32_t left_at = inserted.matched_tokens;
  for (Recent::Prompt& earlier : recent.prompts) {
    if (earlier.last_message == 0 || left_at < earlier.last_message || left_at > earlier.last_message + opening) continue;
    if (!tree.is_live(earlier.leaf) || tree.end_tokens(earlier.leaf) != earlier.tokens) continue;  // trimmed meanwhile
    if (!shares(tree, earlier.leaf, inserted.leaf, left_at)) continue;
    recent.messages.left();
    earlier.last_message = 0;  // whoever else leaves it there finds a state
  }
}

bool Catalogue::learn_offset(const PrefixTree& tree, Recent& recent, const PrefixTree::InsertResult& inserted, std::uint32_t tokens) {
  constexpr std::size_t remembered = 64;
  constexpr std::uint32_t mostly_shared = 4;
  // Which of the latest prompts did it leave, and how far before its end? The nearest end counts: with several turns of one
  // conversation on the path, that is the latest.
  const std::uint32_t left_at = inserted.matched_tokens;
  std::uint32_t nearest = EndOffsets::longest + 1;
  for (const Recent::Prompt& earlier : recent.prompts) {
    if (!tree.is_live(earlier.leaf) || tree.end_tokens(earlier.leaf) != earlier.tokens) continue;  // trimmed meanwhile
    // Of one that was saved with its answer the next turn shares more than the prompt: it goes on from its very end.
    const std::uint32_t parted = std::min(left_at, earlier.tokens);
    if (earlier.tokens - parted >= nearest) continue;
    // Two short prompts in the same template part near each other's end, too: only who shares most of it goes on from it.
    if ((earlier.tokens - parted) * mostly_shared > parted) continue;
    if (earlier.tokens == tokens && earlier.leaf == inserted.leaf) continue;  // the same prompt again
    if (shares(tree, earlier.leaf, inserted.leaf, parted)) nearest = earlier.tokens - parted;
  }
  recent.offsets.observe(nearest);
  recent.changed = true;
  recent.prompts.push_front(Recent::Prompt{inserted.leaf, tokens, 0, {}, 0});
  if (recent.prompts.size() > remembered) recent.prompts.pop_back();
  return nearest <= EndOffsets::longest;
}

std::vector<Catalogue::Candidate> Catalogue::candidates(NamespaceId name_space, TokenSpan prompt, MemoryKind kind,
                                                        std::size_t count, std::uint32_t longest) const {
  std::vector<Candidate> found;
  const auto at = trees_.find(name_space);
  if (at == trees_.end() || prompt.empty()) return found;
  const PrefixTree& tree = *at->second;
  const PrefixTree::Match match = tree.match(prompt);
  const auto limit = static_cast<std::uint32_t>(prompt.size()) - 1;  // one token is always computed

  const auto fitting = [&](const PrefixTree::Mark& mark) {
    const CheckpointRecord* record = store_.find(id_of(mark.mark));
    return record != nullptr && record->token_count <= longest ? record : nullptr;
  };
  const auto offer = [&](const CheckpointRecord& record, std::uint32_t usable) {
    if (usable == 0) return;
    const bool known = std::any_of(found.begin(), found.end(), [&](const Candidate& c) { return c.checkpoint == record.id; });
    if (!known) found.push_back(Candidate{record.id, usable, record.bytes});
  };

  // Marks at or before the end of the match: a state's end (goes on from there), or a context checkpoint inside.
  const PrefixTree::MarkVisitor on_path = [&](const PrefixTree::Mark& mark) {
    const CheckpointRecord* record = fitting(mark);
    if (record == nullptr) return true;
    const bool cuttable = record->kind == CheckpointKind::truncatable && kind == MemoryKind::truncatable;
    if (mark.kind == MarkKind::inside && kind == MemoryKind::exact) return true;
    if (mark.position_tokens <= limit) {
      offer(*record, mark.position_tokens);
    } else if (cuttable) {
      offer(*record, limit);
    }
    return found.size() < count;
  };
  tree.for_each_mark_on_path(match, on_path);

  // A truncatable state serves whatever it shares, also where the prompt leaves its path: look below each node of the
  // prompt's path, deepest first.
  if (kind == MemoryKind::truncatable) {
    std::vector<PrefixTree::Match> ends;
    ends.push_back(match);
    for (NodeId node = match.node; node != PrefixTree::kRoot;) {
      node = tree.parent(node);
      if (node != PrefixTree::kRoot) ends.push_back(PrefixTree::Match{tree.end_tokens(node), node});
    }
    std::size_t below_found = 0;
    for (const PrefixTree::Match& end_point : ends) {
      if (below_found > 0) break;
      if (tree.marks_in_subtree(end_point.node) == 0) continue;
      const PrefixTree::MarkVisitor below = [&](const PrefixTree::Mark& mark) {
        const CheckpointRecord* record = fitting(mark);
        if (record == nullptr || record->kind != CheckpointKind::truncatable || mark.kind != MarkKind::end) return true;
        offer(*record, std::min(end_point.matched_tokens, limit));
        return ++below_found < count;
      };
      tree.for_each_mark_below(end_point, below);
    }
  }

  std::sort(found.begin(), found.end(), [](const Candidate& a, const Candidate& b) {
    if (a.usable_tokens != b.usable_tokens) return a.usable_tokens > b.usable_tokens;
    return a.bytes < b.bytes;
  });
  if (found.size() > count) found.resize(count);
  return found;
}

bool Catalogue::has_state_at(NamespaceId name_space, TokenSpan tokens) const {
  const auto at = trees_.find(name_space);
  if (at == trees_.end() || tokens.empty()) return false;
  const PrefixTree::Match match = at->second->match(tokens);
  if (match.matched_tokens != tokens.size()) return false;
  bool found = false;
  const PrefixTree::MarkVisitor visit = [&](const PrefixTree::Mark& mark) {
    if (store_.find(id_of(mark.mark)) == nullptr) return true;  // on its way in
    found = mark.position_tokens == tokens.size();
    return false;
  };
  at->second->for_each_mark_on_path(match, visit);
  return found;
}

Catalogue::Incoming::Incoming(Catalogue& catalogue, CheckpointRecord state, TokenSpan tokens, std::int64_t now_ms)
    : catalogue_(catalogue), state_(std::move(state)) {
  constexpr std::uint32_t above_all_rows = 0x80000000;  // see mark_of()
  state_.id = id_of(above_all_rows | catalogue_.incoming_++);
  state_.token_count = static_cast<std::uint32_t>(tokens.size());
  state_.created_unix_ms = state_.last_used_unix_ms = now_ms;
  catalogue_.attach(state_, tokens, now_ms);
}

Catalogue::Incoming::~Incoming() { catalogue_.detach(state_); }

void Catalogue::attach(const CheckpointRecord& record, TokenSpan tokens, std::int64_t now_ms) {
  std::unique_ptr<PrefixTree>& tree = trees_[record.namespace_id];
  (void)values_of(record.namespace_id);
  if (!tree) tree = std::make_unique<PrefixTree>();
  const PrefixTree::InsertResult inserted = tree->insert(tokens, now_ms);
  Place place;
  place.name_space = record.namespace_id;
  place.leaf = inserted.leaf;
  place.positions.reserve(record.resume_positions.size() + 1);
  for (const std::uint32_t position : record.resume_positions) {
    if (position > 0 && position < record.token_count &&
        tree->attach(inserted.leaf, position, mark_of(record.id), MarkKind::inside)) {
      place.positions.push_back(position);
    }
  }
  if (tree->attach(inserted.leaf, record.token_count, mark_of(record.id), MarkKind::end)) {
    place.positions.push_back(record.token_count);
  }
  places_[record.id] = std::move(place);
}

StateWorth Catalogue::worth(const CheckpointRecord& record) const {
  // While its successor has no copy on disk it stands there for that one, as far as it goes.
  const std::optional<CheckpointId> waits_for = store_.successor_of(record.id);
  if (const CheckpointRecord* successor = waits_for ? store_.find(*waits_for) : nullptr) {
    StateWorth worth = this->worth(*successor);
    worth.tokens_per_s *= std::min(1.0, static_cast<double>(record.token_count) / std::max(1U, successor->token_count));
    return worth;
  }
  const auto at = places_.find(record.id);
  const auto values = values_.find(record.namespace_id);
  if (at == places_.end() || values == values_.end()) return {};
  const StateValues::State state{at->second.leaf, at->second.positions, mark_of(record.id), record.kind, record.uses,
                                 static_cast<double>(record.last_used_unix_ms) / 1000};
  return values->second.worth(*trees_.at(record.namespace_id), state, static_cast<double>(store_.now_unix_ms()) / 1000);
}

// The store has let go of the entry already.
void Catalogue::remember_evicted(const CheckpointRecord& record) {
  const auto at = places_.find(record.id);
  if (at == places_.end() || at->second.set_apart) return;
  const Tokens tokens = trees_.at(at->second.name_space)->tokens_to(at->second.leaf, record.token_count);
  evicted_.add(record.namespace_id, tokens, record.resume_positions);
}

void Catalogue::detach(const CheckpointRecord& record) {
  const auto at = places_.find(record.id);
  if (at == places_.end()) return;
  const Place& place = at->second;
  PrefixTree& tree = *trees_.at(place.name_space);
  if (place.set_apart) tree.unpin(place.leaf);
  for (const std::uint32_t position : place.positions) tree.detach(place.leaf, position, mark_of(record.id));
  places_.erase(at);
}

// Its successor may have left its path: what it holds stays known, for a restore that is under way, or when it is wanted again.
void Catalogue::set_apart(const CheckpointRecord& record) {
  const auto at = places_.find(record.id);
  if (at == places_.end() || at->second.set_apart) return;
  const Place place = at->second;
  PrefixTree& tree = *trees_.at(place.name_space);
  tree.pin(place.leaf);
  detach(record);
  places_[record.id] = Place{place.name_space, place.leaf, {}, true};
}

void Catalogue::take_back(const CheckpointRecord& record) {
  const Tokens tokens = tokens_of(record.id);
  if (tokens.empty()) return;
  detach(record);
  attach(record, tokens, record.last_used_unix_ms);
}

Tokens Catalogue::tokens_of(CheckpointId id) const {
  const auto at = places_.find(id);
  const CheckpointRecord* record = store_.find(id);
  if (at == places_.end() || record == nullptr) return {};
  return trees_.at(at->second.name_space)->tokens_to(at->second.leaf, record->token_count);
}

Catalogue::Totals Catalogue::totals() const {
  Totals totals;
  for (const auto& [id, tree] : trees_) {
    totals.nodes += tree->nodes();
    totals.tokens += tree->edge_tokens_held();
    totals.bytes += tree->bytes_held();
  }
  return totals;
}

const PrefixTree* Catalogue::tree(NamespaceId name_space) const {
  const auto at = trees_.find(name_space);
  return at == trees_.end() ? nullptr : at->second.get();
}

}  // namespace cairn

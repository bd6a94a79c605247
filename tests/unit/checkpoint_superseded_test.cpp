// Two tiers, and states that a longer one of their branch takes the place of: they went from the disk before that one had come there.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <latch>
#include <string>
#include <utility>

#include "checkpoint/catalogue.hpp"
#include "unit/checkpoint_support.hpp"

namespace cairn::test {
namespace {

using testing::ElementsAre;

constexpr NamespaceId ours{1};
Tokens text(const std::string& letters) { return Tokens(letters.begin(), letters.end()); }

class Superseded : public ::testing::Test {
 protected:
  ScratchDirectory scratch;
  FaultyLayer files;
  StoreFixture fixture{scratch, files, 100'000};
  std::unique_ptr<Catalogue> catalogue;

  CheckpointStore& store() { return *fixture.store; }
  void SetUp() override {
    fixture.options.disk_dir = scratch.path() + "/disk";
    fixture.options.ram_budget_bytes = 60'000;
    reopen();
  }
  void TearDown() override { catalogue.reset(); }
  void reopen() {
    catalogue.reset();
    const auto opened = fixture.open();
    ASSERT_TRUE(opened) << to_string(opened.error());
    catalogue = std::make_unique<Catalogue>(store(), 1'000'000);
    ASSERT_TRUE(fixture.await(catalogue->load()));
  }
  void reboot() {
    catalogue.reset();
    fixture.store.reset();
    fs::remove_all(scratch.slots());
    reopen();
  }
  Result<CommittedCheckpoint> commit(const std::string& letters, const std::vector<std::uint32_t>& resume_positions) {
    const std::string data = state_bytes(4, text(letters), 9000, resume_positions).data;
    auto reservation = fixture.await(store().reserve(data.size()));
    if (!reservation) return reservation.error();
    write_file(fixture.options.slot_dir + "/" + reservation->temporary_name(), data);
    NewCheckpoint fresh;
    fresh.namespace_id = ours;
    fresh.saved_tokens = letters.size();
    fresh.kind = CheckpointKind::checkpointed;
    fresh.cost_to_recompute_s = 1;
    return fixture.await(store().commit(std::move(*reservation), std::move(fresh)));
  }
  // As CachedBackend does it.
  CheckpointId save(const std::string& letters, const std::vector<std::uint32_t>& resume_positions = {}) {
    fixture.now_ms += 1000;
    (void)catalogue->learn(ours, text(letters), fixture.now_ms);
    return save_only(letters, resume_positions);
  }
  CheckpointId save_only(const std::string& letters, const std::vector<std::uint32_t>& resume_positions = {}) {
    const auto committed = commit(letters, resume_positions);
    EXPECT_TRUE(committed) << to_string(committed.error());
    if (!committed) return {};
    for (const CheckpointId old : catalogue->add(committed->id, committed->tokens, fixture.now_ms)) {
      EXPECT_TRUE(fixture.await(store().supersede(old, committed->id)));
    }
    return committed->id;
  }
  Result<void> copy_all() { return fixture.await(store().copy_down([] { return false; })); }
  Result<void> copy_overdue() { return fixture.await(store().copy_overdue([] { return false; })); }
  bool on_disk(CheckpointId id) { return store().find(id) != nullptr && store().find(id)->on_disk; }
  std::vector<CheckpointId> find(const std::string& prompt) {
    std::vector<CheckpointId> found;
    for (const auto& one : catalogue->candidates(ours, text(prompt), MemoryKind::checkpointed, 8)) found.push_back(one.checkpoint);
    return found;
  }
  std::size_t disk_files() const {
    const fs::directory_iterator all(fixture.options.disk_dir);
    return static_cast<std::size_t>(std::distance(begin(all), end(all))) - 1;  // the lock
  }
};

// On a busy server for hours: all that the conversation had was recomputed.
TEST_F(Superseded, APowerCutBeforeTheNewTurnIsCopiedLosesThatTurnAlone) {
  const CheckpointId old = save("abc");
  ASSERT_TRUE(copy_all());
  const CheckpointId next = save("abcdef", {3});
  ASSERT_TRUE(on_disk(old));
  EXPECT_FALSE(store().find(old)->in_slots);
  EXPECT_THAT(fixture.slot_files(), ElementsAre(store().find(next)->file_name));
  EXPECT_THAT(find("abcdefg"), ElementsAre(next));
  EXPECT_EQ(catalogue->tokens_of(old), text("abc")) << "a restore may be under way";
  reboot();
  EXPECT_EQ(store().find(next), nullptr);
  EXPECT_THAT(find("abcdefg"), ElementsAre(old));
  const auto use = store().use(old);
  EXPECT_TRUE(fixture.await(store().verify_before_restore(old)));
}

TEST_F(Superseded, GoesWhenItsSuccessorIsCopied) {
  const CheckpointId old = save("abc");
  ASSERT_TRUE(copy_all());
  const CheckpointId next = save("abcdef", {3});
  ASSERT_TRUE(copy_all());
  EXPECT_EQ(store().find(old), nullptr);
  EXPECT_TRUE(on_disk(next));
  EXPECT_EQ(disk_files(), 1u);
  EXPECT_EQ(store().counters().disk_bytes, store().find(next)->bytes);
  EXPECT_EQ(store().counters().condemned_disk_bytes, 0u);
  reboot();
  EXPECT_THAT(find("abcdefg"), ElementsAre(next));
  EXPECT_EQ(store().counters().swept_entries, 0u);
  EXPECT_EQ(store().counters().swept_files, 0u);
}

// With each turn a conversation began anew: it was worth as little as what nobody had asked for again.
TEST_F(Superseded, HandsItsUsesOn) {
  const CheckpointId old = save("abc");
  store().mark_used(old);
  store().mark_used(old);
  const CheckpointId next = save("abcdef", {3});
  EXPECT_EQ(store().find(next)->uses, 2u);
  const CheckpointId last = save("abcdefghi", {3, 6});
  EXPECT_EQ(store().find(last)->uses, 2u);
  store().mark_used(last);
  reopen();
  EXPECT_EQ(store().find(last)->uses, 2u) << "that use was not flushed";
}

TEST_F(Superseded, StaysWhenItsSuccessorIsRemoved) {
  const CheckpointId old = save("abc");
  ASSERT_TRUE(copy_all());
  const CheckpointId next = save("abcdef", {3});
  ASSERT_TRUE(fixture.await(store().erase(next, RemovalReason::bad_file)));
  EXPECT_EQ(store().successor_of(old), std::nullopt);
  EXPECT_THAT(find("abcdefg"), ElementsAre(old));
  ASSERT_TRUE(copy_all());
  EXPECT_TRUE(on_disk(old));
}

TEST_F(Superseded, StaysWhenItIsPinned) {
  const CheckpointId old = save("abc");
  ASSERT_TRUE(copy_all());
  const CheckpointId next = save("abcdef", {3});
  ASSERT_TRUE(fixture.await(store().pin(old, "")));
  ASSERT_TRUE(copy_all());
  EXPECT_TRUE(on_disk(old));
  EXPECT_TRUE(on_disk(next));
  EXPECT_THAT(find("abcx"), ElementsAre(old, next));
}

TEST_F(Superseded, WaitsForTheLatestOfSeveralTurnsThatFoundNoQuiet) {
  const CheckpointId old = save("abc");
  ASSERT_TRUE(copy_all());
  const CheckpointId second = save("abcdef", {3});
  fixture.now_ms += CheckpointStore::longest_uncopied_ms / 2;
  const CheckpointId third = save("abcdefghi", {3, 6});
  EXPECT_EQ(store().find(second), nullptr);
  EXPECT_TRUE(on_disk(old));
  EXPECT_EQ(store().successor_of(old), third);
  ASSERT_TRUE(copy_overdue());
  EXPECT_FALSE(on_disk(third)) << "it may wait for a quiet moment";
  // Turns that come faster than that must not put it off for ever.
  fixture.now_ms += CheckpointStore::longest_uncopied_ms / 2;
  ASSERT_TRUE(copy_overdue());
  EXPECT_TRUE(on_disk(third));
  EXPECT_EQ(store().find(old), nullptr);
  EXPECT_FALSE(store().copies_wait());
}

// A copy that takes longer than a turn would never be finished for anything.
TEST_F(Superseded, IsCopiedToItsEndWhenThatHasBegun) {
  const CheckpointId old = save("abc");
  const auto next = commit("abcdef", {3});
  ASSERT_TRUE(next);
  fixture.now_ms += 1000;
  store().mark_used(old);  // so that it comes first
  std::latch superseded(1);
  files.before = [&](int, const char* call) -> std::optional<Error> {
    if (std::string_view(call) == "create") superseded.wait();
    return std::nullopt;
  };
  bool began = false;
  boost::asio::io_context io;
  boost::asio::co_spawn(io, store().copy_down([&] { return std::exchange(began, true); }),
                        [](std::exception_ptr, Result<void> copied) { EXPECT_TRUE(copied); });
  boost::asio::co_spawn(io, store().supersede(old, next->id), [&](std::exception_ptr, Result<void>) { superseded.count_down(); });
  io.run();
  ASSERT_TRUE(on_disk(old));
  EXPECT_FALSE(store().find(old)->in_slots);
  EXPECT_EQ(store().successor_of(old), next->id);
  EXPECT_EQ(store().counters().condemned_bytes, 0u);
  ASSERT_TRUE(copy_all());
  EXPECT_EQ(store().find(old), nullptr);
  EXPECT_TRUE(on_disk(next->id));
}

// Nobody looked at it again: out of the tree, but in the disk's budget until the next start.
TEST_F(Superseded, GoesWhenTheLastOfItsSuccessorsWasCopiedBeforeTheOneBetween) {
  const CheckpointId old = save("abc");
  ASSERT_TRUE(copy_all());
  const CheckpointId second = save("abcdef", {3});
  std::latch copying(1), last_is_copied(1);
  std::atomic<int> creating{0};
  files.before = [&](int, const char* call) -> std::optional<Error> {
    if (std::string_view(call) == "create" && creating++ == 0) {
      copying.count_down();
      last_is_copied.wait();
    }
    return std::nullopt;
  };
  boost::asio::io_context io;
  boost::asio::co_spawn(io, store().copy_down([began = false]() mutable { return std::exchange(began, true); }),
                        [](std::exception_ptr, Result<void>) {});
  while (!copying.try_wait()) io.poll();
  const CheckpointId last = save("abcdefghi", {3, 6});
  ASSERT_TRUE(copy_all());
  EXPECT_TRUE(on_disk(last));
  last_is_copied.count_down();
  io.run();
  EXPECT_EQ(store().find(second), nullptr);
  EXPECT_EQ(store().find(old), nullptr);
  ASSERT_TRUE(fixture.await(store().flush()));
  EXPECT_EQ(disk_files(), 1u);
  EXPECT_EQ(store().counters().disk_bytes, store().find(last)->bytes);
}

// Of several that a state makes useless the first was being deleted when the client pinned the second, and was told that it stays.
TEST_F(Superseded, StaysWhenItWasPinnedJustBefore) {
  const CheckpointId old = save("abc");
  ASSERT_TRUE(copy_all());
  fixture.now_ms += 1000;
  const auto next = commit("abcdef", {3});
  ASSERT_TRUE(next);
  EXPECT_THAT(catalogue->add(next->id, next->tokens, fixture.now_ms), ElementsAre(old));
  ASSERT_TRUE(fixture.await(store().pin(old, "system prompt")));
  ASSERT_TRUE(fixture.await(store().supersede(old, next->id)));
  ASSERT_TRUE(copy_all());
  EXPECT_TRUE(on_disk(old));
  EXPECT_TRUE(on_disk(next->id));
  EXPECT_THAT(find("abcx"), ElementsAre(old, next->id));
}

// What it offers its successor offers: beside each other both would seem to be worth nothing.
TEST_F(Superseded, TakesNothingFromItsSuccessorsWorth) {
  fixture.options.budget_bytes = 30'000;
  reopen();
  const std::string conversation(100, 'a');
  const CheckpointId old = save(conversation);
  ASSERT_TRUE(copy_all());
  const CheckpointId cheap = save("xyz");
  store().set_cost(cheap, 0.001);
  ASSERT_TRUE(copy_all());
  const CheckpointId other = save("uvw");
  store().set_cost(other, 0.001);
  ASSERT_TRUE(copy_all());
  const CheckpointId next = save(conversation + "b", {100});
  ASSERT_TRUE(copy_all());
  EXPECT_TRUE(on_disk(next));
  EXPECT_EQ(store().find(old), nullptr);
  EXPECT_TRUE(on_disk(cheap) != on_disk(other)) << "one made room, so that the old one could wait";
  EXPECT_LE(store().counters().disk_bytes, 30'000u);
}

TEST_F(Superseded, GoesFromAFullDiskWhenNothingElseMay) {
  fixture.options.budget_bytes = 15'000;
  reopen();
  const CheckpointId old = save("abc");
  ASSERT_TRUE(copy_all());
  const CheckpointId next = save("abcdef", {3});
  ASSERT_TRUE(copy_all());
  EXPECT_EQ(store().find(old), nullptr);
  EXPECT_TRUE(on_disk(next));
}

// It counted as worthless beside its successor, which was in RAM alone: what anybody asked once took its place, and a reboot the rest.
TEST_F(Superseded, IsNotDrivenOffTheDiskByWhatIsWorthLess) {
  fixture.options.budget_bytes = 20'000;
  reopen();
  const CheckpointId old = save("abc");
  ASSERT_TRUE(copy_all());
  store().set_cost(save("xyz"), 100);
  ASSERT_TRUE(copy_all());
  save("abcdef", {3});
  const CheckpointId once = save("uvw");
  store().set_cost(once, 1e-6);
  bool began = false;
  EXPECT_FALSE(fixture.await(store().copy_down([&] { return std::exchange(began, true); })));  // of the last one
  EXPECT_FALSE(on_disk(once));
  EXPECT_TRUE(on_disk(old));
  reboot();
  EXPECT_THAT(find("abcdefg"), ElementsAre(old));
}

TEST_F(Superseded, GoesFromAFullDiskForWhatIsWorthMore) {
  fixture.options.budget_bytes = 20'000;
  reopen();
  const CheckpointId old = save("abc");
  ASSERT_TRUE(copy_all());
  const CheckpointId dearer = save("xyz");
  store().set_cost(dearer, 10);
  ASSERT_TRUE(copy_all());
  const CheckpointId next = save("abcdef", {3});
  const CheckpointId dear = save("uvw");
  store().set_cost(dear, 100);
  bool began = false;
  ASSERT_TRUE(fixture.await(store().copy_down([&] { return std::exchange(began, true); })));
  EXPECT_TRUE(on_disk(dear));
  EXPECT_TRUE(on_disk(dearer));
  EXPECT_EQ(store().find(old), nullptr);
  EXPECT_THAT(find("abcdefg"), ElementsAre(next));
}

// Its successor has left its path: it was taken for a beginning of that one.
TEST_F(Superseded, HoldsItsOwnTokensWhileItWaitsAndAfterwards) {
  const std::string question = "system|user:one?|bot:<think>";
  (void)catalogue->learn(ours, text("another system|user:zero?|bot:<think>"), fixture.now_ms);
  const auto turn = [&](const std::string& prompt, const std::string& answer) {
    fixture.now_ms += 1000;
    (void)catalogue->learn(ours, text(prompt), fixture.now_ms);
    return save_only(prompt + answer);
  };
  const std::string reasoned = question + "let me think about it, for quite a while</think>answer";
  const CheckpointId old = turn(question, reasoned.substr(question.size()));
  ASSERT_TRUE(copy_all());
  const std::string next_prompt = "system|user:one?|bot:answer|user:two?|bot:<think>";
  const CheckpointId next = turn(next_prompt, "yes");
  ASSERT_EQ(store().successor_of(old), next);
  EXPECT_EQ(catalogue->tokens_of(old), text(reasoned));
  EXPECT_THAT(find(reasoned + "|"), testing::IsEmpty());
  for (int i = 0; i < 100; ++i) (void)catalogue->learn(ours, tokens_of_length(20'000, 1000 + i * 37), fixture.now_ms);  // more than the tree holds
  EXPECT_EQ(catalogue->tokens_of(old), text(reasoned));
  ASSERT_TRUE(fixture.await(store().erase(next)));
  EXPECT_EQ(catalogue->tokens_of(old), text(reasoned));
  EXPECT_THAT(find(reasoned + "|"), ElementsAre(old));
  ASSERT_TRUE(fixture.await(store().erase(old)));
  EXPECT_EQ(catalogue->tree(ours)->marks(), 0u);
  EXPECT_EQ(catalogue->tree(ours)->check_invariants(), "");
}

TEST_F(Superseded, WithoutTiersItGoesAtOnce) {
  fixture.options.disk_dir.clear();
  fixture.options.slot_dir = scratch.path() + "/one";
  fixture.options.state_dir = scratch.path() + "/state1";
  fs::create_directory(fixture.options.slot_dir);
  reopen();
  const CheckpointId old = save("abc");
  const CheckpointId next = save("abcdef", {3});
  EXPECT_EQ(store().find(old), nullptr);
  EXPECT_THAT(find("abcdefg"), ElementsAre(next));
  EXPECT_FALSE(store().copies_wait());
}

}  // namespace
}  // namespace cairn::test

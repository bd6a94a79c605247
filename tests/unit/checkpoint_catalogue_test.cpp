#include "checkpoint/catalogue.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "unit/checkpoint_support.hpp"

namespace cairn {

void PrintTo(const Catalogue::Candidate& candidate, std::ostream* out) {
  *out << "#" << static_cast<std::int64_t>(candidate.checkpoint) << " for " << candidate.usable_tokens << " in " << candidate.bytes;
}

namespace test {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using testing::UnorderedElementsAre;

constexpr MemoryKind truncatable = MemoryKind::truncatable;
constexpr MemoryKind checkpointed = MemoryKind::checkpointed;
constexpr MemoryKind exact = MemoryKind::exact;
constexpr NamespaceId ours{1};

// Text as tokens: one a letter, so that the tests can be read.
Tokens text(const std::string& letters) { return Tokens(letters.begin(), letters.end()); }

class CatalogueTest : public ::testing::Test {
 protected:
  ScratchDirectory scratch;
  FaultyLayer files;
  StoreFixture fixture{scratch, files};
  std::unique_ptr<Catalogue> catalogue;

  CheckpointStore& store() { return *fixture.store; }
  void SetUp() override { reopen(); }
  void TearDown() override { catalogue.reset(); }
  void reopen() {
    catalogue.reset();
    const auto opened = fixture.open();
    ASSERT_TRUE(opened) << to_string(opened.error());
    catalogue = std::make_unique<Catalogue>(store(), 1'000'000);
    const auto loaded = fixture.await(catalogue->load());
    ASSERT_TRUE(loaded) << to_string(loaded.error());
  }

  // Saves without telling the catalogue.
  CheckpointId commit(const Tokens& tokens, MemoryKind kind, const std::vector<std::uint32_t>& points = {}, std::size_t bytes = 100,
                      NamespaceId name_space = ours, std::uint32_t version = 4) {
    const std::string data = state_bytes(version, tokens, bytes, version >= 4 ? points : std::vector<std::uint32_t>{}, 10).data;
    auto reservation = fixture.await(store().reserve(data.size()));
    if (!reservation) throw std::runtime_error(to_string(reservation.error()));
    write_file(scratch.slots() + "/" + reservation->temporary_name(), data);
    NewCheckpoint fresh;
    fresh.namespace_id = name_space;
    fresh.saved_tokens = tokens.size();
    fresh.kind = kind;
    if (version < 4) fresh.resume_positions = points;
    const auto committed = fixture.await(store().commit(std::move(*reservation), fresh));
    if (!committed) throw std::runtime_error(to_string(committed.error()));
    return committed->id;
  }
  CheckpointId save(const std::string& letters, MemoryKind kind, const std::vector<std::uint32_t>& points = {}, std::size_t bytes = 100,
                    NamespaceId name_space = ours, std::uint32_t version = 4) {
    const CheckpointId id = commit(text(letters), kind, points, bytes, name_space, version);
    useless = catalogue->add(id, text(letters), ++fixture.now_ms);
    return id;
  }
  using Pairs = std::vector<std::pair<CheckpointId, std::uint32_t>>;
  Pairs find(const std::string& prompt, MemoryKind kind, std::size_t count = 8, NamespaceId name_space = ours) {
    return find(text(prompt), kind, count, name_space);
  }
  Pairs find(const Tokens& prompt, MemoryKind kind, std::size_t count = 8, NamespaceId name_space = ours) {
    Pairs found;
    for (const auto& one : catalogue->candidates(name_space, prompt, kind, count)) found.push_back({one.checkpoint, one.usable_tokens});
    return found;
  }
  static std::pair<CheckpointId, std::uint32_t> at(CheckpointId id, std::uint32_t usable) { return {id, usable}; }

  std::vector<CheckpointId> useless;  // by the last save
};

TEST_F(CatalogueTest, NothingIsKnownAtFirst) {
  EXPECT_THAT(find("abc", truncatable), IsEmpty());
  EXPECT_THAT(find("", truncatable), IsEmpty());
  EXPECT_EQ(catalogue->tree(ours), nullptr);
  EXPECT_EQ(catalogue->totals().nodes, 0u);
  EXPECT_TRUE(catalogue->tokens_of(CheckpointId{5}).empty());
  EXPECT_FALSE(catalogue->has_state_at(ours, text("abc")));
  EXPECT_THAT(catalogue->add(CheckpointId{5}, text("abc"), 1), IsEmpty());  // gone before it was added
}

TEST_F(CatalogueTest, LearnsWherePromptsPart) {
  const auto first = catalogue->learn(ours, text("system hello"), 1);
  EXPECT_EQ(first.matched_tokens, 0u);
  EXPECT_EQ(first.branch_tokens, 0u);
  const auto second = catalogue->learn(ours, text("system world"), 2);
  EXPECT_EQ(second.matched_tokens, 7u);
  EXPECT_EQ(second.branch_tokens, 7u);
  const auto grown = catalogue->learn(ours, text("system world and more"), 3);
  EXPECT_EQ(grown.matched_tokens, 12u);
  EXPECT_EQ(grown.branch_tokens, 0u);
  EXPECT_EQ(catalogue->learn(NamespaceId{2}, text("system world"), 4).matched_tokens, 0u);
  EXPECT_THAT(find("system world", truncatable), IsEmpty());  // known, but nothing saved
}

// Eleven conversations in turn: what had been saved with its answer seemed to be gone on from by nobody.
TEST_F(CatalogueTest, ATurnThatSharesTheAnswerTooGoesOnFromThePrompt) {
  catalogue->learn(ours, text("system hello"), 1);
  save("system hello|answer", truncatable);
  const auto next = catalogue->learn(ours, text("system hello|answer|and more"), 2);
  EXPECT_TRUE(next.continues);
  EXPECT_GT(catalogue->end_offsets(ours).followed(0), 0.2);
  EXPECT_FALSE(catalogue->learn(ours, text("another system"), 3).continues);
}

// Agents ask with a closing message that their next prompt has not.
TEST_F(CatalogueTest, LearnsHowOftenPromptsAreLeftBeforeTheirLastMessage) {
  const auto first = catalogue->learn(ours, text("history user: what next?"), 1, 8);
  EXPECT_EQ(first.message.at, 8u);
  EXPECT_FALSE(first.message.seen_often);
  const auto second = catalogue->learn(ours, text("history agent: it. user: and next?"), 2, 19);
  EXPECT_EQ(second.matched_tokens, 8u);
  EXPECT_EQ(second.message.at, 19u);
  EXPECT_GT(second.message.chance, first.message.chance);
  catalogue->learn(ours, text("history other: that."), 3);  // finds a state there: tells nothing new
  const auto third = catalogue->learn(ours, text("history agent: it. user: or that?"), 4, 19);
  EXPECT_EQ(third.message.at, 0u) << "it lies in what was known";
  EXPECT_TRUE(catalogue->learn(ours, text("another user: hello?"), 5, 8).message.seen_often) << "the same one spoke";
  ASSERT_TRUE(fixture.await(catalogue->keep_learned(ours)));
  reopen();
  EXPECT_TRUE(catalogue->learn(ours, text("a third user: hello?"), 6, 8).message.seen_often) << "it outlives the process";
  const double chance = catalogue->learn(ours, text("a fourth user: hello?"), 7, 9).message.chance;
  for (int i = 0; i < 30; ++i) catalogue->learn(ours, tokens_of_length(150, 1000 + i * 500), 8 + i, 100);
  EXPECT_LT(catalogue->learn(ours, text("a fifth user: hello?"), 50, 8).message.chance, chance / 3);
}

TEST_F(CatalogueTest, TruncatableServesWhateverIsShared) {
  const CheckpointId a = save("abcdefghij", truncatable);
  EXPECT_THAT(find("abcdefghijkl", truncatable), ElementsAre(at(a, 10)));  // extended
  EXPECT_THAT(find("abcdefghij", truncatable), ElementsAre(at(a, 9)));     // the same
  EXPECT_THAT(find("abcdef", truncatable), ElementsAre(at(a, 5)));         // a prefix of it
  EXPECT_THAT(find("abcdxyz", truncatable), ElementsAre(at(a, 4)));        // branches off in the middle
  EXPECT_THAT(find("abcdefghijxyz", truncatable), ElementsAre(at(a, 10)));
  EXPECT_THAT(find("ax", truncatable), ElementsAre(at(a, 1)));
  EXPECT_THAT(find("a", truncatable), IsEmpty());  // its one token is computed
  EXPECT_THAT(find("xyz", truncatable), IsEmpty());
}

TEST_F(CatalogueTest, TruncatableBelowAndBesideThePromptsPath) {
  const CheckpointId a = save("abcdefghij", truncatable);
  const CheckpointId b = save("abcdeXYZ", truncatable);
  EXPECT_THAT(useless, IsEmpty());
  // Left within a's own stretch: a shares 7, b 5.
  EXPECT_THAT(find("abcdefg--", truncatable, 1), ElementsAre(at(a, 7)));
  EXPECT_THAT(find("abcdeXY--", truncatable, 1), ElementsAre(at(b, 7)));
  // Left at the fork: both serve.
  EXPECT_THAT(find("abcde--", truncatable), UnorderedElementsAre(at(a, 5), at(b, 5)));
  EXPECT_THAT(find("abc", truncatable), UnorderedElementsAre(at(a, 2), at(b, 2)));
  // A known prompt without a state of its own lies between: the fork above it is found.
  catalogue->learn(ours, text("abcde-1234"), 9);
  catalogue->learn(ours, text("abcde-1278"), 9);
  EXPECT_THAT(find("abcde-1278 and on", truncatable), UnorderedElementsAre(at(a, 5), at(b, 5)));
}

TEST_F(CatalogueTest, OfEqualUseTheSmallestFile) {
  const CheckpointId big = save("abcdefgh", truncatable, {}, 9000);
  const CheckpointId small = save("abcdeXYZ", truncatable, {}, 50);
  const CheckpointId middle = save("abcdePQR", truncatable, {}, 500);
  EXPECT_THAT(find("abcde--", truncatable), ElementsAre(at(small, 5), at(middle, 5), at(big, 5)));
}

TEST_F(CatalogueTest, CheckpointedOffersItsEndAndTheMarksOnThePath) {
  const CheckpointId a = save("abcdefghij", checkpointed, {3, 6, 8});
  EXPECT_THAT(find("abcdefghijk", checkpointed), ElementsAre(at(a, 10)));
  EXPECT_THAT(find("abcdefghij", checkpointed), ElementsAre(at(a, 8)));
  EXPECT_THAT(find("abcdefghi", checkpointed), ElementsAre(at(a, 8)));
  EXPECT_THAT(find("abcdefgh", checkpointed), ElementsAre(at(a, 6)));  // one token is computed
  EXPECT_THAT(find("abcdefg----", checkpointed), ElementsAre(at(a, 6)));
  EXPECT_THAT(find("abc----", checkpointed), ElementsAre(at(a, 3)));
  EXPECT_THAT(find("ab----", checkpointed), IsEmpty());
  // Whatever the backend could do: this file cannot be cut.
  EXPECT_THAT(find("abcdefg----", truncatable), ElementsAre(at(a, 6)));
  // It cannot use context checkpoints any more.
  EXPECT_THAT(find("abcdefg----", exact), IsEmpty());
  EXPECT_THAT(find("abcdefghijk", exact), ElementsAre(at(a, 10)));
}

TEST_F(CatalogueTest, MarksAreSharedOnlyAsFarAsThePathsAre) {
  const CheckpointId a = save("abcdefghij", checkpointed, {3, 6});
  const CheckpointId b = save("abcdeXYZW", checkpointed, {4, 7});
  EXPECT_THAT(find("abcdefgh----", checkpointed), ElementsAre(at(a, 6), at(b, 4)));
  EXPECT_THAT(find("abcdeXYZ----", checkpointed), ElementsAre(at(b, 7), at(a, 3)));
  EXPECT_THAT(find("abcdeXYZ----", checkpointed, 1), ElementsAre(at(b, 7)));
  EXPECT_THAT(find("abcde----", checkpointed), ElementsAre(at(b, 4), at(a, 3)));
}

TEST_F(CatalogueTest, ExactOffersEndsOnly) {
  const CheckpointId a = save("abcd", exact);
  const CheckpointId b = save("abcdefgh", exact);
  EXPECT_THAT(useless, IsEmpty());
  EXPECT_THAT(find("abcdefghi", exact), ElementsAre(at(b, 8), at(a, 4)));
  EXPECT_THAT(find("abcdefgh", exact), ElementsAre(at(a, 4)));
  EXPECT_THAT(find("abcdefg--", exact), ElementsAre(at(a, 4)));
  EXPECT_THAT(find("abcd", exact), IsEmpty());
  EXPECT_THAT(find("abcdefgh", truncatable), ElementsAre(at(a, 4)));
}

TEST_F(CatalogueTest, OldFilesCarryNoMarks) {
  const CheckpointId old = save("abcdefghij", exact, {}, 100, ours, 2);
  EXPECT_THAT(find("abcdefghijk", exact), ElementsAre(at(old, 10)));
  EXPECT_THAT(find("abcdefgh", checkpointed), IsEmpty());
}

TEST_F(CatalogueTest, NamespacesAreApart) {
  const CheckpointId a = save("abcdef", truncatable);
  const CheckpointId b = save("abcdef", truncatable, {}, 100, NamespaceId{2});
  EXPECT_THAT(useless, IsEmpty());
  EXPECT_THAT(find("abcdefg", truncatable), ElementsAre(at(a, 6)));
  EXPECT_THAT(find("abcdefg", truncatable, 8, NamespaceId{2}), ElementsAre(at(b, 6)));
  EXPECT_THAT(find("abcdefg", truncatable, 8, NamespaceId{3}), IsEmpty());
}

TEST_F(CatalogueTest, AStateAtAPlace) {
  save("abcdefghij", checkpointed, {3, 6});
  for (const std::string& there : {"abc", "abcdef", "abcdefghij"}) EXPECT_TRUE(catalogue->has_state_at(ours, text(there))) << there;
  for (const std::string& not_there : {"ab", "abcd", "abcdefghijk", "xyz", "abX"}) {
    EXPECT_FALSE(catalogue->has_state_at(ours, text(not_there))) << not_there;
  }
  EXPECT_FALSE(catalogue->has_state_at(NamespaceId{2}, text("abc")));
  EXPECT_FALSE(catalogue->has_state_at(ours, {}));
}

TEST_F(CatalogueTest, TokensOfACheckpoint) {
  const CheckpointId a = save("abcdef", checkpointed, {3});
  save("abcXYZ", checkpointed, {3});
  EXPECT_EQ(catalogue->tokens_of(a), text("abcdef"));
}

TEST_F(CatalogueTest, ALongerTruncatableStateReplacesThoseOnItsPath) {
  const CheckpointId a = save("abcd", truncatable);
  const CheckpointId side = save("abXY", truncatable);
  EXPECT_THAT(useless, IsEmpty());
  const CheckpointId b = save("abcdef", truncatable);
  EXPECT_THAT(useless, ElementsAre(a));
  const CheckpointId same = save("abcdef", truncatable);
  EXPECT_THAT(useless, UnorderedElementsAre(a, b));
  save("abc", truncatable);
  EXPECT_THAT(useless, IsEmpty());
  ASSERT_TRUE(fixture.await(store().pin(same, "kept")));
  save("abcdefgh", truncatable);
  EXPECT_THAT(useless, testing::Not(testing::Contains(same)));
  EXPECT_THAT(useless, testing::Not(testing::Contains(side)));
}

TEST_F(CatalogueTest, ExactStatesReplaceOnlyTheSameOne) {
  const CheckpointId a = save("abcd", exact);
  save("abcdef", exact);
  EXPECT_THAT(useless, IsEmpty());
  save("abcd", exact);
  EXPECT_THAT(useless, ElementsAre(a));
  save("abcd", checkpointed, {2});
  EXPECT_THAT(useless, IsEmpty());  // of another kind
}

TEST_F(CatalogueTest, ACheckpointedStateReplacesThoseWhoseMarksItHas) {
  const CheckpointId a = save("abcdef", checkpointed, {2, 4});
  const CheckpointId early = save("abcd", checkpointed, {1, 3});
  EXPECT_THAT(useless, IsEmpty());  // a was there before and is no ancestor
  const CheckpointId b = save("abcdefghij", checkpointed, {2, 4, 8});
  EXPECT_THAT(useless, ElementsAre(a));  // its end at 6 is close behind 4; `early` has 1 and 3
  const CheckpointId thinned = save("abcdefghijkl", checkpointed, {8});
  EXPECT_THAT(useless, IsEmpty());  // the backend dropped 2 and 4: b still has them
  const CheckpointId end_only = save("abcde", checkpointed);
  save("abcdefghijklm", checkpointed, {2, 4, 8});
  EXPECT_THAT(useless, testing::Contains(b));
  EXPECT_THAT(useless, testing::Contains(thinned));
  EXPECT_THAT(useless, testing::Not(testing::Contains(end_only)));  // nothing else resumes at 5
  EXPECT_THAT(useless, testing::Not(testing::Contains(early)));
  // The same tokens with fewer marks do not replace; with as many they do.
  const CheckpointId rich = save("pqrstu", checkpointed, {2, 4});
  save("pqrstu", checkpointed, {3});
  EXPECT_THAT(useless, IsEmpty());
  save("pqrstu", checkpointed, {3, 5});
  EXPECT_THAT(useless, testing::Contains(rich));
}

// ---- answers that do not come back as they were given

class AnswersLeft : public CatalogueTest {
 protected:
  // A prompt comes, and what its slot holds behind the answer is saved.
  CheckpointId turn(const std::string& prompt, const std::string& answer, MemoryKind kind = truncatable, const std::vector<std::uint32_t>& points = {}) {
    catalogue->learn(ours, text(prompt), ++fixture.now_ms);
    return save(prompt + answer, kind, points);
  }
  void SetUp() override {
    CatalogueTest::SetUp();
    catalogue->learn(ours, text("another system|user:zero?|bot:<think>"), ++fixture.now_ms);  // how prompts end
  }
  static constexpr const char* reasoning = "the user wants to know this and that, so let me think</think>";
  const std::string first = "system|user:one?|bot:<think>";
  const std::string second = "system|user:one?|bot:answer|user:two?|bot:<think>";
  const std::string third = "system|user:one?|bot:answer|user:two?|bot:another|user:three?|bot:<think>";
};

// Templates drop the reasoning of earlier turns: each turn's state stayed beside the next one's until the budget was full.
TEST_F(AnswersLeft, TheNextTurnTakesThePlaceOfOneWhoseReasoningIsDropped) {
  const CheckpointId a = turn(first, reasoning + std::string("answer"));
  EXPECT_THAT(useless, IsEmpty());
  const CheckpointId b = turn(second, reasoning + std::string("another"));
  EXPECT_THAT(useless, ElementsAre(a));
  turn(third, reasoning + std::string("the third"));
  EXPECT_THAT(useless, UnorderedElementsAre(a, b)) << "nobody has removed the first one";
  EXPECT_EQ(catalogue->tree(ours)->check_invariants(), "");
}

TEST_F(AnswersLeft, BeforeItIsKnownHowPromptsEndNothingIsLeft) {
  reopen();
  turn(first, reasoning);
  turn(second, reasoning);
  EXPECT_THAT(useless, IsEmpty());
}

TEST_F(AnswersLeft, TheNextTurnTakesThePlaceOfOneWhoseAnswerIsRewritten) {
  const CheckpointId a = turn("system|user:one?|bot:", "the answer, with  two spaces");
  turn("system|user:one?|bot:the answer, with two spaces|user:two?|bot:", "another");
  EXPECT_THAT(useless, ElementsAre(a));
  // One that came back for the most part is not only an answer that was left.
  const std::string most(40, 'x');
  turn("system|user:three?|bot:", most + "  and");
  turn("system|user:three?|bot:" + most + " and|user:four?|bot:", "the last");
  EXPECT_THAT(useless, IsEmpty());
}

TEST_F(AnswersLeft, ACheckpointedOneMustOfferWhereTheOtherCouldBeResumed) {
  const CheckpointId a = turn(first, reasoning, checkpointed, {7, 20, 40});
  turn(second, reasoning, checkpointed, {7, 30});
  EXPECT_THAT(useless, IsEmpty()) << "nothing else is resumed at 20";
  turn(third, reasoning, checkpointed, {7, 20, 30});
  EXPECT_THAT(useless, testing::Contains(a));
}

TEST_F(AnswersLeft, WhatIsExactPinnedOrOfAnotherKindStays) {
  const CheckpointId a = turn(first, reasoning, exact);
  turn(second, reasoning, exact);
  EXPECT_THAT(useless, IsEmpty());
  const CheckpointId pinned = save(first + "it was pinned", truncatable);
  ASSERT_TRUE(fixture.await(store().pin(pinned, "")));
  turn(third, reasoning, truncatable);
  EXPECT_THAT(useless, testing::Not(testing::Contains(a)));
  EXPECT_THAT(useless, testing::Not(testing::Contains(pinned)));
}

TEST_F(AnswersLeft, ARegeneratedAnswerTakesNoPlace) {
  turn(first, "one answer");
  const CheckpointId again = turn(first, "quite another answer");
  EXPECT_THAT(useless, IsEmpty());
  // Of two answers it is not known which one the client goes on from, nor whether from both.
  turn(first + "quite another answer|user:two?|bot:<think>", reasoning);
  EXPECT_THAT(useless, ElementsAre(again));
}

TEST_F(AnswersLeft, SessionsThatShareASystemPromptAreApart) {
  reopen();
  const std::string system = "a system prompt that all sessions share|user:";
  for (const std::string& question : {"hi", "yo", "what is the capital of the country that lies north of Italy?", "hi there", "oh, hi"}) {
    turn(system + question + "|bot:<think>", "its answer to " + question);
    EXPECT_THAT(useless, IsEmpty()) << question;
    turn(system + "another one says " + question + "|bot:answer|user:" + question + "|bot:<think>", "no next turn of " + question);
    EXPECT_THAT(useless, IsEmpty()) << question;
  }
}

TEST_F(AnswersLeft, OneWhoseAnswerSomebodyGoesOnFromStays) {
  turn(first, "answer");
  const CheckpointId gone_on_from = turn(first + "answer|user:two?|bot:<think>", reasoning);
  useless.clear();
  const CheckpointId beside = turn(second, reasoning);
  EXPECT_THAT(useless, testing::Not(testing::Contains(gone_on_from)));
  // Also when what was asked since has made everybody forget those prompts.
  for (int i = 0; i < 70; ++i) catalogue->learn(ours, tokens_of_length(100, 1000 + i * 500), ++fixture.now_ms);
  catalogue->learn(ours, text(first), ++fixture.now_ms);
  turn("system|user:one?|bot:other answer|user:three?|bot:<think>", reasoning);
  EXPECT_THAT(useless, IsEmpty());
  EXPECT_NE(store().find(beside), nullptr);
}

// After a start the tree knows states alone: a whole conversation lies there in one piece.
TEST_F(AnswersLeft, WhatWasSavedBeforeThePromptCameIsNotItsAnswer) {
  turn(first, "answer|user:two?|bot:" + std::string(reasoning) + "a whole conversation");
  reopen();
  catalogue->learn(ours, text(first), ++fixture.now_ms);
  turn(second, reasoning);
  EXPECT_THAT(useless, IsEmpty());
}

TEST_F(CatalogueTest, WhatIsRemovedIsDetached) {
  const CheckpointId a = save("abcdefghij", checkpointed, {3, 6});
  const CheckpointId b = save("abcdeXYZ", checkpointed, {4});
  ASSERT_TRUE(fixture.await(store().erase(a)));
  EXPECT_THAT(find("abcdefghijk", checkpointed), ElementsAre(at(b, 4)));
  EXPECT_TRUE(catalogue->tokens_of(a).empty());
  EXPECT_FALSE(catalogue->has_state_at(ours, text("abc")));
  ASSERT_TRUE(fixture.await(store().erase(b)));
  EXPECT_EQ(catalogue->tree(ours)->marks(), 0u);
  EXPECT_EQ(catalogue->tree(ours)->check_invariants(), "");
  // The tree still knows the prompts.
  EXPECT_EQ(catalogue->learn(ours, text("abcdefghij"), 5).matched_tokens, 10u);
}

TEST_F(CatalogueTest, EvictionDetachesToo) {
  fixture.options.budget_bytes = 20'000;
  reopen();
  for (int i = 0; i < 10; ++i) save("conversation " + std::to_string(i), truncatable, {}, 6000);
  std::size_t kept = 0;
  store().for_each([&](const CheckpointRecord&) { ++kept; });
  EXPECT_LT(kept, 10u);
  EXPECT_EQ(catalogue->tree(ours)->marks(), kept);
  EXPECT_EQ(find("conversation of another kind", truncatable, 100).size(), kept);
  std::size_t evicted = 0;
  for (int i = 0; i < 10; ++i) {
    evicted += catalogue->evicted_beyond(ours, text("conversation " + std::to_string(i) + " goes on"), 12) ? 1 : 0;
  }
  EXPECT_EQ(evicted, 10 - kept);  // found in a review: the entry is gone before the catalogue hears of it
}

TEST_F(CatalogueTest, ReturnTimesLearnedOutliveTheProcess) {
  const std::string key = "return_times:1";
  for (int turn = 0; turn < 20; ++turn) catalogue->learn(ours, tokens_of_length(100 + turn * 10), turn * 10'000);
  ASSERT_TRUE(fixture.await(catalogue->keep_learned(ours)));
  const auto learned = store().setting(key);
  ASSERT_TRUE(learned);
  reopen();
  constexpr NamespaceId fresh{2};
  for (const NamespaceId name_space : {ours, fresh}) {
    catalogue->learn(name_space, text("another prompt"), 0);
    ASSERT_TRUE(fixture.await(catalogue->keep_learned(name_space)));
  }
  EXPECT_EQ(store().setting(key), learned);
  EXPECT_NE(store().setting("return_times:2"), learned);
}

TEST_F(CatalogueTest, TheTreeStaysWithinItsBoundAndKeepsWhatIsSaved) {
  catalogue = std::make_unique<Catalogue>(store(), 2000);
  const CheckpointId a = save("a saved prompt", truncatable);
  for (int i = 0; i < 100; ++i) catalogue->learn(ours, tokens_of_length(150, 1000 + i * 37), i);
  EXPECT_LE(catalogue->totals().tokens, 2000u);
  EXPECT_THAT(find("a saved prompt goes on", truncatable), ElementsAre(at(a, 14)));
}

TEST_F(CatalogueTest, AfterAReopenTheSameCandidates) {
  const std::vector<CheckpointId> ids{save("abcdefghij", checkpointed, {3, 6}), save("abcdeXYZ", checkpointed, {4}),
                                      save("abcde", exact), save("abXY", truncatable), save("abXYZW", truncatable)};
  catalogue->learn(ours, text("abcdefg-known"), 1);
  const std::vector<std::string> prompts{"abcdefghijk", "abcdefg", "abcdeXYZZ", "abXYZ", "abX--", "abcde", "ab", "x"};
  std::vector<Pairs> before;
  for (const std::string& prompt : prompts) {
    for (const MemoryKind kind : {truncatable, checkpointed, exact}) before.push_back(find(prompt, kind));
  }
  reopen();
  std::vector<Pairs> after;
  for (const std::string& prompt : prompts) {
    for (const MemoryKind kind : {truncatable, checkpointed, exact}) after.push_back(find(prompt, kind));
  }
  EXPECT_EQ(before, after);
  EXPECT_EQ(catalogue->tokens_of(ids[1]), text("abcdeXYZ"));
}

// A window looks truncatable while the prompt fits in it, and its files carry context checkpoints: they count for nothing.
TEST_F(CatalogueTest, ATruncatableStateWithMarksInside) {
  const CheckpointId a = save("abcdefghij", truncatable, {3});
  EXPECT_THAT(find("abcdefg--", truncatable), ElementsAre(at(a, 7)));
}

// What a slow and simple catalogue would say.
struct NaiveState {
  CheckpointId id{};
  Tokens tokens;
  MemoryKind kind = MemoryKind::unknown;
  std::vector<std::uint32_t> points;

  std::uint32_t usable(const Tokens& prompt, MemoryKind now) const {
    const auto common = static_cast<std::uint32_t>(common_prefix(tokens, prompt));
    const auto limit = static_cast<std::uint32_t>(prompt.size()) - 1;
    if (kind == MemoryKind::truncatable && now == MemoryKind::truncatable) return std::min(common, limit);
    std::uint32_t best = 0;
    if (common == tokens.size() && common <= limit) best = common;
    if (now != MemoryKind::exact) {
      for (const std::uint32_t point : points) {
        if (point <= common && point <= limit) best = std::max(best, point);
      }
    }
    return best;
  }
};

TEST_F(CatalogueTest, AStateWorthLessThanAllThatItWouldDriveOutIsDeclined) {
  fixture.options.budget_bytes = 4000;
  reopen();
  const std::string dear(200, 'a');
  const std::string cheap(20, 'b');
  (void)catalogue->learn(ours, text(dear), fixture.now_ms);
  const CheckpointId kept = save(dear, truncatable, {}, 2000);
  store().set_cost(kept, 100);
  const auto judge = [&](const std::string& letters, std::uint64_t bytes, double cost_s) {
    fixture.now_ms += 1000;
    (void)catalogue->learn(ours, text(letters), fixture.now_ms);
    CheckpointRecord state;
    state.namespace_id = ours;
    state.kind = truncatable;
    state.bytes = bytes;
    state.cost_to_recompute_s = cost_s;
    const Catalogue::Incoming incoming(*catalogue, state, text(letters), fixture.now_ms);
    EXPECT_FALSE(catalogue->has_state_at(ours, text(letters))) << "it is not there yet";
    return incoming.worth_saving();
  };
  EXPECT_TRUE(judge(cheap, 1000, 0.001)) << "there is room";
  EXPECT_FALSE(judge(cheap, 3000, 0.001));
  EXPECT_EQ(store().counters().declined, 1u);
  EXPECT_TRUE(judge(std::string(200, 'c'), 3000, 1e6));
  EXPECT_TRUE(judge(dear + "longer", 3000, 110)) << "what it makes useless is no loss";
  EXPECT_NE(store().find(kept), nullptr);
  EXPECT_THAT(catalogue->candidates(ours, text(cheap + "x"), truncatable, 4), IsEmpty());
}

TEST_F(CatalogueTest, SaysWhatANaiveOneSays) {
  std::mt19937_64 random(seed());
  const auto letters = [&](std::size_t length) {
    Tokens tokens(length);
    for (Token& token : tokens) token = static_cast<Token>(random() % 2);
    return tokens;
  };
  for (const MemoryKind kind : {truncatable, checkpointed, exact}) {
    std::vector<NaiveState> states;
    const NamespaceId name_space{static_cast<std::int64_t>(kind) + 10};
    for (int step = 0; step < 120; ++step) {
      const std::string trace = "kind " + std::string(to_string(kind)) + ", step " + std::to_string(step) +
                                ", CAIRN_TEST_SEED=" + std::to_string(seed());
      Tokens tokens = letters(1 + random() % 12);
      if (!states.empty() && random() % 2 == 0) {  // goes on from one of them
        Tokens longer = states[random() % states.size()].tokens;
        longer.resize(1 + random() % longer.size());
        longer.insert(longer.end(), tokens.begin(), tokens.end());
        tokens = longer;
      }
      const unsigned what = random() % 10;
      if (what < 2) {
        NaiveState state;
        state.tokens = tokens;
        state.kind = kind;
        if (kind == checkpointed) {
          for (std::uint32_t at = 1; at < tokens.size(); ++at) {
            if (random() % 3 == 0) state.points.push_back(at);
          }
        }
        state.id = commit(tokens, kind, state.points, 10 + random() % 100, name_space);
        catalogue->add(state.id, tokens, step);
        states.push_back(state);
      } else if (what == 2 && !states.empty()) {
        const std::size_t index = random() % states.size();
        ASSERT_TRUE(fixture.await(store().erase(states[index].id)));
        states.erase(states.begin() + static_cast<std::ptrdiff_t>(index));
      } else if (what == 3) {
        catalogue->learn(name_space, tokens, step);
      } else if (what == 4 && random() % 4 == 0) {
        reopen();
      }
      for (const MemoryKind now : {kind, exact, checkpointed}) {
        std::map<CheckpointId, std::uint32_t> expected;
        for (const NaiveState& state : states) {
          if (const std::uint32_t usable = state.usable(tokens, now); usable > 0) expected[state.id] = usable;
        }
        const Pairs found = find(tokens, now, 1000, name_space);
        // Each one that it names is right, and no other is better than the best. Of truncatable states only those that
        // share most must be named.
        std::uint32_t best = 0;
        for (const auto& [id, usable] : expected) best = std::max(best, usable);
        ASSERT_EQ(found.empty() ? 0 : found.front().second, best) << trace;
        for (const auto& [id, usable] : found) ASSERT_EQ(expected[id], usable) << trace;
        if (now != truncatable) ASSERT_EQ(found.size(), expected.size()) << trace;
        ASSERT_TRUE(std::is_sorted(found.begin(), found.end(), [](const auto& a, const auto& b) { return a.second > b.second; }));
        // The best one alone is as good.
        const Pairs one = find(tokens, now, 1, name_space);
        ASSERT_EQ(one.empty() ? 0 : one.front().second, best) << trace;
      }
      if (const PrefixTree* tree = catalogue->tree(name_space)) ASSERT_EQ(tree->check_invariants(), "") << trace;
    }
  }
}

}  // namespace
}  // namespace test
}  // namespace cairn

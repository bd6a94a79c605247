#include "checkpoint/store.hpp"

#include <gtest/gtest.h>
#include <sqlite3.h>

#include <atomic>
#include <chrono>
#include <exception>
#include <future>
#include <optional>
#include <string_view>

#include "checkpoint/late_starts.hpp"
#include "checkpoint_support.hpp"

namespace cairn::test {
namespace {

class Store : public ::testing::Test {
 protected:
  ScratchDirectory scratch;
  FaultyLayer files;
  StoreFixture fixture{scratch, files};
  CheckpointStore& store() { return *fixture.store; }
  std::string path_of(CheckpointId id) { return scratch.slots() + "/" + store().find(id)->file_name; }
  void SetUp() override {
    const auto opened = fixture.open();
    ASSERT_TRUE(opened) << to_string(opened.error());
  }
};

// As a later version of Cairn would leave it.
void make_index_newer(const ScratchDirectory& scratch) {
  sqlite3* database = nullptr;
  ASSERT_EQ(sqlite3_open((scratch.state() + "/index.sqlite").c_str(), &database), SQLITE_OK);
  ASSERT_EQ(sqlite3_exec(database, "PRAGMA user_version=2", nullptr, nullptr, nullptr), SQLITE_OK);
  sqlite3_close(database);
}

TEST_F(Store, CommitsAndFindsAgainAfterARestart) {
  const Tokens tokens = tokens_of_length(300);
  const auto committed = fixture.save(tokens, 5000, 2.5, {".ckpt"});
  ASSERT_TRUE(committed) << to_string(committed.error());
  EXPECT_EQ(committed->tokens, tokens);
  EXPECT_EQ(committed->state_version, 4u);
  EXPECT_EQ(fixture.slot_files().size(), 2u);
  store().mark_used(committed->id);
  ASSERT_TRUE(fixture.await(store().pin(committed->id, "system prompt")));
  ASSERT_TRUE(fixture.await(store().put_setting("rates", "{}")));
  const auto model = fixture.await(store().add_namespace("{}", "probe", "{}"));
  ASSERT_TRUE(model);
  ASSERT_TRUE(fixture.await(store().update_namespace(*model, "{}", "probe", "{\"kind\":1}")));

  ASSERT_TRUE(fixture.open());
  const CheckpointRecord* record = store().find(committed->id);
  ASSERT_NE(record, nullptr);
  EXPECT_EQ(record->token_count, 300u);
  EXPECT_EQ(record->uses, 1u);
  EXPECT_EQ(record->pin_label, "system prompt");
  EXPECT_EQ(record->bytes, committed->bytes);
  EXPECT_EQ(store().setting("rates"), "{}");
  EXPECT_EQ(store().namespaces().at(*model).facts, "{\"kind\":1}");
  EXPECT_EQ(store().counters().bytes, committed->bytes);
  EXPECT_EQ(store().counters().swept_files, 0u);
  Tokens loaded;
  const auto visitor = [&](const CheckpointRecord&, TokenSpan span) { loaded.assign(span.begin(), span.end()); };
  EXPECT_EQ(*fixture.await(store().load_tokens(visitor)), 1u);
  EXPECT_EQ(loaded, tokens);
  EXPECT_EQ(*fixture.await(store().tokens_of(committed->id)), tokens);

  ASSERT_TRUE(fixture.await(store().erase(committed->id)));
  EXPECT_TRUE(fixture.slot_files().empty());
  EXPECT_EQ(store().counters().bytes, 0u);
  ASSERT_TRUE(fixture.open());
  EXPECT_EQ(store().counters().files, 0u);
}

// Of a state of gigabytes nothing was seen before its end.
TEST_F(Store, ItIsToldHowFarAReadingAfreshHasCome) {
  const auto saved = fixture.save(tokens_of_length(300), 5000, 2.5, {".ckpt"});
  ASSERT_TRUE(saved);
  const std::uint64_t first_file = store().find(saved->id)->files.front().bytes;
  ASSERT_LT(first_file, saved->bytes);
  boost::asio::io_context io;
  std::promise<void> seen;
  std::optional<std::uint64_t> before, between;
  const auto look = [&] {
    between = store().read_afresh(saved->id);
    seen.set_value();
  };
  int opened = 0;
  files.before = [&](int, const char* name) -> std::optional<Error> {
    if (std::string_view{name} != "open" || ++opened != 2) return std::nullopt;
    boost::asio::post(io, look);
    (void)seen.get_future().wait_for(std::chrono::seconds{20});
    return std::nullopt;
  };
  before = store().read_afresh(saved->id);
  const bool afresh = true;
  boost::asio::co_spawn(io, store().verify_before_restore(saved->id, afresh),
                        [](std::exception_ptr, const Result<VerifyOutcome>& read) { EXPECT_TRUE(read); });
  io.run();
  EXPECT_EQ(between, first_file);
  EXPECT_EQ(before, std::nullopt);
  EXPECT_EQ(store().read_afresh(saved->id), std::nullopt);
}

// Both threads were syncing to a slow disk what had been saved, and whoever needed a state waited for that.
TEST_F(Store, ARestoreDoesNotWaitWhileADiskIsSlowWithWhatWasSaved) {
  const auto needed = fixture.save(tokens_of_length(300), 1000);
  ASSERT_TRUE(needed);
  boost::asio::io_context io;
  std::promise<void> enough;
  const std::shared_future<void> slow{enough.get_future()};
  int committed = 0, committed_before = -1;
  const auto restore = [&] {
    boost::asio::co_spawn(io, store().verify_before_restore(needed->id), [&](std::exception_ptr, const Result<VerifyOutcome>& read) {
      EXPECT_TRUE(read);
      committed_before = committed;
      enough.set_value();
    });
  };
  constexpr int saves = 2;
  std::atomic<int> syncing{0};
  files.before = [&](int, const char* name) -> std::optional<Error> {
    if (std::string_view{name} != "sync_file") return std::nullopt;
    if (++syncing == saves) boost::asio::post(io, restore);
    (void)slow.wait_for(std::chrono::seconds{20});
    return std::nullopt;
  };
  for (int i = 0; i < saves; ++i) {
    auto written = fixture.write_state(tokens_of_length(400 + static_cast<std::size_t>(i)), 1000);
    ASSERT_TRUE(written);
    boost::asio::co_spawn(io, store().commit(std::move(written->reservation), written->checkpoint), [&](std::exception_ptr, const Result<CommittedCheckpoint>& done) {
      EXPECT_TRUE(done);
      ++committed;
    });
  }
  io.run();
  EXPECT_EQ(committed, saves);
  EXPECT_EQ(committed_before, 0);
}

TEST_F(Store, TakesContextCheckpointsFromTheFile) {
  const Tokens tokens = tokens_of_length(2000);
  auto reservation = fixture.await(store().reserve(100000));
  ASSERT_TRUE(reservation);
  write_file(scratch.slots() + "/" + reservation->temporary_name(), state_bytes(4, tokens, 900, {984, 1496, 1996}).data);
  NewCheckpoint checkpoint;
  checkpoint.saved_tokens = 2000;
  checkpoint.kind = CheckpointKind::checkpointed;
  const auto committed = fixture.await(store().commit(std::move(*reservation), checkpoint));
  ASSERT_TRUE(committed) << to_string(committed.error());
  EXPECT_EQ(store().find(committed->id)->resume_positions, (std::vector<std::uint32_t>{984, 1496, 1996}));
  store().set_resume(committed->id, CheckpointKind::exact, {7});
  ASSERT_TRUE(fixture.await(store().flush()));
  ASSERT_TRUE(fixture.open());
  EXPECT_EQ(store().find(committed->id)->resume_positions, (std::vector<std::uint32_t>{7}));
  EXPECT_EQ(store().find(committed->id)->kind, CheckpointKind::exact);
}

TEST_F(Store, RefusesAFileThatIsNotWhatWasExpected) {
  const Tokens tokens = tokens_of_length(100);
  const auto attempt = [&](const std::string& data, const std::function<void(NewCheckpoint&)>& change) {
    auto reservation = fixture.await(store().reserve(10000));
    EXPECT_TRUE(reservation);
    if (!data.empty()) write_file(scratch.slots() + "/" + reservation->temporary_name(), data);
    NewCheckpoint checkpoint;
    checkpoint.expected_prefix = tokens;
    checkpoint.saved_tokens = 100;
    change(checkpoint);
    const auto committed = fixture.await(store().commit(std::move(*reservation), checkpoint));
    EXPECT_TRUE(fixture.slot_files().empty());
    EXPECT_EQ(store().counters().reserved_bytes, 0u);
    return committed ? ErrorCode::internal : committed.error().code;
  };
  const auto as_is = [](NewCheckpoint&) {};
  const std::string good = state_bytes(4, tokens, 50).data;
  EXPECT_EQ(attempt("", as_is), ErrorCode::not_found);
  EXPECT_EQ(attempt("garbage", as_is), ErrorCode::corrupt);
  EXPECT_EQ(attempt(good.substr(0, 200), as_is), ErrorCode::corrupt);
  EXPECT_EQ(attempt(state_bytes(4, tokens_of_length(100, 1), 50).data, as_is), ErrorCode::corrupt);
  EXPECT_EQ(attempt(state_bytes(4, {}, 50).data, as_is), ErrorCode::corrupt);
  EXPECT_EQ(attempt(good, [](NewCheckpoint& c) { c.saved_tokens = 101; }), ErrorCode::corrupt);
  EXPECT_EQ(attempt(good, [&](NewCheckpoint& c) { c.saved_bytes = good.size() + 1; }), ErrorCode::io);
  EXPECT_EQ(attempt(good, [](NewCheckpoint& c) { c.expected_prefix.push_back(1); }), ErrorCode::corrupt);
  EXPECT_EQ(store().counters().failed_commits, 8u);
  EXPECT_EQ(store().counters().files, 0u);
}

TEST_F(Store, ADroppedReservationDeletesItsFile) {
  {
    auto reservation = fixture.await(store().reserve(5000));
    ASSERT_TRUE(reservation);
    EXPECT_EQ(store().counters().reserved_bytes, 5000u);
    write_file(scratch.slots() + "/" + reservation->temporary_name(), "half");
  }
  EXPECT_EQ(store().counters().reserved_bytes, 0u);
  ASSERT_TRUE(fixture.await(store().flush()));
  EXPECT_TRUE(fixture.slot_files().empty());
}

TEST_F(Store, VerifiesOnceAndWheneverTheFileLooksDifferent) {
  const CheckpointId id = fixture.save(tokens_of_length(50), 100000)->id;
  EXPECT_FALSE(fixture.await(store().verify_before_restore(id))->checksum_read);  // hashed when it was committed
  ASSERT_TRUE(fixture.open());
  const auto first = fixture.await(store().verify_before_restore(id));
  ASSERT_TRUE(first);
  EXPECT_TRUE(first->checksum_read);
  EXPECT_GT(first->bytes, 100000u);
  EXPECT_FALSE(fixture.await(store().verify_before_restore(id))->checksum_read);
  // Copied: another inode, the same bytes.
  fs::copy_file(path_of(id), scratch.path() + "/copy");
  fs::rename(scratch.path() + "/copy", path_of(id));
  EXPECT_TRUE(fixture.await(store().verify_before_restore(id))->checksum_read);
  EXPECT_FALSE(fixture.await(store().verify_before_restore(id))->checksum_read);
}

TEST_F(Store, FindsEveryFlippedBit) {
  std::mt19937_64 random(seed());
  for (int round = 0; round < 20; ++round) {
    const CheckpointId id = fixture.save(tokens_of_length(50), 3000, 1, {".checkpoints"})->id;
    if (round % 2 == 0) ASSERT_TRUE(fixture.open());
    const std::string path = path_of(id) + (round % 3 == 0 ? ".checkpoints" : "");
    std::string data = read_file(path);
    data[random() % data.size()] ^= static_cast<char>(1 << (random() % 8));
    const auto time = fs::last_write_time(path);
    write_file(path, data);
    fs::last_write_time(path, time);  // as silent as a bad disk
    int told = 0;
    store().on_removed([&](const CheckpointRecord& record, RemovalReason reason) {
      EXPECT_EQ(record.id, id);
      EXPECT_EQ(reason, RemovalReason::bad_file);
      ++told;
    });
    EXPECT_EQ(fixture.await(store().verify_before_restore(id)).error().code, ErrorCode::corrupt);
    EXPECT_EQ(told, 1);
    EXPECT_EQ(store().find(id), nullptr);
    EXPECT_TRUE(fixture.slot_files().empty());
    store().on_removed(nullptr);
  }
}

TEST_F(Store, FindsSwappedTruncatedAndMissingFiles) {
  const CheckpointId a = fixture.save(tokens_of_length(50), 3000)->id;
  const CheckpointId b = fixture.save(tokens_of_length(50, 9), 3000)->id;
  const CheckpointId c = fixture.save(tokens_of_length(50, 10), 3000)->id;
  const CheckpointId d = fixture.save(tokens_of_length(50, 11), 3000)->id;
  fs::rename(path_of(a), scratch.path() + "/swap");
  fs::rename(path_of(b), path_of(a));
  fs::rename(scratch.path() + "/swap", path_of(b));
  fs::resize_file(path_of(c), 3000);
  fs::remove(path_of(d));
  for (const CheckpointId id : {a, b, c}) {
    EXPECT_EQ(fixture.await(store().verify_before_restore(id)).error().code, ErrorCode::corrupt);
  }
  EXPECT_EQ(fixture.await(store().verify_before_restore(d)).error().code, ErrorCode::not_found);
  EXPECT_EQ(store().counters().dropped_bad, 4u);
  EXPECT_EQ(store().counters().bytes, 0u);
  EXPECT_TRUE(fixture.slot_files().empty());
}

TEST_F(Store, WithoutChecksumsTheStatStillCounts) {
  fixture.options.verify_checksums = false;
  const CheckpointId id = fixture.save(tokens_of_length(50), 3000)->id;
  ASSERT_TRUE(fixture.open());
  EXPECT_FALSE(fixture.await(store().verify_before_restore(id))->checksum_read);
  const std::string data = read_file(path_of(id));
  write_file(path_of(id), data);
  EXPECT_EQ(fixture.await(store().verify_before_restore(id)).error().code, ErrorCode::corrupt);
}

TEST_F(Store, StartUpSweepsOnlyOurOwn) {
  const CheckpointId kept = fixture.save(tokens_of_length(50), 3000)->id;
  const CheckpointId lost = fixture.save(tokens_of_length(50, 1), 3000)->id;
  const CheckpointId cut = fixture.save(tokens_of_length(50, 2), 3000, 1, {".ckpt"})->id;
  fs::remove(path_of(lost));
  fs::resize_file(path_of(cut) + ".ckpt", 1);
  const std::string hex = "0123456789abcdef0123456789abcdef";
  for (const std::string& name : {"cairn-" + hex + ".saving", "cairn-" + hex + ".state.ckpt", "cairn-" + hex + ".state"}) {
    write_file(scratch.slots() + "/" + name, "left by a crash");
  }
  const std::vector<std::string> others{"precious.bin", "cairn-notes.txt", "cairn-" + hex, "cairn-" + hex + ".state.bak",
                                        "cairn-" + hex.substr(1) + ".state"};
  for (const std::string& name : others) write_file(scratch.slots() + "/" + name, "not ours");
  ASSERT_TRUE(fixture.open());
  EXPECT_NE(store().find(kept), nullptr);
  EXPECT_EQ(store().find(lost), nullptr);
  EXPECT_EQ(store().find(cut), nullptr);
  EXPECT_EQ(store().counters().swept_entries, 2u);
  EXPECT_EQ(store().counters().swept_files, 5u);
  EXPECT_EQ(fixture.slot_files().size(), others.size() + 1);
}

// Found at start-up, but the disk will not say what it is: that is no reason to forget a state.
TEST_F(Store, AFileThatCannotBeLookedAtIsKept) {
  const CheckpointId id = fixture.save(tokens_of_length(50), 3000, 1, {".ckpt"})->id;
  files.before = [](int, const char* name) -> std::optional<Error> {
    if (std::string_view(name) != "status") return std::nullopt;
    return disk_error(ErrorCode::io, "made to fail");
  };
  ASSERT_TRUE(fixture.open());
  files.before = nullptr;
  ASSERT_NE(store().find(id), nullptr);
  EXPECT_EQ(store().counters().swept_files, 0u);
  EXPECT_EQ(fixture.slot_files().size(), 2u);
  EXPECT_TRUE(fixture.await(store().verify_before_restore(id)));
}

TEST_F(Store, WhatIsNoFileIsNeitherKeptNorSwept) {
  const CheckpointId id = fixture.save(tokens_of_length(50), 3000)->id;
  const std::string path = path_of(id);
  fs::rename(path, scratch.path() + "/elsewhere");
  fs::create_symlink(scratch.path() + "/elsewhere", path);
  fs::create_directory(scratch.slots() + "/cairn-0123456789abcdef0123456789abcdef.state");
  ASSERT_TRUE(fixture.open());
  EXPECT_EQ(store().find(id), nullptr);
  EXPECT_EQ(store().counters().swept_entries, 1u);
  EXPECT_EQ(store().counters().swept_files, 0u);
  EXPECT_TRUE(fs::is_symlink(path));
  EXPECT_EQ(fixture.slot_files().size(), 2u);
}

TEST_F(Store, OneCairnADirectory) {
  StoreFixture second(scratch, files);
  EXPECT_EQ(second.open().error().code, ErrorCode::invalid);
  second.options.state_dir = scratch.path() + "/other";
  EXPECT_EQ(second.open().error().code, ErrorCode::invalid);  // its sweep would delete our files
  fixture.store.reset();
  EXPECT_TRUE(second.open());
}

TEST_F(Store, AMissingSlotDirectoryLosesNothing) {
  const CheckpointId id = fixture.save(tokens_of_length(50), 3000)->id;
  fs::rename(scratch.slots(), scratch.path() + "/away");
  EXPECT_EQ(fixture.open().error().code, ErrorCode::not_found);
  fs::rename(scratch.path() + "/away", scratch.slots());
  ASSERT_TRUE(fixture.open());
  EXPECT_NE(store().find(id), nullptr);
}

// Started before the disk was mounted, it forgot every state, and the next start deleted the files.
TEST_F(Store, AnEmptyMountPointAtStartForgetsNothing) {
  const CheckpointId id = fixture.save(tokens_of_length(50), 3000)->id;
  fixture.store.reset();
  fs::rename(scratch.slots(), scratch.path() + "/away");
  fs::create_directory(scratch.slots());
  for (int start = 0; start < 2; ++start) {  // the second finds the lock file that the first has left there
    ASSERT_TRUE(fixture.open());
    EXPECT_EQ(store().find(id), nullptr);
    EXPECT_EQ(store().counters().absent_entries, 1u);
    EXPECT_EQ(store().counters().swept_entries, 0u);
  }
  const CheckpointId meanwhile = fixture.save(tokens_of_length(60), 3000)->id;
  fixture.store.reset();
  fs::remove_all(scratch.slots());
  fs::rename(scratch.path() + "/away", scratch.slots());
  ASSERT_TRUE(fixture.open());
  ASSERT_NE(store().find(id), nullptr);
  EXPECT_EQ(store().find(meanwhile), nullptr);
  EXPECT_TRUE(fixture.await(store().verify_before_restore(id)));
}

// The lock file that the first late start had left under the mount point was taken for the states' own at the second.
TEST_F(Store, AnEmptyMountPointForgetsNothingASecondTimeEither) {
  const CheckpointId id = fixture.save(tokens_of_length(50), 3000)->id;
  fixture.store.reset();
  const std::string mounted = scratch.path() + "/mounted", below = scratch.path() + "/below";
  fs::create_directory(below);
  for (int boot = 0; boot < 3; ++boot) {
    fs::rename(scratch.slots(), mounted);
    fs::rename(below, scratch.slots());
    ASSERT_TRUE(fixture.open());
    EXPECT_EQ(store().counters().absent_entries, 1u) << boot;
    fixture.store.reset();
    fs::rename(scratch.slots(), below);
    fs::rename(mounted, scratch.slots());
    ASSERT_TRUE(fixture.open());
    EXPECT_NE(store().find(id), nullptr) << boot;
    fixture.store.reset();
  }
}

TEST_F(Store, ADirectoryThatStaysEmptyIsBelievedInTheEnd) {
  ASSERT_TRUE(fixture.save(tokens_of_length(50), 3000));
  fixture.store.reset();
  fs::remove_all(scratch.slots());
  fs::create_directory(scratch.slots());
  std::vector<std::uint64_t> swept;
  for (int start = 0; start < 5; ++start) {
    fixture.now_ms += LateStarts::apart_ms;
    ASSERT_TRUE(fixture.open());
    swept.push_back(store().counters().swept_entries);
  }
  EXPECT_EQ(swept, (std::vector<std::uint64_t>{0, 0, 0, 1, 0}));
  EXPECT_EQ(store().counters().absent_entries, 0u);
}

// A server whose port was in use was started again at once, a few times, while the disk was mounted: each counted as a start.
TEST_F(Store, ARestartLoopBeforeTheDiskIsMountedForgetsNothing) {
  const CheckpointId id = fixture.save(tokens_of_length(50), 3000)->id;
  for (const char* late : {"the states", "the index"}) {
    SCOPED_TRACE(late);
    const std::string directory = late == std::string("the states") ? scratch.slots() : scratch.state();
    fixture.store.reset();
    fs::rename(directory, scratch.path() + "/unmounted");
    fs::create_directory(directory);
    for (int start = 0; start < 10; ++start) {
      fixture.now_ms += 2000;
      ASSERT_TRUE(fixture.open());
    }
    fixture.options.same_start = true;  // a retry each few seconds goes on for long
    for (int retry = 0; retry < 5; ++retry) {
      fixture.now_ms += LateStarts::apart_ms;
      ASSERT_TRUE(fixture.open());
    }
    fixture.options.same_start = false;
    fixture.store.reset();
    fs::remove_all(directory);
    fs::rename(scratch.path() + "/unmounted", directory);
    ASSERT_TRUE(fixture.open());
    ASSERT_NE(store().find(id), nullptr);
  }
}

TEST(LateStartsTest, AreCountedApart) {
  LateStarts starts;
  EXPECT_EQ(LateStarts::parse(""), starts);
  EXPECT_TRUE(starts.one_more(0, true)) << "the first";
  starts = {2, 1'000'000};
  EXPECT_EQ(LateStarts::parse(starts.text()), starts);
  EXPECT_EQ(LateStarts::parse("2"), (LateStarts{2, 0})) << "of an older version";
  EXPECT_FALSE(starts.one_more(1'000'000, false));
  EXPECT_FALSE(starts.one_more(1'000'000 + LateStarts::apart_ms - 1, false));
  EXPECT_TRUE(starts.one_more(1'000'000 + LateStarts::apart_ms, false));
  EXPECT_FALSE(starts.one_more(1'000'000 + LateStarts::apart_ms, true));
  EXPECT_TRUE(starts.one_more(999'999, false)) << "the clock was set back";
}

// A mistyped directory in a command that only lists deleted every state.
TEST_F(Store, ACommandThatLooksSweepsNothing) {
  const CheckpointId id = fixture.save(tokens_of_length(50), 3000)->id;
  write_file(scratch.slots() + "/cairn-0123456789abcdef0123456789abcdef.saving", "left by a crash");
  fixture.store.reset();
  const auto files_before = fixture.slot_files();
  const StoreOptions right = fixture.options;
  fixture.options.look_only = true;

  fixture.options.state_dir = scratch.path() + "/mistyped";
  for (int time = 0; time < 2; ++time) {
    const auto opened = fixture.open();
    ASSERT_FALSE(opened);
    EXPECT_EQ(opened.error().code, ErrorCode::not_found);
    EXPECT_EQ(opened.error().context, "no store in " + fixture.options.state_dir + ": there is no index.sqlite");
    EXPECT_FALSE(fs::exists(fixture.options.state_dir));
  }
  fixture.options.may_have_no_index = true;
  const auto opened = fixture.open();
  ASSERT_FALSE(opened);
  EXPECT_EQ(opened.error().code, ErrorCode::unsupported);
  EXPECT_NE(opened.error().context.find("is state_dir the right one?"), std::string::npos);
  EXPECT_FALSE(fs::exists(fixture.options.state_dir));
  fixture.options.may_have_no_index = false;
  fixture.options.state_dir = right.state_dir;
  fixture.options.slot_dir = scratch.path() + "/other";
  fs::create_directory(fixture.options.slot_dir);
  ASSERT_TRUE(fixture.open());
  EXPECT_EQ(store().counters().absent_entries, 1u);
  fixture.store.reset();
  EXPECT_TRUE(fs::is_empty(fixture.options.slot_dir));  // no lock file that would look like a start

  fixture.options.slot_dir = right.slot_dir;
  ASSERT_TRUE(fixture.open());
  EXPECT_NE(store().find(id), nullptr);
  EXPECT_EQ(fixture.slot_files(), files_before);
  fixture.options = right;
  ASSERT_TRUE(fixture.open());
  EXPECT_NE(store().find(id), nullptr);
  EXPECT_EQ(store().counters().swept_files, 1u);
}

// Before the first start, by root: what serves could not write them then.
TEST_F(Store, ACommandThatLooksMakesNothing) {
  fixture.store.reset();
  fixture.options.look_only = true;
  fixture.options.state_dir = scratch.path() + "/none";
  fixture.options.slot_dir = scratch.path() + "/gone";
  for (const char* disk : {"", "/disk"}) {
    fixture.options.disk_dir = *disk == '\0' ? "" : scratch.path() + disk;
    fixture.options.may_have_no_index = false;
    const auto opened = fixture.open();
    ASSERT_FALSE(opened);
    EXPECT_EQ(opened.error().code, ErrorCode::not_found);
    fixture.options.may_have_no_index = true;
    ASSERT_TRUE(fixture.open());
    EXPECT_EQ(store().counters().files, 0u);
    ASSERT_TRUE(fixture.await(store().add_namespace("{}", "", "{}")));
  }
  for (const char* made : {"/none", "/gone", "/disk"}) EXPECT_FALSE(fs::exists(scratch.path() + made)) << made;

  // A start that was broken off before the index had its tables.
  fs::create_directory(fixture.options.state_dir);
  write_file(fixture.options.state_dir + "/index.sqlite", "");
  fixture.options.may_have_no_index = false;
  EXPECT_EQ(fixture.open().error().code, ErrorCode::not_found);
  EXPECT_EQ(fs::file_size(fixture.options.state_dir + "/index.sqlite"), 0u);
}

TEST_F(Store, ACommandThatLooksTakesAMissingSlotDirectoryForAnEmptyOne) {
  ASSERT_TRUE(fixture.save(tokens_of_length(50), 3000));
  fixture.store.reset();
  fs::rename(scratch.slots(), scratch.path() + "/away");
  fixture.options.look_only = true;
  ASSERT_TRUE(fixture.open());
  EXPECT_EQ(store().counters().absent_entries, 1u);
  EXPECT_FALSE(fs::exists(scratch.slots()));
}

// `cairn check` with another budget than the server's evicted what was over its own, and made room for its test file.
TEST_F(Store, ACommandThatLooksEvictsNothing) {
  for (Token salt = 1; salt <= 3; ++salt) ASSERT_TRUE(fixture.save(tokens_of_length(50, salt), 3000));
  ASSERT_TRUE(fixture.await(store().add_namespace("{}", "", "{}")));
  fixture.store.reset();
  const auto files_before = fixture.slot_files();
  const StoreOptions right = fixture.options;
  fixture.options.look_only = true;
  fixture.options.budget_bytes = 4000;
  fixture.options.min_free_bytes = 1ull << 60;
  ASSERT_TRUE(fixture.open());
  EXPECT_EQ(store().counters().files, 3u);
  EXPECT_EQ(store().counters().budget_bytes, 4000u) << "`cairn list --json` told of one of 2^64 bytes";
  EXPECT_TRUE(fixture.await(store().reserve_scratch(4 << 20)));
  files.pretended_space = DiskSpace{1000, 1ull << 40};
  EXPECT_FALSE(fixture.await(store().reserve_scratch(4 << 20)));
  // What it learns of the backend stays in memory.
  const auto learned = fixture.await(store().add_namespace("{\"other\":1}", "", "{}"));
  ASSERT_TRUE(learned);
  EXPECT_TRUE(fixture.await(store().update_namespace(NamespaceId{1}, "{}", "changed", "{}")));
  EXPECT_EQ(store().namespaces().size(), 2u);
  EXPECT_EQ(fixture.slot_files(), files_before);
  files.pretended_space.reset();
  fixture.options = right;
  ASSERT_TRUE(fixture.open());
  EXPECT_EQ(store().counters().files, 3u);
  ASSERT_EQ(store().namespaces().size(), 1u);
  EXPECT_EQ(store().namespaces().begin()->second.probe, "");
}

// A server that was started while `cairn verify` ran ended at once.
TEST_F(Store, WhoHoldsTheDirectoriesIsTold) {
  StoreFixture other(scratch, files);
  const auto refused = [&] {
    auto opened = other.open();
    return opened ? Error{} : opened.error();
  };
  EXPECT_EQ(refused().code, ErrorCode::invalid);
  EXPECT_FALSE(refused().may_retry) << "who serves goes on to";
  EXPECT_NE(refused().context.find("(cairn serve, process "), std::string::npos) << refused().context;
  other.options.state_dir = scratch.path() + "/another";
  EXPECT_FALSE(refused().may_retry) << "the states are his, too";
  other.options.state_dir = fixture.options.state_dir;

  fixture.options.look_only = true;
  ASSERT_TRUE(fixture.open());
  EXPECT_EQ(refused().code, ErrorCode::invalid);
  EXPECT_TRUE(refused().may_retry) << "a command ends";
  EXPECT_NE(refused().context.find("(a command, process "), std::string::npos) << refused().context;
  fixture.store.reset();
  ASSERT_TRUE(other.open());
}

// Likewise in the one that serves.
TEST_F(Store, AMistypedIndexSweepsNoStatesOfOneThatStands) {
  const CheckpointId id = fixture.save(tokens_of_length(50), 3000)->id;
  const StoreOptions right = fixture.options;
  fixture.store.reset();
  fixture.options.state_dir = scratch.path() + "/mistyped";
  const auto opened = fixture.open();
  ASSERT_FALSE(opened);
  EXPECT_EQ(opened.error().code, ErrorCode::unsupported);
  EXPECT_NE(opened.error().context.find("belong to the index in " + right.state_dir), std::string::npos) << opened.error().context;

  fixture.options = right;
  ASSERT_TRUE(fixture.open());
  EXPECT_NE(store().find(id), nullptr);
  fixture.store.reset();
  // Its index is gone, as far as can be seen: that is believed after some starts.
  fs::remove_all(right.state_dir);
  fixture.options.state_dir = scratch.path() + "/another";
  for (int start = 0; start < LateStarts::most; ++start) {
    fixture.now_ms += LateStarts::apart_ms;
    ASSERT_TRUE(fixture.open());
    EXPECT_EQ(store().strange_states(), scratch.slots());
    EXPECT_EQ(fixture.slot_files().size(), 1u);
  }
  fixture.now_ms += LateStarts::apart_ms;
  ASSERT_TRUE(fixture.open());
  EXPECT_EQ(store().counters().swept_files, 1u);
  EXPECT_TRUE(fixture.slot_files().empty());
}

// A container calls its index /state. A Cairn of the host, given the volume with its states, found no such directory and swept them all.
TEST_F(Store, AnIndexThatCannotBeSeenFromHereLosesNoStates) {
  const CheckpointId id = fixture.save(tokens_of_length(50), 9000)->id;
  const std::string name = store().find(id)->file_name;
  const StoreOptions inside = fixture.options;
  fixture.store.reset();
  const std::string note = read_file(scratch.slots() + "/cairn.lock");
  fs::rename(scratch.state(), scratch.path() + "/unseen");
  fixture.options.state_dir = scratch.path() + "/host";
  for (int start = 0; start < 2; ++start) {
    fixture.now_ms += LateStarts::apart_ms;
    ASSERT_TRUE(fixture.open());
    EXPECT_EQ(store().strange_states(), scratch.slots());
    EXPECT_TRUE(fs::exists(scratch.slots() + "/" + name));
    EXPECT_EQ(read_file(scratch.slots() + "/cairn.lock"), note);
    EXPECT_TRUE(fixture.save(tokens_of_length(50, start + 1), 9000)) << "it can be used meanwhile";
  }
  fixture.store.reset();
  fs::rename(scratch.path() + "/unseen", scratch.state());
  fixture.options = inside;
  ASSERT_TRUE(fixture.open());
  EXPECT_NE(store().find(id), nullptr);
  EXPECT_EQ(fixture.slot_files(), std::vector<std::string>{name});
}

// One start with the state directory of one and the slot directory of another cost both all they had.
TEST_F(Store, AnIndexWithStatesOfItsOwnSweepsNoneOfAnother) {
  const StoreOptions first = fixture.options;
  const CheckpointId ours = fixture.save(tokens_of_length(50), 3000)->id;
  fixture.store.reset();
  StoreOptions second = first;
  second.slot_dir = scratch.path() + "/slots2";
  second.state_dir = scratch.path() + "/state2";
  fs::create_directory(second.slot_dir);
  fixture.options = second;
  ASSERT_TRUE(fixture.open());
  const auto theirs = fixture.save(tokens_of_length(60, 2), 3000);
  ASSERT_TRUE(theirs);
  fixture.store.reset();

  fixture.options = first;
  fixture.options.state_dir = second.state_dir;
  const auto opened = fixture.open();
  ASSERT_FALSE(opened);
  EXPECT_EQ(opened.error().code, ErrorCode::unsupported);
  fixture.options = first;
  ASSERT_TRUE(fixture.open());
  EXPECT_NE(store().find(ours), nullptr);
  fixture.options = second;
  ASSERT_TRUE(fixture.open());
  EXPECT_NE(store().find(theirs->id), nullptr);
}

// A state directory whose disk is mounted late: the new index in its place knew none of the states, and all were swept.
TEST_F(Store, AnIndexThatIsNotMountedYetCostsNoStates) {
  const CheckpointId id = fixture.save(tokens_of_length(50), 9000)->id;
  const std::string name = store().find(id)->file_name;
  fixture.store.reset();
  fs::rename(scratch.state(), scratch.path() + "/unmounted");
  for (int start = 0; start < 2; ++start) {
    ASSERT_TRUE(fixture.open());
    EXPECT_EQ(store().strange_states(), scratch.slots());
    EXPECT_TRUE(fs::exists(scratch.slots() + "/" + name));
    EXPECT_TRUE(fixture.save(tokens_of_length(50, start + 1), 9000)) << "it can be used meanwhile";
  }
  fixture.store.reset();
  fs::remove_all(scratch.state());
  fs::rename(scratch.path() + "/unmounted", scratch.state());
  ASSERT_TRUE(fixture.open());
  EXPECT_EQ(store().strange_states(), "");
  ASSERT_NE(store().find(id), nullptr);
  EXPECT_EQ(fixture.slot_files().size(), 1u);
}

TEST_F(Store, AnIndexThatDoesNotComeBackIsDoneWithAfterSomeStarts) {
  ASSERT_TRUE(fixture.save(tokens_of_length(50), 9000));
  fixture.store.reset();
  fs::remove_all(scratch.state());
  for (int start = 0; start < 3; ++start) {
    fixture.now_ms += LateStarts::apart_ms;
    ASSERT_TRUE(fixture.open());
  }
  EXPECT_EQ(fixture.slot_files().size(), 1u);
  fixture.now_ms += LateStarts::apart_ms;
  ASSERT_TRUE(fixture.open());
  EXPECT_EQ(fixture.slot_files().size(), 0u);
  EXPECT_EQ(store().counters().swept_files, 1u);
  const auto saved = fixture.save(tokens_of_length(50), 9000);
  ASSERT_TRUE(fixture.open());
  EXPECT_NE(store().find(saved->id), nullptr);
}

// Before, they named the index by its path alone.
TEST_F(Store, ALockWithoutTheIndexIdIsBelievedByItsPath) {
  const CheckpointId id = fixture.save(tokens_of_length(50), 9000)->id;
  fixture.store.reset();
  const std::string lock = scratch.slots() + "/cairn.lock";
  const std::string text = read_file(lock);
  const std::string path = text.substr(0, text.find('\n'));
  EXPECT_EQ(path, scratch.state());
  write_file(lock, path);
  ASSERT_TRUE(fixture.open());
  EXPECT_NE(store().find(id), nullptr);
  EXPECT_EQ(read_file(lock), text) << "and it is told";
  fixture.store.reset();
  write_file(lock, path);
  fs::remove_all(scratch.state());
  ASSERT_TRUE(fixture.open());
  EXPECT_EQ(store().strange_states(), "");
  EXPECT_EQ(fixture.slot_files().size(), 0u);
}

TEST_F(Store, ACommandThatLooksSetsNoIndexAside) {
  ASSERT_TRUE(fixture.save(tokens_of_length(50), 3000));
  fixture.store.reset();
  make_index_newer(scratch);
  fixture.options.look_only = true;
  const auto opened = fixture.open();
  ASSERT_FALSE(opened);
  EXPECT_EQ(opened.error().code, ErrorCode::unsupported);
  EXPECT_FALSE(fs::exists(scratch.state() + "/index.sqlite.newer"));
  EXPECT_EQ(fixture.slot_files().size(), 1u);
}

TEST_F(Store, ADamagedIndexIsSetAside) {
  ASSERT_TRUE(fixture.save(tokens_of_length(50), 3000));
  fixture.store.reset();
  write_file(scratch.state() + "/index.sqlite", std::string(10000, 'x'));
  ASSERT_TRUE(fixture.open());
  EXPECT_TRUE(fs::exists(scratch.state() + "/index.sqlite.bad"));
  EXPECT_EQ(store().counters().files, 0u);
  EXPECT_TRUE(fixture.slot_files().empty());  // nothing unverified is adopted
  EXPECT_TRUE(fixture.save(tokens_of_length(50), 3000));
}

// Every save failed after the backend had written it whole, after each restart as well.
TEST_F(Store, DamageThatOnlyWritesComeUponIsMendedAndSaidOnce) {
  for (Token salt = 0; salt < 3; ++salt) ASSERT_TRUE(fixture.save(tokens_of_length(3000, salt), 9000));
  fixture.store.reset();
  damage_index(scratch.state() + "/index.sqlite", UnreadPage::file_names);
  ASSERT_TRUE(fixture.open());
  int said = 0;
  store().on_index_rebuilt([&](const std::string&) { ++said; });
  EXPECT_EQ(store().counters().files, 3u);
  const auto saved = fixture.save(tokens_of_length(3000, 3), 9000);
  ASSERT_TRUE(saved) << to_string(saved.error());
  EXPECT_FALSE(store().saving_trouble());
  EXPECT_TRUE(fixture.await(store().flush()));
  EXPECT_TRUE(fixture.await(store().erase(saved->id)));
  EXPECT_EQ(said, 1);
  ASSERT_TRUE(fixture.open());
  EXPECT_EQ(store().counters().files, 3u);
  EXPECT_EQ(store().counters().damaged_entries, 0u);
  EXPECT_EQ(*fixture.await(store().load_tokens([](const CheckpointRecord&, TokenSpan) {})), 3u);
}

TEST_F(Store, ACheckOfTheIndexFindsWhatNoReadingDoes) {
  for (Token salt = 0; salt < 3; ++salt) ASSERT_TRUE(fixture.save(tokens_of_length(3000, salt), 9000));
  EXPECT_EQ(fixture.await(store().check_index())->damage, "");
  fixture.store.reset();
  damage_index(scratch.state() + "/index.sqlite", UnreadPage::file_names);
  fixture.options.look_only = true;
  ASSERT_TRUE(fixture.open());
  for (int i = 0; i < 2; ++i) {
    const auto looked = fixture.await(store().check_index());
    ASSERT_TRUE(looked);
    EXPECT_NE(looked->damage, "");
    EXPECT_FALSE(looked->rebuilt);
  }
  fixture.options.look_only = false;
  ASSERT_TRUE(fixture.open());
  const auto mended = fixture.await(store().check_index());
  ASSERT_TRUE(mended);
  EXPECT_NE(mended->damage, "");
  EXPECT_TRUE(mended->rebuilt);
  EXPECT_EQ(fixture.await(store().check_index())->damage, "");
  std::string said;
  store().on_index_rebuilt([&](const std::string& why) { said = why; });
  EXPECT_EQ(said, mended->damage);
  EXPECT_EQ(store().counters().files, 3u);
}

// The index is read while the directory is looked through; but nothing happens to it before that is known to work.
TEST_F(Store, AnIndexIsNotSetAsideWhileTheDirectoryCannotBeRead) {
  ASSERT_TRUE(fixture.save(tokens_of_length(50), 3000));
  fixture.store.reset();
  write_file(scratch.state() + "/index.sqlite", std::string(10000, 'x'));
  for (const char* failing : {"open_directory", "next"}) {
    files.before = [failing](int, const char* name) -> std::optional<Error> {
      if (std::string_view(name) != failing) return std::nullopt;
      return disk_error(ErrorCode::io, "made to fail");
    };
    EXPECT_EQ(fixture.open().error().code, ErrorCode::io);
    EXPECT_FALSE(fs::exists(scratch.state() + "/index.sqlite.bad"));
    EXPECT_EQ(fixture.slot_files().size(), 1u);
  }
  files.before = nullptr;
  ASSERT_TRUE(fixture.open());
  EXPECT_NE(store().index_damage(), "");
}

TEST_F(Store, ANewerIndexIsSetAside) {
  ASSERT_TRUE(fixture.save(tokens_of_length(50), 3000));
  fixture.store.reset();
  make_index_newer(scratch);
  ASSERT_TRUE(fixture.open());
  EXPECT_TRUE(fs::exists(scratch.state() + "/index.sqlite.newer"));
  EXPECT_NE(store().index_damage().find("format 2"), std::string::npos) << store().index_damage();
  EXPECT_EQ(store().counters().files, 0u);
  EXPECT_TRUE(fixture.slot_files().empty());
  EXPECT_TRUE(fixture.save(tokens_of_length(50), 3000));
}

// ---- trouble with the disk

TEST_F(Store, AVanishedDirectoryForgetsNothing) {
  const CheckpointId id = fixture.save(tokens_of_length(50), 3000)->id;
  ASSERT_TRUE(fixture.open());
  fs::rename(scratch.slots(), scratch.path() + "/away");
  EXPECT_EQ(fixture.await(store().verify_before_restore(id)).error().code, ErrorCode::io);
  fs::create_directory(scratch.slots());  // the empty mount point
  EXPECT_EQ(fixture.await(store().verify_before_restore(id)).error().code, ErrorCode::io);
  EXPECT_EQ(store().counters().dropped_bad, 0u);
  fs::remove(scratch.slots());
  fs::rename(scratch.path() + "/away", scratch.slots());
  EXPECT_TRUE(fixture.await(store().verify_before_restore(id)));
}

// What was evicted for saves that could not be came back with the directory: files that nobody knew, and beyond the budget.
TEST_F(Store, NothingIsEvictedForASaveWhileTheDirectoryIsAway) {
  fixture.options.budget_bytes = 30'000;
  ASSERT_TRUE(fixture.open());
  for (Token salt = 0; salt < 3; ++salt) ASSERT_TRUE(fixture.save(tokens_of_length(50, salt), 9000));
  fs::rename(scratch.slots(), scratch.path() + "/away");
  const auto refused = [&] {
    const auto reservation = fixture.await(store().reserve(9000));
    EXPECT_EQ(store().counters().files, 3u);
    EXPECT_EQ(store().counters().reserved_bytes, 0u);
    return reservation ? ErrorCode::internal : reservation.error().code;
  };
  EXPECT_EQ(refused(), ErrorCode::io);
  EXPECT_TRUE(store().saving_waits());
  fs::create_directory(scratch.slots());  // the empty mount point
  EXPECT_EQ(refused(), ErrorCode::io);
  fs::remove(scratch.slots());
  fs::rename(scratch.path() + "/away", scratch.slots());
  EXPECT_TRUE(fixture.save(tokens_of_length(50, 3), 9000));
  EXPECT_EQ(store().counters().evictions, 1u);
  EXPECT_EQ(fixture.slot_files().size(), 3u);
}

TEST_F(Store, NothingIsEvictedForASaveOnADiskThatIsReadOnly) {
  fixture.options.budget_bytes = 30'000;
  ASSERT_TRUE(fixture.open());
  for (Token salt = 0; salt < 3; ++salt) ASSERT_TRUE(fixture.save(tokens_of_length(50, salt), 9000));
  files.pretended_space = DiskSpace{1'000'000, 2'000'000, true};
  const auto refused = fixture.await(store().reserve(9000));
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::io);
  EXPECT_NE(refused.error().context.find("read-only"), std::string::npos) << refused.error().context;
  EXPECT_EQ(store().counters().files, 3u);
}

// The backend wrote one whole state after the other, which could be neither renamed nor deleted.
TEST_F(Store, WhereWeMayNotWriteTheBackendIsAskedForNoFile) {
  fixture.options.budget_bytes = 30'000;
  ASSERT_TRUE(fixture.open());
  for (Token salt = 0; salt < 3; ++salt) ASSERT_TRUE(fixture.save(tokens_of_length(50, salt), 9000));
  int said = 0;
  store().on_saving([&](const Error* trouble) { said += trouble != nullptr; });
  files.pretended_space = DiskSpace{1'000'000, 2'000'000, false, false};
  for (int i = 0; i < 2; ++i) {
    const auto refused = i == 0 ? fixture.await(store().reserve(9000)) : fixture.await(store().reserve_scratch(9000));
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code, ErrorCode::io);
    EXPECT_NE(refused.error().context.find("write access"), std::string::npos) << refused.error().context;
  }
  EXPECT_EQ(said, 1);
  EXPECT_EQ(store().counters().files, 3u);
  files.pretended_space.reset();
  EXPECT_TRUE(fixture.save(tokens_of_length(50, 3), 9000));
}

TEST_F(Store, ADirectoryThatMayBeWrittenAfterTheStartIsLockedThen) {
  fixture.store.reset();
  fs::remove(scratch.slots() + "/cairn.lock");
  files.refuses_to_lock = scratch.slots();
  files.pretended_space = DiskSpace{1'000'000, 2'000'000, false, false};
  ASSERT_TRUE(fixture.open());
  EXPECT_FALSE(fixture.save(tokens_of_length(50), 9000));
  files.refuses_to_lock.clear();
  files.pretended_space.reset();
  const auto saved = fixture.save(tokens_of_length(50), 9000);
  ASSERT_TRUE(saved) << to_string(saved.error());
  StoreFixture second(scratch, files);
  second.options.state_dir = scratch.path() + "/another";
  EXPECT_EQ(second.open().error().code, ErrorCode::invalid) << "it would sweep what is saved here";
}

// In a sticky directory of somebody else's. They were counted as nothing, and each pause brought another one.
TEST_F(Store, FilesOfFailedSavesThatCannotBeDeletedTakeRoomInTheBudget) {
  fixture.options.budget_bytes = 30'000;
  ASSERT_TRUE(fixture.open());
  const auto kept = fixture.save(tokens_of_length(50), 9000);
  files.refuses_to_remove = scratch.slots();
  files.before = [](int, const char* call) -> std::optional<Error> {
    if (std::string_view(call) == "rename") return disk_error(ErrorCode::io, call);
    return std::nullopt;
  };
  const auto bytes_there = [&] {
    std::uint64_t bytes = 0;
    for (const std::string& name : fixture.slot_files()) bytes += fs::file_size(scratch.slots() + "/" + name);
    return bytes;
  };
  for (Token salt = 1; salt < 6; ++salt) {
    EXPECT_FALSE(fixture.save(tokens_of_length(50, salt), 9000));
    EXPECT_FALSE(fixture.await(store().flush()));
  }
  EXPECT_EQ(fixture.slot_files().size(), 3u);
  EXPECT_EQ(store().counters().condemned_bytes + store().counters().bytes, bytes_there());
  ASSERT_TRUE(fixture.open());
  for (Token salt = 1; salt < 6; ++salt) EXPECT_FALSE(fixture.save(tokens_of_length(50, salt), 9000));
  EXPECT_EQ(fixture.slot_files().size(), 3u) << "nor after a restart";
  EXPECT_EQ(store().counters().condemned_bytes + store().counters().bytes, bytes_there());
  EXPECT_NE(store().find(kept->id), nullptr) << "there would be no more room without it";
  files.before = nullptr;
  files.refuses_to_remove.clear();
  EXPECT_TRUE(fixture.await(store().flush()));
  EXPECT_EQ(store().counters().condemned_bytes, 0u);
  EXPECT_EQ(fixture.slot_files().size(), 1u);
}

TEST_F(Store, AStoreOnADiskThatIsReadOnlyIsOpenedAndNothingGoes) {
  for (Token salt = 0; salt < 3; ++salt) ASSERT_TRUE(fixture.save(tokens_of_length(50, salt), 9000));
  const CheckpointId any = fixture.save(tokens_of_length(50, 3), 9000)->id;
  write_file(scratch.slots() + "/cairn-0123456789abcdef0123456789abcdef.saving", "left by a crash");
  fixture.options.budget_bytes = 20'000;
  files.pretended_space = DiskSpace{1'000'000, 2'000'000, true};
  files.refuses_to_remove = scratch.slots();
  const auto opened = fixture.open();
  ASSERT_TRUE(opened) << to_string(opened.error());
  EXPECT_EQ(store().counters().files, 4u);
  EXPECT_TRUE(fixture.await(store().verify_before_restore(any)));
}

// Not found, it passed for deleted: it came back with its directory, and nobody counted it or deleted it before the next start.
TEST_F(Store, WhatIsErasedWhileTheDirectoryIsAwayGoesWhenThatIsBack) {
  const CheckpointId erased = fixture.save(tokens_of_length(50, 1), 9000)->id;
  const CheckpointId kept = fixture.save(tokens_of_length(50, 2), 9000)->id;
  const std::uint64_t bytes = store().find(erased)->bytes;
  fs::rename(scratch.slots(), scratch.path() + "/away");
  for (const char* mount_point : {"gone", "empty"}) {
    SCOPED_TRACE(mount_point);
    if (*mount_point == 'e') fs::create_directory(scratch.slots());
    ASSERT_FALSE(fixture.await(store().erase(erased)) && fixture.await(store().flush()));
    EXPECT_EQ(store().counters().condemned_bytes, bytes);
  }
  fs::remove(scratch.slots());
  fs::rename(scratch.path() + "/away", scratch.slots());
  ASSERT_TRUE(fixture.await(store().flush()));
  EXPECT_EQ(store().counters().condemned_bytes, 0u);
  EXPECT_EQ(fixture.slot_files(), std::vector<std::string>{store().find(kept)->file_name});
}

TEST_F(Store, ADirectoryThatSomebodyHasEmptiedIsSavedToAgain) {
  const CheckpointId lost = fixture.save(tokens_of_length(50, 1), 9000)->id;
  fs::remove_all(scratch.slots());
  EXPECT_EQ(fixture.await(store().reserve(9000)).error().code, ErrorCode::io);
  fs::create_directory(scratch.slots());
  const auto saved = fixture.save(tokens_of_length(50, 2), 9000);
  ASSERT_TRUE(saved) << to_string(saved.error());
  EXPECT_EQ(fixture.await(store().verify_before_restore(lost)).error().code, ErrorCode::not_found);
  StoreFixture second(scratch, files);
  EXPECT_EQ(second.open().error().code, ErrorCode::invalid) << "it is locked again";
  ASSERT_TRUE(fixture.open());
  EXPECT_NE(store().find(saved->id), nullptr);
}

TEST_F(Store, ADiskThatRefusesIsSaidOnceAndTriedAgainLater) {
  std::vector<std::string> said;
  store().on_saving([&](const Error* trouble) { said.push_back(trouble != nullptr ? std::string(to_string(trouble->code)) : "resumed"); });
  files.before = [](int, const char* name) -> std::optional<Error> {
    if (std::string_view(name) != "sync_file") return std::nullopt;
    return disk_error(ErrorCode::no_space, "made to fail");
  };
  EXPECT_FALSE(store().saving_waits());
  EXPECT_FALSE(fixture.save(tokens_of_length(10), 1000));
  EXPECT_TRUE(store().saving_waits());
  EXPECT_FALSE(fixture.save(tokens_of_length(10), 1000));
  EXPECT_EQ(said, std::vector<std::string>{"no_space"});
  fixture.now_ms += 60'000;
  EXPECT_FALSE(store().saving_waits());
  files.before = nullptr;
  EXPECT_TRUE(fixture.save(tokens_of_length(10), 1000));
  EXPECT_EQ(said, (std::vector<std::string>{"no_space", "resumed"}));
  EXPECT_FALSE(store().saving_trouble());
}

TEST_F(Store, AFullDiskPausesSavingAndAFullBudgetDoesNot) {
  files.pretended_space = DiskSpace{1000, 1'000'000};
  EXPECT_EQ(fixture.await(store().reserve(5000)).error().code, ErrorCode::no_space);
  EXPECT_TRUE(store().saving_waits());
  files.pretended_space.reset();
  fixture.options.budget_bytes = 5000;
  ASSERT_TRUE(fixture.open());
  EXPECT_EQ(fixture.await(store().reserve(6000)).error().code, ErrorCode::no_space);
  EXPECT_FALSE(store().saving_waits());
}

TEST(SavingPauseTest, AClockSetBackDoesNotProlongIt) {
  SavingPause pause;
  EXPECT_TRUE(pause.failed(disk_error(ErrorCode::io, "x"), 1'000'000));
  EXPECT_TRUE(pause.waiting(1'000'001));
  EXPECT_FALSE(pause.waiting(0));
  EXPECT_FALSE(pause.failed(disk_error(ErrorCode::io, "x"), 1'000'000));
  EXPECT_TRUE(pause.succeeded());
  EXPECT_FALSE(pause.succeeded());
}

// ---- room

TEST_F(Store, TheBudgetIsRespected) {
  fixture.options.budget_bytes = 40000;
  fixture.options.low_water = 0.6;
  ASSERT_TRUE(fixture.open());
  std::vector<CheckpointId> removed;
  store().on_removed([&](const CheckpointRecord& record, RemovalReason reason) {
    EXPECT_EQ(reason, RemovalReason::evicted);
    removed.push_back(record.id);
  });
  std::vector<CheckpointId> ids;
  for (int i = 0; i < 4; ++i) {
    fixture.now_ms += 1000;
    ids.push_back(fixture.save(tokens_of_length(50, i), 9000, i == 0 ? 100 : 1)->id);  // the first is dear
  }
  EXPECT_TRUE(removed.empty());
  ASSERT_TRUE(fixture.save(tokens_of_length(50, 5), 9000));
  EXPECT_EQ(removed, (std::vector<CheckpointId>{ids[1], ids[2]}));  // the oldest of equals, down to the low-water mark
  EXPECT_LE(store().counters().bytes, 40000u);
  EXPECT_EQ(fixture.slot_files().size(), 3u);
  EXPECT_EQ(store().counters().evictions, 2u);
  EXPECT_EQ(fixture.await(store().reserve(40001)).error().code, ErrorCode::no_space);
  EXPECT_EQ(fixture.slot_files().size(), 3u);  // nothing was sacrificed for what cannot fit
}

TEST_F(Store, PinnedAndUsedStay) {
  fixture.options.budget_bytes = 20000;
  ASSERT_TRUE(fixture.open());
  const CheckpointId pinned = fixture.save(tokens_of_length(50, 1), 9000)->id;
  ASSERT_TRUE(fixture.await(store().pin(pinned, "")));
  const CheckpointId used = fixture.save(tokens_of_length(50, 2), 9000)->id;
  {
    const auto use = store().use(used);
    ASSERT_TRUE(use);
    const auto refused = fixture.save(tokens_of_length(50, 3), 9000);
    EXPECT_EQ(refused.error().code, ErrorCode::no_space);
    EXPECT_TRUE(refused.error().may_retry) << "it is used for a moment";
    EXPECT_EQ(store().counters().refused_reservations, 1u);
    EXPECT_EQ(store().counters().reserved_bytes, 0u);
    EXPECT_NE(store().find(used), nullptr);
    // Erased while in use: gone for everybody else, the file stays and counts until the use ends.
    const std::string path = path_of(used);
    ASSERT_TRUE(fixture.await(store().erase(used)));
    EXPECT_EQ(store().find(used), nullptr);
    EXPECT_FALSE(store().use(used));
    EXPECT_TRUE(fs::exists(path));
    EXPECT_EQ(fixture.await(store().reserve(9000)).error().code, ErrorCode::no_space);
  }
  EXPECT_TRUE(fixture.save(tokens_of_length(50, 3), 9000));
  EXPECT_NE(store().find(pinned), nullptr);
  EXPECT_EQ(fixture.slot_files().size(), 2u);
}

TEST_F(Store, AFileThatIsDeletedAtOnceNeedsNoRoomInTheBudgetAndDrivesNothingOut) {
  fixture.options.budget_bytes = 20000;
  fixture.options.min_free_bytes = 1000000;
  ASSERT_TRUE(fixture.open());
  files.pretended_space = DiskSpace{1020000, 2000000};
  for (int seed = 1; seed < 3; ++seed) ASSERT_TRUE(fixture.save(tokens_of_length(50, seed), 9000));
  files.pretended_space = DiskSpace{900000, 2000000};  // under the floor
  auto scratch_room = fixture.await(store().reserve_scratch(30000));
  ASSERT_TRUE(scratch_room);
  write_file(scratch.slots() + "/" + scratch_room->temporary_name(), "a few tokens");
  ASSERT_TRUE(fixture.await(store().discard(std::move(*scratch_room))));
  EXPECT_EQ(fixture.slot_files().size(), 2u);
  EXPECT_EQ(store().counters().evictions, 0u);
  EXPECT_FALSE(store().saving_waits());
  files.pretended_space = DiskSpace{1000, 2000000};  // really full
  EXPECT_EQ(fixture.await(store().reserve_scratch(30000)).error().code, ErrorCode::no_space);
}

TEST_F(Store, AFileThatTheBackendWritesAfterItsSaveWasGivenUpIsDeleted) {
  ASSERT_TRUE(fixture.open());
  auto reservation = fixture.await(store().reserve(9000));
  ASSERT_TRUE(reservation);
  const std::string path = scratch.slots() + "/" + reservation->temporary_name();
  ASSERT_TRUE(fixture.await(store().discard(std::move(*reservation), true)));
  EXPECT_TRUE(store().strays_may_come());
  for (int i = 0; i < 2; ++i) {
    write_file(path, "late");
    ASSERT_TRUE(fixture.await(store().flush()));
    EXPECT_FALSE(fs::exists(path));
  }
  fixture.now_ms += 601'000;
  EXPECT_FALSE(store().strays_may_come());
}

// Cairn was killed while a save of its waited in the backend: nobody knew the file that came after the next start.
TEST_F(Store, AFileThatTheBackendWritesForTheProcessBeforeIsDeleted) {
  ASSERT_TRUE(fixture.save(tokens_of_length(50), 9000));
  std::string late;
  {
    auto asked_for = fixture.await(store().reserve(9000));
    ASSERT_TRUE(asked_for);
    late = scratch.slots() + "/" + asked_for->temporary_name();
  }
  ASSERT_TRUE(fixture.open());
  EXPECT_TRUE(store().strays_may_come());
  auto ours = fixture.await(store().reserve(9000));
  ASSERT_TRUE(ours);
  const std::string being_saved = scratch.slots() + "/" + ours->temporary_name();
  write_file(being_saved, "half");
  write_file(scratch.slots() + "/cairn-mine.saving", "no name of ours");
  for (const std::string& suffix : {"", ".ckpt"}) {
    write_file(late + suffix, "late");
    ASSERT_TRUE(fixture.await(store().flush()));
    EXPECT_FALSE(fs::exists(late + suffix));
  }
  EXPECT_TRUE(fs::exists(being_saved));
  EXPECT_EQ(fixture.slot_files().size(), 3u);
  fixture.now_ms += 601'000;
  EXPECT_FALSE(store().strays_may_come());
  const int calls = files.calls;
  ASSERT_TRUE(fixture.await(store().flush()));
  EXPECT_EQ(files.calls, calls) << "nothing comes so late";
}

TEST_F(Store, WhoOnlyLooksDeletesNoFileThatComesLate) {
  fixture.options.look_only = true;
  ASSERT_TRUE(fixture.open());
  const std::string late = scratch.slots() + "/cairn-" + std::string(32, 'a') + ".saving";
  write_file(late, "another's");
  EXPECT_FALSE(store().strays_may_come());
  ASSERT_TRUE(fixture.await(store().flush()));
  EXPECT_TRUE(fs::exists(late));
}

TEST_F(Store, AFileLargerThanItsReservationMustFitToo) {
  fixture.options.budget_bytes = 20000;
  ASSERT_TRUE(fixture.open());
  const CheckpointId first = fixture.save(tokens_of_length(50), 9000)->id;
  const auto save_larger = [&](std::size_t bytes) {
    auto reservation = fixture.await(store().reserve(1000));
    EXPECT_TRUE(reservation);
    write_file(scratch.slots() + "/" + reservation->temporary_name(), state_bytes(4, tokens_of_length(60), bytes).data);
    NewCheckpoint checkpoint;
    checkpoint.saved_tokens = 60;
    return fixture.await(store().commit(std::move(*reservation), checkpoint));
  };
  EXPECT_EQ(save_larger(25000).error().code, ErrorCode::no_space);
  EXPECT_NE(store().find(first), nullptr);
  EXPECT_TRUE(save_larger(15000));  // evicts
  EXPECT_EQ(store().find(first), nullptr);
  EXPECT_LE(store().counters().bytes, 20000u);
  EXPECT_EQ(fixture.slot_files().size(), 1u);
}

TEST_F(Store, KeepsTheFloorOfFreeDisk) {
  fixture.options.min_free_bytes = 1000000;
  ASSERT_TRUE(fixture.open());
  files.pretended_space = DiskSpace{1020000, 2000000};
  const CheckpointId id = fixture.save(tokens_of_length(50), 9000)->id;
  EXPECT_EQ(fixture.await(store().reserve(500000)).error().code, ErrorCode::no_space);
  EXPECT_NE(store().find(id), nullptr);  // could not have helped
  files.pretended_space = DiskSpace{1005000, 2000000};
  files.after = [&](int, const char* call) {
    if (std::string_view(call) == "remove") files.pretended_space = DiskSpace{1014000, 2000000};
  };
  EXPECT_TRUE(fixture.await(store().reserve(9000)));
  EXPECT_EQ(store().find(id), nullptr);
}

// One that could not be deleted: every pin and eviction said that it had failed, and nothing was saved any more.
TEST_F(Store, AFileThatCannotBeDeletedIsNobodyElsesTrouble) {
  fixture.options.budget_bytes = 30'000;
  ASSERT_TRUE(fixture.open());
  const CheckpointId first = fixture.save(tokens_of_length(50, 1), 9000)->id;
  const CheckpointId second = fixture.save(tokens_of_length(50, 2), 9000)->id;
  const CheckpointId third = fixture.save(tokens_of_length(50, 3), 9000)->id;
  files.refuses_to_remove = path_of(first);
  EXPECT_EQ(fixture.await(store().erase(first)).error().code, ErrorCode::io);
  EXPECT_TRUE(fixture.await(store().pin(second, "kept")));
  EXPECT_TRUE(fixture.await(store().unpin(second)));
  EXPECT_TRUE(fixture.await(store().erase(second)));
  // 9000 bytes of the budget are lost for as long as that lasts, no more.
  EXPECT_TRUE(fixture.save(tokens_of_length(50, 4), 9000));
  EXPECT_NE(store().find(third), nullptr);
  EXPECT_FALSE(fixture.await(store().flush()));
  const auto fifth = fixture.save(tokens_of_length(50, 5), 9000);
  EXPECT_TRUE(fifth) << to_string(fifth.error());
  EXPECT_EQ(store().find(third), nullptr);
  EXPECT_FALSE(store().saving_trouble());
  EXPECT_LE(store().counters().bytes + store().counters().condemned_bytes, 30'000u);
  files.refuses_to_remove.clear();
  EXPECT_TRUE(fixture.await(store().flush()));
  EXPECT_EQ(store().counters().condemned_bytes, 0u);
}

TEST_F(Store, AFileThatCannotBeDeletedDoesNotHoldUpWhatMakesRoomOnTheDisk) {
  fixture.options.min_free_bytes = 1'000'000;
  ASSERT_TRUE(fixture.open());
  const CheckpointId stuck = fixture.save(tokens_of_length(50, 1), 9000)->id;
  const CheckpointId other = fixture.save(tokens_of_length(50, 2), 9000)->id;
  files.refuses_to_remove = path_of(stuck);
  EXPECT_FALSE(fixture.await(store().erase(stuck)));
  files.pretended_space = DiskSpace{1'005'000, 2'000'000};
  files.after = [&](int, const char* call) {
    if (std::string_view(call) == "remove") files.pretended_space = DiskSpace{1'014'000, 2'000'000};
  };
  EXPECT_TRUE(fixture.await(store().reserve(9000)));
  EXPECT_EQ(store().find(other), nullptr);
}

TEST_F(Store, WhereNothingCanBeDeletedNotMoreIsEvictedForIt) {
  fixture.options.budget_bytes = 30'000;
  ASSERT_TRUE(fixture.open());
  for (Token salt = 0; salt < 3; ++salt) ASSERT_TRUE(fixture.save(tokens_of_length(50, salt), 9000));
  files.before = [](int, const char* call) -> std::optional<Error> {
    if (std::string_view(call) == "remove") return disk_error(ErrorCode::io, call);
    return std::nullopt;
  };
  for (int i = 0; i < 3; ++i) EXPECT_FALSE(fixture.await(store().reserve(9000)));
  EXPECT_EQ(store().counters().files, 2u);
}

// Commits seemed to succeed, into a file without a name.
TEST_F(Store, AnIndexThatWasRemovedUnderAStoreRefusesSavesAndSaysSo) {
  ASSERT_TRUE(fixture.save(tokens_of_length(50), 9000));
  std::string said;
  store().on_saving([&](const Error* trouble) { said = trouble != nullptr ? trouble->context : ""; });
  fs::remove_all(scratch.state());
  const auto refused = fixture.save(tokens_of_length(60), 9000);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::io);
  EXPECT_NE(said.find("index.sqlite is not the file that was opened"), std::string::npos) << said;
  EXPECT_TRUE(store().saving_waits());
  EXPECT_EQ(fixture.slot_files().size(), 1u);
}

TEST_F(Store, ALoweredBudgetTrimsAtStart) {
  for (int i = 0; i < 4; ++i) ASSERT_TRUE(fixture.save(tokens_of_length(50, i), 9000));
  fixture.options.budget_bytes = 20000;
  ASSERT_TRUE(fixture.open());
  EXPECT_LE(store().counters().bytes, 20000u);
  EXPECT_EQ(fixture.slot_files().size(), store().counters().files);
}

// Nothing went, because it would not have been enough: the store stayed far beyond its budget.
TEST_F(Store, ALoweredBudgetThatPinsAreBeyondTakesAllOthers) {
  const CheckpointId pinned = fixture.save(tokens_of_length(50, 1), 9000)->id;
  for (Token salt = 2; salt <= 4; ++salt) ASSERT_TRUE(fixture.save(tokens_of_length(50, salt), 9000));
  ASSERT_TRUE(fixture.await(store().pin(pinned, "")));
  fixture.options.budget_bytes = 5000;
  ASSERT_TRUE(fixture.open());
  EXPECT_EQ(fixture.slot_files(), std::vector<std::string>{store().find(pinned)->file_name});
  EXPECT_EQ(store().counters().files, 1u);
  EXPECT_EQ(store().counters().condemned_bytes, 0u);
}

// Saves were refused, one like the other, and nobody was told why.
TEST_F(Store, PinsThatLeaveNoRoomAreToldOfOnce) {
  std::vector<std::uint64_t> told;
  const auto listen = [&] {
    store().on_pins_fill([&](std::uint64_t pinned, std::uint64_t budget) {
      EXPECT_EQ(budget, 30'000u);
      told.push_back(pinned);
    });
  };
  fixture.options.budget_bytes = 30'000;
  ASSERT_TRUE(fixture.open());
  listen();
  std::vector<CheckpointId> ids;
  for (Token salt = 1; salt <= 3; ++salt) ids.push_back(fixture.save(tokens_of_length(50, salt), 9000)->id);
  const std::uint64_t each = store().find(ids[0])->bytes;
  ASSERT_TRUE(fixture.await(store().pin(ids[0], "")));
  ASSERT_TRUE(fixture.await(store().pin(ids[1], "")));
  EXPECT_TRUE(told.empty());
  // One that is larger than they are.
  EXPECT_FALSE(fixture.await(store().reserve(15'000)));
  EXPECT_EQ(told, std::vector<std::uint64_t>{2 * each});
  EXPECT_NE(store().find(ids[2]), nullptr) << "for nothing";
  ASSERT_TRUE(fixture.await(store().pin(ids[2], "")));
  EXPECT_FALSE(fixture.await(store().reserve(9000)));
  EXPECT_EQ(told.size(), 1u);
  ASSERT_TRUE(fixture.await(store().unpin(ids[2])));
  ASSERT_TRUE(fixture.await(store().pin(ids[2], "")));
  EXPECT_EQ(told.size(), 2u);
  ASSERT_TRUE(fixture.open());
  listen();
  EXPECT_EQ(told, (std::vector<std::uint64_t>{2 * each, 3 * each, 3 * each})) << "at start";
}

TEST_F(Store, ReservationsAtTheSameTimeShareTheBudget) {
  fixture.options.budget_bytes = 20000;
  ASSERT_TRUE(fixture.open());
  ASSERT_TRUE(fixture.save(tokens_of_length(50), 9000));
  boost::asio::io_context io;
  std::vector<Result<CheckpointStore::Reservation>> results;
  for (int i = 0; i < 3; ++i) {
    boost::asio::co_spawn(io, store().reserve(8000),
                          [&](std::exception_ptr, Result<CheckpointStore::Reservation> result) {
                            EXPECT_LE(store().counters().bytes + store().counters().condemned_bytes, 20000u);
                            results.push_back(std::move(result));
                          });
  }
  io.run();
  std::uint64_t granted = 0;
  for (const auto& result : results) granted += result ? result->bytes() : 0;
  EXPECT_EQ(granted, store().counters().reserved_bytes);
  EXPECT_LE(granted + store().counters().bytes, 20000u);
  EXPECT_GE(granted, 8000u);
}

}  // namespace
}  // namespace cairn::test

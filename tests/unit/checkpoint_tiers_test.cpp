// Two tiers: the slot directory in RAM, copies on disk.
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <functional>
#include <future>
#include <latch>
#include <utility>

#include "checkpoint/store.hpp"
#include "unit/checkpoint_support.hpp"

namespace cairn::test {
namespace {

class Tiers : public ::testing::Test {
 protected:
  ScratchDirectory scratch;
  FaultyLayer files;
  StoreFixture fixture{scratch, files, 100'000};
  CheckpointStore& store() { return *fixture.store; }
  std::string disk() const { return scratch.path() + "/disk"; }
  std::string name_of(CheckpointId id) { return store().find(id)->file_name; }
  void SetUp() override {
    fixture.options.disk_dir = disk();
    fixture.options.ram_budget_bytes = 30'000;
    ASSERT_TRUE(fixture.open());
  }
  Result<void> copy_all() {
    return fixture.await(store().copy_down([] { return false; }));
  }
  CheckpointId save(Token salt, std::size_t bytes = 9000, double cost_s = 1) {
    fixture.now_ms += 1000;
    const auto committed = fixture.save(tokens_of_length(50, salt), bytes, cost_s, {".ckpt"});
    EXPECT_TRUE(committed) << to_string(committed.error());
    return committed ? committed->id : CheckpointId{};
  }
  std::vector<std::string> disk_files() const {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(disk())) {
      if (entry.path().filename() != "cairn.lock") names.push_back(entry.path().filename().string());
    }
    return names;
  }
  // As before a restore.
  Result<VerifyOutcome> verify(CheckpointId id) {
    const auto use = store().use(id);
    return fixture.await(store().verify_before_restore(id));
  }
  void clear_ram() {
    for (const auto& entry : fs::directory_iterator(scratch.slots())) fs::remove(entry.path());
  }
  void expect_same_copies(CheckpointId id) {
    EXPECT_EQ(read_file(disk() + "/" + name_of(id)), read_file(scratch.slots() + "/" + name_of(id)));
  }
  void reboot() {
    fixture.store.reset();
    fs::remove_all(scratch.slots());
    const auto opened = fixture.open();
    ASSERT_TRUE(opened) << to_string(opened.error());
  }
};

TEST_F(Tiers, ARebootThatEmptiesTheRamLosesOnlyWhatHadNoCopy) {
  const CheckpointId copied = save(1);
  EXPECT_TRUE(store().copies_due());
  ASSERT_TRUE(copy_all());
  EXPECT_FALSE(store().copies_due());
  EXPECT_TRUE(store().find(copied)->on_disk);
  EXPECT_EQ(read_file(disk() + "/" + name_of(copied)), read_file(scratch.slots() + "/" + name_of(copied)));
  EXPECT_EQ(read_file(disk() + "/" + name_of(copied) + ".ckpt"), "side .ckpt");
  const CheckpointId not_copied = save(2);
  reboot();
  EXPECT_EQ(store().find(not_copied), nullptr);
  ASSERT_NE(store().find(copied), nullptr);
  EXPECT_FALSE(store().find(copied)->in_slots);
  EXPECT_EQ(store().counters().swept_entries, 1u);
  EXPECT_EQ(store().counters().slot_bytes, 0u);
  EXPECT_GT(store().seconds_before_restore(copied), 0);

  const auto use = store().use(copied);
  const auto verified = fixture.await(store().verify_before_restore(copied));
  ASSERT_TRUE(verified) << to_string(verified.error());
  EXPECT_TRUE(verified->checksum_read);
  EXPECT_TRUE(store().find(copied)->in_slots);
  EXPECT_EQ(store().seconds_before_restore(copied), 0);
  EXPECT_EQ(read_file(disk() + "/" + name_of(copied)), read_file(scratch.slots() + "/" + name_of(copied)));
  EXPECT_FALSE(fixture.await(store().verify_before_restore(copied))->checksum_read);  // once
  EXPECT_EQ(store().counters().brought_up, 1u);
}

// After a reboot the RAM is empty, and the disk may be mounted late.
TEST_F(Tiers, ADiskDirectoryThatIsNotMountedYetForgetsNothing) {
  const CheckpointId copied = save(1);
  ASSERT_TRUE(copy_all());
  fixture.store.reset();
  fs::rename(disk(), scratch.path() + "/unmounted");
  reboot();
  EXPECT_EQ(store().find(copied), nullptr);
  EXPECT_EQ(store().counters().absent_entries, 1u);
  fixture.store.reset();
  fs::remove_all(disk());
  fs::rename(scratch.path() + "/unmounted", disk());
  ASSERT_TRUE(fixture.open());
  ASSERT_NE(store().find(copied), nullptr);
  EXPECT_TRUE(store().find(copied)->on_disk);
}

// A mistyped slot directory beside a disk directory of its own: the other store's states were swept from there.
TEST_F(Tiers, StatesOfAnotherIndexInTheSlotDirectoryAreNotSwept) {
  const CheckpointId id = save(1);
  const StoreOptions right = fixture.options;
  fixture.options.state_dir = scratch.path() + "/state2";
  fixture.options.disk_dir = scratch.path() + "/disk2";
  const auto opened = fixture.open();
  ASSERT_FALSE(opened);
  EXPECT_EQ(opened.error().code, ErrorCode::unsupported);
  fixture.options = right;
  ASSERT_TRUE(fixture.open());
  EXPECT_NE(store().find(id), nullptr);
}

TEST_F(Tiers, TheRamIsLeftByThoseWorthLeastAndTheirCopiesStay) {
  const CheckpointId first = save(1);
  const CheckpointId dear = save(2, 9000, 100);
  const CheckpointId third = save(3);
  ASSERT_TRUE(copy_all());
  const CheckpointId fourth = save(4);
  EXPECT_FALSE(store().find(first)->in_slots);
  EXPECT_TRUE(store().find(dear)->in_slots);
  EXPECT_TRUE(store().find(third)->in_slots);
  EXPECT_TRUE(store().find(fourth)->in_slots);
  EXPECT_LE(store().counters().slot_bytes, 30'000u);
  EXPECT_EQ(store().counters().evictions, 0u);
  EXPECT_EQ(fixture.slot_files().size(), 6u);
  EXPECT_EQ(disk_files().size(), 6u);
  // And back, for another.
  const auto use = store().use(first);
  ASSERT_TRUE(fixture.await(store().verify_before_restore(first)));
  EXPECT_TRUE(store().find(first)->in_slots);
  EXPECT_LE(store().counters().slot_bytes, 30'000u);
  EXPECT_EQ(store().counters().files, 4u);
}

TEST_F(Tiers, WhatHasNoCopyYetGetsOneBeforeItLeaves) {
  std::vector<CheckpointId> ids;
  for (Token salt = 0; salt < 6; ++salt) ids.push_back(save(salt));
  for (const CheckpointId id : ids) ASSERT_NE(store().find(id), nullptr);
  EXPECT_EQ(store().counters().evictions, 0u);
  EXPECT_EQ(store().counters().copied_down, 3u);
  EXPECT_LE(store().counters().slot_bytes, 30'000u);
}

TEST_F(Tiers, TheDiskBudgetHoldsAndWhatLeavesTheDiskLeavesAltogether) {
  fixture.options.budget_bytes = 40'000;
  ASSERT_TRUE(fixture.open());
  for (Token salt = 0; salt < 12; ++salt) {
    save(salt);
    (void)copy_all();
    EXPECT_LE(store().counters().disk_bytes, 40'000u);
    EXPECT_LE(store().counters().slot_bytes, 30'000u);
  }
  EXPECT_GT(store().counters().evictions, 0u);
  const auto files_before = store().counters().files;
  ASSERT_TRUE(fixture.open());
  EXPECT_EQ(store().counters().files, files_before);
  EXPECT_EQ(store().counters().swept_files, 0u);
}

TEST_F(Tiers, APinnedStateGetsItsCopyThoughOthersAreWorthMore) {
  fixture.options.budget_bytes = 20'000;
  ASSERT_TRUE(fixture.open());
  const CheckpointId dear = save(1, 9000, 100), dearer = save(2, 9000, 200);
  ASSERT_TRUE(copy_all());
  const CheckpointId cheap = save(3, 9000, 0.001);
  EXPECT_EQ(copy_all().error().code, ErrorCode::no_space);
  EXPECT_FALSE(store().find(cheap)->on_disk);
  ASSERT_TRUE(fixture.await(store().pin(cheap, "system prompt")));
  ASSERT_TRUE(copy_all());
  EXPECT_TRUE(store().find(cheap)->on_disk);
  EXPECT_EQ(store().find(dear), nullptr);
  EXPECT_LE(store().counters().disk_bytes, 20'000u);
  reboot();
  EXPECT_NE(store().find(cheap), nullptr);

  // Where only pins are left, the budget holds.
  ASSERT_TRUE(fixture.await(store().pin(dearer, "")));
  const CheckpointId last = save(4);
  ASSERT_TRUE(fixture.await(store().pin(last, "")));
  EXPECT_EQ(copy_all().error().code, ErrorCode::no_space);
  EXPECT_FALSE(store().find(last)->on_disk);
  EXPECT_TRUE(store().find(cheap)->on_disk);
  EXPECT_TRUE(store().find(dearer)->on_disk);
  EXPECT_LE(store().counters().disk_bytes, 20'000u);
}

TEST_F(Tiers, PinsThatFillTheDiskAreToldOfWhenACopyIsDeclined) {
  fixture.options.budget_bytes = 20'000;
  ASSERT_TRUE(fixture.open());
  int told = 0;
  store().on_pins_fill([&](std::uint64_t, std::uint64_t budget) {
    EXPECT_EQ(budget, 20'000u);
    ++told;
  });
  save(3, 1'000);
  ASSERT_TRUE(fixture.await(store().pin(save(1, 12'000), "")));
  ASSERT_TRUE(copy_all());
  EXPECT_EQ(told, 0);
  save(2, 15'000);
  EXPECT_FALSE(copy_all());
  fixture.now_ms += 600'000;
  EXPECT_FALSE(copy_all());
  EXPECT_EQ(told, 1);
}

TEST_F(Tiers, ALoweredBudgetThatPinsAreBeyondTakesAllOthersFromTheDisk) {
  const CheckpointId pinned = save(1), other = save(2);
  ASSERT_TRUE(fixture.await(store().pin(pinned, "")));
  ASSERT_TRUE(copy_all());
  fixture.options.budget_bytes = 5000;
  fixture.options.ram_budget_bytes = 5000;
  ASSERT_TRUE(fixture.open());
  EXPECT_EQ(store().find(other), nullptr);
  ASSERT_NE(store().find(pinned), nullptr);
  EXPECT_EQ(disk_files().size(), 2u);
}

TEST_F(Tiers, APinnedStateGetsItsCopyAtTheFloorOfFreeDisk) {
  fixture.options.min_free_bytes = 1'000'000;
  ASSERT_TRUE(fixture.open());
  const CheckpointId dear = save(1, 9000, 100);
  ASSERT_TRUE(copy_all());
  const CheckpointId cheap = save(2, 9000, 0.001);
  files.pretended_space = DiskSpace{1'005'000, 2'000'000};
  files.after = [&](int, const char* call) {
    if (std::string_view(call) == "remove") files.pretended_space = DiskSpace{1'015'000, 2'000'000};
  };
  EXPECT_FALSE(copy_all());
  EXPECT_NE(store().find(dear), nullptr);
  ASSERT_TRUE(fixture.await(store().pin(cheap, "")));
  fixture.now_ms += 600'000;
  ASSERT_TRUE(copy_all());
  EXPECT_TRUE(store().find(cheap)->on_disk);
  EXPECT_EQ(store().find(dear), nullptr);
}

// It passed for trouble with the disk: for up to a minute nothing was copied.
TEST_F(Tiers, WhatIsNotWorthItsRoomAtTheFloorOfFreeDiskHoldsUpNoCopies) {
  fixture.options.min_free_bytes = 1'000'000;
  ASSERT_TRUE(fixture.open());
  int said = 0;
  store().on_copying([&](const Error*) { ++said; });
  const CheckpointId dear = save(1, 9000, 100);
  ASSERT_TRUE(copy_all());
  const CheckpointId dearer = save(2, 9000, 200);
  const CheckpointId cheap = save(3, 9000, 0.001);  // used last: tried first
  files.pretended_space = DiskSpace{1'005'000, 2'000'000};
  files.after = [&](int, const char* call) {
    if (std::string_view(call) == "remove") files.pretended_space = DiskSpace{1'015'000, 2'000'000};
  };
  EXPECT_EQ(copy_all().error().code, ErrorCode::no_space);
  EXPECT_FALSE(store().find(cheap)->on_disk);
  EXPECT_TRUE(store().find(dearer)->on_disk);
  EXPECT_EQ(store().find(dear), nullptr);
  EXPECT_EQ(said, 0);
  EXPECT_EQ(store().counters().disk_errors, 0u);
}

// Each of them had all states on disk judged twice, in one go, in every quiet moment: hundreds stopped the I/O thread.
TEST_F(Tiers, ManyThatAFullDiskDeclinesCostOneLookAtWhatLiesThere) {
  fixture.options.ram_budget_bytes = 1'000'000;
  fixture.options.budget_bytes = 30'000;
  ASSERT_TRUE(fixture.open());
  constexpr int kept = 20, declined = 50;
  for (Token salt = 0; salt < kept; ++salt) save(salt, 1000, 100);
  ASSERT_TRUE(copy_all());
  for (Token salt = 0; salt < declined; ++salt) save(100 + salt, 2000, 0.001);
  int judged = 0;
  store().on_worth([&](const CheckpointRecord& record) {
    ++judged;
    return StateWorth{.tokens_per_s = record.cost_to_recompute_s};
  });
  EXPECT_EQ(copy_all().error().code, ErrorCode::no_space);
  EXPECT_EQ(store().counters().copied_down, static_cast<std::uint64_t>(kept) + 2) << "what fits";
  EXPECT_LE(judged, kept + 2 + 2 * declined);
  // Nor is it tried again at once.
  judged = 0;
  EXPECT_FALSE(store().copies_due());
  EXPECT_TRUE(store().copies_wait());
  EXPECT_TRUE(copy_all());
  EXPECT_EQ(judged, 0);
  fixture.now_ms += CheckpointStore::longest_uncopied_ms;
  EXPECT_TRUE(store().copies_due());
  EXPECT_FALSE(copy_all());
  EXPECT_GT(judged, 0);
}

TEST_F(Tiers, OthersHaveTheirTurnBetweenTwoCopiesThatAreDeclined) {
  fixture.options.ram_budget_bytes = 1'000'000;
  fixture.options.budget_bytes = 20'000;
  ASSERT_TRUE(fixture.open());
  for (Token salt = 0; salt < 2; ++salt) save(salt, 9000, 100);
  ASSERT_TRUE(copy_all());
  for (Token salt = 10; salt < 20; ++salt) save(salt, 9000, 0.001);
  boost::asio::io_context io;
  bool request_came = false;
  int tried = 0;
  const std::function<bool()> busy = [&] {
    if (!request_came) ++tried;
    return request_came;
  };
  boost::asio::co_spawn(io, store().copy_down(busy), [](std::exception_ptr, Result<void>) {});
  boost::asio::post(io, [&] { request_came = true; });
  io.run();
  EXPECT_LE(tried, 3);
}

// Its room was taken for full, and the turn that asked for it was never saved.
TEST_F(Tiers, WhereAllThatMayLeaveTheRamIsBeingCopiedThatIsWaitedFor) {
  fixture.options.ram_budget_bytes = 15'000;
  ASSERT_TRUE(fixture.open());
  const CheckpointId id = save(1);
  std::latch copying(1), asked(1);
  std::atomic<bool> first{true};  // its side file has a call of its own
  files.before = [&](int, const char* call) -> std::optional<Error> {
    if (std::string_view(call) == "create" && first.exchange(false)) {
      copying.count_down();
      asked.wait();
    }
    return std::nullopt;
  };
  boost::asio::io_context io;
  boost::asio::co_spawn(io, store().copy_down([] { return false; }), [](std::exception_ptr, Result<void> copied) { EXPECT_TRUE(copied); });
  while (!copying.try_wait()) io.poll();
  bool reserved = false;
  boost::asio::co_spawn(io, store().reserve(9000), [&](std::exception_ptr, Result<CheckpointStore::Reservation> room) {
    ASSERT_TRUE(room) << to_string(room.error());
    reserved = true;
  });
  io.poll();
  EXPECT_FALSE(reserved);
  asked.count_down();
  io.run();
  EXPECT_TRUE(reserved);
  EXPECT_TRUE(store().find(id)->on_disk);
  EXPECT_FALSE(store().find(id)->in_slots);
  EXPECT_EQ(store().counters().refused_reservations, 0u);
}

// Two models' copies to a slow disk, and a turn's commit waited for them.
TEST_F(Tiers, ACommitDoesNotWaitForCopies) {
  save(1);
  save(2);
  auto written = fixture.write_state(tokens_of_length(60), 1000);
  ASSERT_TRUE(written);
  boost::asio::io_context io;
  std::promise<void> enough;
  const std::shared_future<void> slow{enough.get_future()};
  std::uint64_t copied_before = 99;
  const auto commit = [&] {
    boost::asio::co_spawn(io, store().commit(std::move(written->reservation), written->checkpoint), [&](std::exception_ptr, const Result<CommittedCheckpoint>& done) {
      EXPECT_TRUE(done);
      copied_before = store().counters().copied_down;
      enough.set_value();
    });
  };
  std::atomic<int> creating{0};
  files.before = [&](int, const char* call) -> std::optional<Error> {
    if (std::string_view(call) != "create" || creating >= 2) return std::nullopt;
    if (++creating == 2) boost::asio::post(io, commit);
    (void)slow.wait_for(std::chrono::seconds{10});
    return std::nullopt;
  };
  for (int models = 0; models < 2; ++models) {
    boost::asio::co_spawn(io, store().copy_down([] { return false; }), [](std::exception_ptr, Result<void>) {});
  }
  io.run();
  EXPECT_EQ(copied_before, 0u);
}

TEST_F(Tiers, WhereDeletingFreesNothingOnlyOneRoundIsGivenUpForACopy) {
  fixture.options.min_free_bytes = 1'000'000;
  ASSERT_TRUE(fixture.open());
  for (Token salt = 0; salt < 2; ++salt) save(salt);
  ASSERT_TRUE(copy_all());
  save(2, 9000, 100);
  files.pretended_space = DiskSpace{1'005'000, 2'000'000};
  EXPECT_EQ(copy_all().error().code, ErrorCode::no_space);
  EXPECT_EQ(store().counters().evictions, 1u);
  EXPECT_EQ(store().counters().files, 2u);
}

TEST_F(Tiers, WhereDeletingFreesLateTheNextTryToCopyEvictsNothingMore) {
  fixture.options.min_free_bytes = 1'000'000;
  ASSERT_TRUE(fixture.open());
  for (Token salt = 0; salt < 2; ++salt) save(salt);
  ASSERT_TRUE(copy_all());
  const CheckpointId dear = save(2, 9000, 100);
  files.pretended_space = DiskSpace{1'005'000, 2'000'000};
  EXPECT_FALSE(copy_all());
  fixture.now_ms += 30'000;
  EXPECT_FALSE(copy_all());
  EXPECT_EQ(store().counters().evictions, 1u);
  fixture.now_ms += 29'000;
  files.pretended_space->free_bytes += 9500;
  EXPECT_TRUE(copy_all());
  EXPECT_EQ(store().counters().evictions, 1u);
  EXPECT_TRUE(store().find(dear)->on_disk);
}

TEST_F(Tiers, ABadFileInRamIsReplacedByItsCopy) {
  const CheckpointId id = save(1);
  ASSERT_TRUE(copy_all());
  const std::string path = scratch.slots() + "/" + name_of(id);
  std::string data = read_file(path);
  data[data.size() / 2] ^= 1;
  write_file(path, data);
  const auto use = store().use(id);
  const auto verified = fixture.await(store().verify_before_restore(id));
  ASSERT_TRUE(verified) << to_string(verified.error());
  EXPECT_EQ(read_file(path), read_file(disk() + "/" + name_of(id)));
  EXPECT_EQ(store().counters().dropped_bad, 1u);
  EXPECT_EQ(store().counters().condemned_bytes, 0u);
}

TEST_F(Tiers, ABadCopyIsNeverBroughtUp) {
  const CheckpointId id = save(1);
  ASSERT_TRUE(copy_all());
  const std::string path = disk() + "/" + name_of(id);
  reboot();
  std::string data = read_file(path);
  data[data.size() / 2] ^= 1;
  write_file(path, data);
  {
    const auto use = store().use(id);
    EXPECT_EQ(fixture.await(store().verify_before_restore(id)).error().code, ErrorCode::corrupt);
  }
  EXPECT_EQ(store().find(id), nullptr);
  ASSERT_TRUE(fixture.await(store().flush()));
  EXPECT_TRUE(disk_files().empty());
  EXPECT_TRUE(fixture.slot_files().empty());
}

TEST_F(Tiers, VerifyReadsBothCopiesAndDropsTheBadOne) {
  const CheckpointId id = save(1);
  ASSERT_TRUE(copy_all());
  const std::string path = disk() + "/" + name_of(id);
  write_file(path, std::string(fs::file_size(path), 'x'));
  const auto verified = fixture.await(store().verify_before_restore(id, true));
  ASSERT_TRUE(verified) << to_string(verified.error());
  EXPECT_EQ(verified->bytes, store().find(id)->bytes);  // of the good one
  EXPECT_NE(verified->other_copy.find("checksum"), std::string::npos) << verified->other_copy;
  EXPECT_FALSE(store().find(id)->on_disk);
  EXPECT_TRUE(store().copies_due());
  ASSERT_TRUE(copy_all());
  const auto again = fixture.await(store().verify_before_restore(id, true));
  EXPECT_EQ(again->bytes, 2 * store().find(id)->bytes);
  EXPECT_EQ(again->other_copy, "");
}

// It was called bad, and `cairn verify` ended with 1.
TEST_F(Tiers, AGoodStateThatLeavesTheStoreWhileItIsReadIsNotBad) {
  const CheckpointId old = save(1), longer = save(2);
  ASSERT_TRUE(copy_all());
  std::latch reading(1), may_read(1);
  std::atomic<int> opens{0};
  files.before = [&](int, const char* call) -> std::optional<Error> {
    if (std::string_view(call) != "open" || opens++ > 0) return std::nullopt;
    reading.count_down();
    may_read.wait();
    return std::nullopt;
  };
  const auto use = store().use(old);
  boost::asio::io_context io;
  std::optional<Result<VerifyOutcome>> verified;
  boost::asio::co_spawn(io, store().verify_before_restore(old, true),
                        [&](std::exception_ptr, Result<VerifyOutcome> outcome) { verified = outcome; });
  boost::asio::co_spawn(io, store().supersede(old, longer), [&](std::exception_ptr, Result<void>) { may_read.count_down(); });
  io.run_one();
  reading.wait();
  io.run();
  EXPECT_EQ(store().find(old), nullptr);
  ASSERT_TRUE(verified && *verified) << to_string(verified->error());
  EXPECT_TRUE((*verified)->checksum_read);
  EXPECT_EQ((*verified)->other_copy, "");
}

TEST_F(Tiers, VerifyTellsOfACopyThatCannotBeRead) {
  const CheckpointId id = save(1);
  ASSERT_TRUE(copy_all());
  int opens = 0;
  files.before = [&](int, const char* call) -> std::optional<Error> {
    if (std::string_view(call) != "open" || ++opens != 3) return std::nullopt;  // the state's and its side file's, and the copy's
    return disk_error(ErrorCode::io, "open: Input/output error");
  };
  const auto verified = fixture.await(store().verify_before_restore(id, true));
  ASSERT_TRUE(verified) << to_string(verified.error());
  EXPECT_EQ(verified->other_copy, "open: Input/output error");
  EXPECT_TRUE(store().find(id)->on_disk);
}

TEST_F(Tiers, ADiskThatRefusesCopiesStopsNeitherSavesNorRestores) {
  int said = 0;
  store().on_copying([&](const Error* trouble) { said += trouble != nullptr ? 1 : 100; });
  files.before = [](int, const char* call) -> std::optional<Error> {
    if (std::string_view(call) == "create") return disk_error(ErrorCode::no_space, "full");
    return std::nullopt;
  };
  for (Token salt = 0; salt < 5; ++salt) {
    const CheckpointId id = save(salt);
    (void)copy_all();
    const auto use = store().use(id);
    EXPECT_TRUE(fixture.await(store().verify_before_restore(id)));
  }
  EXPECT_EQ(said, 1);
  EXPECT_FALSE(store().saving_trouble());
  EXPECT_EQ(store().counters().evictions, 2u);  // RAM alone is what there is
  files.before = nullptr;
  fixture.now_ms += 600'000;
  ASSERT_TRUE(copy_all());
  EXPECT_EQ(said, 101);
  EXPECT_EQ(disk_files().size(), 6u);
}

TEST_F(Tiers, ACopyThatTookThePlaceOfAPartIsNotDeletedForIt) {
  std::vector<std::string_view> refused{"create", "remove"};
  files.before = [&](int, const char* call) -> std::optional<Error> {
    if (std::find(refused.begin(), refused.end(), std::string_view(call)) == refused.end()) return std::nullopt;
    return disk_error(ErrorCode::io, call);
  };
  const CheckpointId id = save(1);
  EXPECT_FALSE(copy_all());
  refused = {"remove"};
  fixture.now_ms += 600'000;
  ASSERT_TRUE(copy_all());
  refused.clear();
  save(2);  // deletes what could not be deleted
  EXPECT_EQ(disk_files().size(), 2u);
  reboot();
  const auto use = store().use(id);
  EXPECT_TRUE(fixture.await(store().verify_before_restore(id)));
}

TEST_F(Tiers, ToOpenWithoutTheDiskDirectoryForgetsNothing) {
  const CheckpointId id = save(1);
  ASSERT_TRUE(copy_all());
  fixture.options.disk_dir.clear();
  EXPECT_EQ(fixture.open().error().code, ErrorCode::unsupported);
  fixture.options.disk_dir = scratch.path() + "/other";
  EXPECT_EQ(fixture.open().error().code, ErrorCode::unsupported);
  fs::remove(fixture.options.disk_dir + "/cairn.lock");
  fs::remove(fixture.options.disk_dir);
  fs::rename(disk(), fixture.options.disk_dir);  // moved
  ASSERT_TRUE(fixture.open());
  ASSERT_NE(store().find(id), nullptr);
  EXPECT_TRUE(store().find(id)->on_disk);
  // Given up: what it held is evicted first.
  ASSERT_TRUE(fixture.await(store().erase(id)));
  fixture.options.disk_dir.clear();
  ASSERT_TRUE(fixture.open());
}

// A slash at its end, and the whole store was off: the states that "lie in X" wanted disk_dir to name X.
TEST_F(Tiers, TheDiskDirectoryIsTheSameHoweverItIsWritten) {
  const CheckpointId id = save(1);
  ASSERT_TRUE(copy_all());
  fs::create_directory_symlink(disk(), scratch.path() + "/link");
  const std::string from_here = fs::path(disk()).lexically_relative(fs::current_path()).string();
  const std::vector<std::string> names{disk() + "/", scratch.path() + "/slots/../disk", scratch.path() + "/link", from_here, disk()};
  for (const std::string& name : names) {
    fixture.options.disk_dir = name;
    const auto opened = fixture.open();
    ASSERT_TRUE(opened) << name << ": " << to_string(opened.error());
    ASSERT_NE(store().find(id), nullptr) << name;
    EXPECT_TRUE(store().find(id)->on_disk) << name;
  }
  // As they were remembered before.
  for (const std::string& name : names) {
    ASSERT_TRUE(fixture.await(store().put_setting("disk_dir", name)));
    const auto opened = fixture.open();
    ASSERT_TRUE(opened) << name << ": " << to_string(opened.error());
    EXPECT_EQ(store().setting("disk_dir"), disk());
  }
}

TEST_F(Tiers, TheBackendMayBeAnotherUsers) {
  const mode_t before = ::umask(0002);
  fixture.store.reset();
  for (const std::string& made : {disk(), scratch.slots(), scratch.state()}) fs::remove_all(made);
  EXPECT_TRUE(fixture.open());
  fs::remove_all(scratch.slots());
  save(1);  // it is made anew
  ::umask(before);
  const auto mode_of = [](const std::string& path) { return static_cast<unsigned>(fs::status(path).permissions()); };
  EXPECT_EQ(mode_of(disk()), 0700u) << "what lies there tells prompts";
  EXPECT_EQ(mode_of(scratch.slots()), 0770u);
  EXPECT_EQ(mode_of(scratch.state()), 0700u);
}

TEST_F(Tiers, ErasedIsErasedInBoth) {
  const CheckpointId id = save(1);
  ASSERT_TRUE(copy_all());
  ASSERT_TRUE(fixture.await(store().erase(id)));
  EXPECT_TRUE(disk_files().empty());
  EXPECT_TRUE(fixture.slot_files().empty());
  EXPECT_EQ(store().counters().disk_bytes + store().counters().slot_bytes + store().counters().bytes, 0u);
}

TEST_F(Tiers, AVanishedDiskDirectoryForgetsNothing) {
  const CheckpointId id = save(1);
  ASSERT_TRUE(copy_all());
  reboot();
  fs::rename(disk(), disk() + ".away");
  EXPECT_EQ(verify(id).error().code, ErrorCode::io);
  EXPECT_NE(store().find(id), nullptr);
  fs::rename(disk() + ".away", disk());
  const auto use = store().use(id);
  EXPECT_TRUE(fixture.await(store().verify_before_restore(id)));
}

// For copies that could not be made the copies of others were given up: forgotten by the index, and back with the directory.
TEST_F(Tiers, NothingLeavesTheDiskForACopyWhileThatIsAway) {
  fixture.options.budget_bytes = 20'000;
  ASSERT_TRUE(fixture.open());
  const CheckpointId first = save(1), second = save(2);
  ASSERT_TRUE(copy_all());
  const CheckpointId dear = save(3, 9000, 100);
  const auto refused = [&] {
    fixture.now_ms += 600'000;
    const auto copied = copy_all();
    EXPECT_NE(store().find(first), nullptr);
    EXPECT_NE(store().find(second), nullptr);
    EXPECT_EQ(store().counters().disk_reserved_bytes, 0u);
    return copied ? ErrorCode::internal : copied.error().code;
  };
  fs::rename(disk(), disk() + ".away");
  EXPECT_EQ(refused(), ErrorCode::io);
  fs::create_directory(disk());
  EXPECT_EQ(refused(), ErrorCode::io);
  fs::remove(disk());
  fs::rename(disk() + ".away", disk());
  files.pretended_space = DiskSpace{1'000'000, 2'000'000, true};
  EXPECT_EQ(refused(), ErrorCode::io);
  files.pretended_space.reset();
  fixture.now_ms += 600'000;
  ASSERT_TRUE(copy_all());
  EXPECT_TRUE(store().find(dear)->on_disk);
  EXPECT_EQ(store().counters().evictions, 1u);
  EXPECT_EQ(disk_files().size(), 4u);
}

TEST_F(Tiers, WhatIsErasedWhileTheDiskIsAwayGoesFromItLater) {
  const CheckpointId id = save(1);
  ASSERT_TRUE(copy_all());
  const std::uint64_t bytes = store().find(id)->bytes;
  fs::rename(disk(), disk() + ".away");
  EXPECT_FALSE(fixture.await(store().erase(id)));
  EXPECT_TRUE(fixture.slot_files().empty());
  EXPECT_EQ(store().counters().condemned_bytes, 0u);
  EXPECT_EQ(store().counters().condemned_disk_bytes, bytes);
  const CheckpointId other = save(2);
  EXPECT_FALSE(copy_all());
  fs::rename(disk() + ".away", disk());
  fixture.now_ms += 600'000;
  ASSERT_TRUE(copy_all());
  EXPECT_EQ(store().counters().condemned_disk_bytes, 0u);
  EXPECT_TRUE(store().find(other)->on_disk);
  EXPECT_EQ(disk_files().size(), 2u);
}

TEST_F(Tiers, ADiskDirectoryThatSomebodyHasEmptiedTakesCopiesAgain) {
  const CheckpointId first = save(1);
  ASSERT_TRUE(copy_all());
  for (const auto& entry : fs::directory_iterator(disk())) fs::remove(entry.path());
  const CheckpointId second = save(2);
  ASSERT_TRUE(copy_all());
  EXPECT_TRUE(store().find(second)->on_disk);
  fs::remove(scratch.slots() + "/" + name_of(first));
  EXPECT_EQ(verify(first).error().code, ErrorCode::not_found);
}

// The second copy took room of its own, and drove others out for it.
TEST_F(Tiers, TwoWhoCopyTheSameDownCopyItOnce) {
  save(1);
  boost::asio::io_context io;
  for (int i = 0; i < 2; ++i) {
    boost::asio::co_spawn(io, store().copy_down([] { return false; }), [](std::exception_ptr, Result<void>) {});
  }
  io.run();
  EXPECT_EQ(store().counters().copied_down, 1u);
  EXPECT_FALSE(store().copies_due());
}

TEST_F(Tiers, TwoWhoBringUpTheSameCountItOnce) {
  const CheckpointId id = save(1);
  ASSERT_TRUE(copy_all());
  reboot();
  const auto use = store().use(id);
  boost::asio::io_context io;
  int good = 0;
  for (int i = 0; i < 2; ++i) {
    boost::asio::co_spawn(io, store().verify_before_restore(id),
                          [&](std::exception_ptr, Result<VerifyOutcome> verified) { good += verified.has_value(); });
  }
  io.run();
  EXPECT_EQ(good, 2);
  EXPECT_EQ(store().counters().slot_bytes, store().find(id)->bytes);
  EXPECT_EQ(store().counters().reserved_bytes, 0u);
  EXPECT_EQ(fixture.slot_files().size(), 2u);
}

// The second finding condemned the state, and the good copy went with it.
TEST_F(Tiers, TwoWhoFindTheSameFileInRamBadKeepItsCopy) {
  const CheckpointId id = save(1);
  ASSERT_TRUE(copy_all());
  const std::string path = scratch.slots() + "/" + name_of(id);
  write_file(path, std::string(fs::file_size(path), 'x'));
  std::latch deleting(1), second_may_read(1), may_delete(1);
  std::atomic<int> opens{0}, removals{0};
  files.before = [&](int, const char* call) -> std::optional<Error> {
    if (std::string_view(call) == "open" && opens++ == 1) second_may_read.wait();
    if (std::string_view(call) == "remove") {
      if (removals++ == 0) deleting.count_down();
      may_delete.wait();
    }
    return std::nullopt;
  };
  const auto use = store().use(id);
  boost::asio::io_context io;
  int good = 0;
  for (int i = 0; i < 2; ++i) {
    boost::asio::co_spawn(io, store().verify_before_restore(id),
                          [&](std::exception_ptr, Result<VerifyOutcome> verified) { good += verified.has_value(); });
  }
  while (!deleting.try_wait()) io.poll();  // one has found it bad
  second_may_read.count_down();
  io.run_one();  // now the other
  may_delete.count_down();
  io.run();
  EXPECT_EQ(good, 2);
  ASSERT_NE(store().find(id), nullptr);
  EXPECT_TRUE(store().find(id)->on_disk);
  EXPECT_EQ(read_file(path), read_file(disk() + "/" + name_of(id)));
  EXPECT_EQ(store().counters().dropped_bad, 1u);
  EXPECT_EQ(store().counters().slot_bytes, store().find(id)->bytes);
  EXPECT_EQ(store().counters().condemned_bytes, 0u);
}

// The trouble that one of them had condemned the state.
TEST_F(Tiers, WhoFailsToBringUpWhatAnotherHasBroughtUpKeepsIt) {
  const CheckpointId id = save(1);
  ASSERT_TRUE(copy_all());
  reboot();
  std::latch both(2), one_is_up(1);
  std::atomic<int> creating{0};
  files.before = [&](int, const char* call) -> std::optional<Error> {
    static thread_local bool arrived;
    if (std::string_view(call) != "create" || std::exchange(arrived, true)) return std::nullopt;
    const bool second = creating++ == 1;
    both.arrive_and_wait();
    if (!second) return std::nullopt;
    one_is_up.wait();
    return disk_error(ErrorCode::not_found, call);
  };
  const auto use = store().use(id);
  boost::asio::io_context io;
  int good = 0;
  for (int i = 0; i < 2; ++i) {
    boost::asio::co_spawn(io, store().verify_before_restore(id),
                          [&](std::exception_ptr, Result<VerifyOutcome> verified) { good += verified.has_value(); });
  }
  while (store().counters().brought_up == 0) io.run_one();
  one_is_up.count_down();
  io.run();
  EXPECT_EQ(good, 2);
  ASSERT_NE(store().find(id), nullptr);
  EXPECT_TRUE(store().find(id)->in_slots);
  EXPECT_TRUE(store().find(id)->on_disk);
  EXPECT_EQ(store().counters().reserved_bytes, 0u);
  EXPECT_EQ(fixture.slot_files().size(), 2u);
}

// What was not found was taken for the copy, and the state was forgotten.
TEST_F(Tiers, ARamThatIsClearedWhileAStateComesUpLosesNothing) {
  const CheckpointId id = save(1);
  ASSERT_TRUE(copy_all());
  reboot();
  files.before = [&](int, const char* call) -> std::optional<Error> {
    if (std::string_view(call) != "rename") return std::nullopt;
    clear_ram();
    return std::nullopt;
  };
  EXPECT_EQ(verify(id).error().code, ErrorCode::io);
  files.before = nullptr;
  ASSERT_NE(store().find(id), nullptr);
  EXPECT_EQ(disk_files().size(), 2u);
  const auto verified = verify(id);
  ASSERT_TRUE(verified) << to_string(verified.error());
  expect_same_copies(id);
}

TEST_F(Tiers, ACopyInRamThatIsChangedWhileItIsMadeLosesNothing) {
  const CheckpointId id = save(1);
  ASSERT_TRUE(copy_all());
  reboot();
  const std::string path = scratch.slots() + "/" + name_of(id);
  files.after = [&](int, const char* call) {
    if (std::string_view(call) == "rename" && fs::exists(path)) write_file(path, "somebody else's");
  };
  EXPECT_EQ(verify(id).error().code, ErrorCode::io);
  files.after = nullptr;
  ASSERT_NE(store().find(id), nullptr);
  EXPECT_EQ(disk_files().size(), 2u);
  EXPECT_TRUE(verify(id));
}

// With its lock file gone it passed for a directory that is away, and the copies on disk were never tried.
TEST_F(Tiers, ARamThatWasClearedOrRemovedUnderAStoreIsFilledFromTheDisk) {
  const CheckpointId id = save(1);
  ASSERT_TRUE(copy_all());
  const auto bring_back = [&] {
    const auto verified = verify(id);
    EXPECT_TRUE(verified) << to_string(verified.error());
    ASSERT_NE(store().find(id), nullptr);
    expect_same_copies(id);
  };
  clear_ram();
  bring_back();
  fs::remove_all(scratch.slots());
  bring_back();
  fs::remove_all(scratch.slots());
  const CheckpointId saved = save(2);
  EXPECT_EQ(fixture.slot_files().size(), 2u);
  EXPECT_EQ(store().counters().brought_up, 2u);
  ASSERT_TRUE(fixture.open());
  EXPECT_NE(store().find(id), nullptr);
  EXPECT_NE(store().find(saved), nullptr);
}

// Made anew without its lock file, it passed for a directory that is away: what was lost with it was listed, and asked for, until a restart.
TEST_F(Tiers, WhatWasLostWithTheRamIsForgottenOnceItIsMadeAnew) {
  const CheckpointId lost = save(1);
  fs::remove_all(scratch.slots());
  const CheckpointId saved = save(2);
  EXPECT_EQ(verify(lost).error().code, ErrorCode::not_found);
  EXPECT_EQ(store().find(lost), nullptr);
  ASSERT_TRUE(copy_all());
  EXPECT_FALSE(store().copies_wait());
  EXPECT_TRUE(store().find(saved)->on_disk);
  EXPECT_EQ(store().counters().slot_bytes, store().find(saved)->bytes);
  ASSERT_TRUE(fixture.open());
  EXPECT_NE(store().find(saved), nullptr);
}

TEST_F(Tiers, AFileInRamThatCannotBeReadIsReplacedByItsCopy) {
  const CheckpointId id = save(1);
  ASSERT_TRUE(copy_all());
  fs::last_write_time(scratch.slots() + "/" + name_of(id), fs::file_time_type::clock::now() + std::chrono::hours(1));
  bool failed = false;
  files.before = [&](int, const char* call) -> std::optional<Error> {
    if (std::string_view(call) != "open" || std::exchange(failed, true)) return std::nullopt;
    return disk_error(ErrorCode::io, call);
  };
  const auto use = store().use(id);
  const auto verified = fixture.await(store().verify_before_restore(id));
  ASSERT_TRUE(verified) << to_string(verified.error());
  EXPECT_EQ(store().counters().brought_up, 1u);
  EXPECT_EQ(store().counters().disk_errors, 1u);
  EXPECT_EQ(store().counters().condemned_bytes, 0u);
}

// It paused the copies of all others.
TEST_F(Tiers, AStateThatIsGoneFromRamHoldsUpNoCopies) {
  int said = 0;
  store().on_copying([&](const Error*) { ++said; });
  const CheckpointId gone = save(1);
  clear_ram();
  const CheckpointId other = save(2);
  fixture.now_ms += 1000;
  store().mark_used(gone);  // so that it comes first
  EXPECT_EQ(copy_all().error().code, ErrorCode::not_found);
  EXPECT_TRUE(store().find(other)->on_disk);
  EXPECT_EQ(store().find(gone), nullptr) << "somebody has emptied the directory: it does not come back";
  EXPECT_EQ(said, 0);
}

}  // namespace
}  // namespace cairn::test

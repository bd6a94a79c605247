// The store killed at every call it makes to the file system, at random instants, and with calls that fail: afterwards no
// entry is without its file, no file without its entry, and nothing that was committed is lost.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <set>
#include <thread>

#include "checkpoint_support.hpp"

namespace cairn::test {
namespace {

constexpr std::uint64_t budget = 30000;

// What the store said of its checkpoints, in a file that outlives it.
class Journal {
 public:
  explicit Journal(const std::string& path) : file_(::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600)) {}
  ~Journal() { ::close(file_); }
  Journal(const Journal&) = delete;
  Journal& operator=(const Journal&) = delete;
  void note(char what, CheckpointId id) {
    const std::string line = what + std::to_string(static_cast<std::int64_t>(id)) + "\n";
    (void)!::write(file_, line.data(), line.size());
  }

 private:
  int file_;
};

// Some of everything that the store does.
void work(StoreFixture& fixture, const std::string& journal_path, std::uint64_t random_seed, int steps) {
  const auto journal = std::make_shared<Journal>(journal_path);
  std::mt19937_64 random(random_seed);
  // Written before the store acts: what may be gone from now on. It goes on being written after this function.
  fixture.store->on_removed([journal](const CheckpointRecord& record, RemovalReason reason) {
    journal->note(reason == RemovalReason::bad_file ? '!' : '-', record.id);
  });
  std::vector<CheckpointId> ids;
  fixture.store->for_each([&](const CheckpointRecord& record) { ids.push_back(record.id); });
  for (int step = 0; step < steps; ++step) {
    fixture.now_ms += 1000;
    const auto choice = random() % 10;
    if (choice < 5 || ids.empty()) {
      std::vector<std::string> sides;
      if (random() % 2 == 0) sides = {".ckpt"};
      const auto committed = fixture.save(tokens_of_length(20, static_cast<Token>(random() % 1000)), 2000 + random() % 8000,
                                          1, sides);
      if (committed) {
        journal->note('+', committed->id);
        ids.push_back(committed->id);
      }
      continue;
    }
    const CheckpointId id = ids[random() % ids.size()];
    if (choice == 5) (void)fixture.await(fixture.store->erase(id));
    if (choice == 6) (void)fixture.await(fixture.store->verify_before_restore(id));
    if (choice == 7) (void)fixture.await(fixture.store->put_setting("rate", std::to_string(step)));
    if (choice == 8) fixture.store->mark_used(id);
    if (choice == 9) {
      auto reservation = fixture.await(fixture.store->reserve(1000));
      if (reservation) write_file(fixture.options.slot_dir + "/" + reservation->temporary_name(), "half a save");
    }
  }
}

// Nobody has touched the files: one that is dropped as a bad one is lost. `say_not_found`: unless it was told that they are not there.
enum class Calls { fail, say_not_found };

// Committed according to the journal and not removed since.
std::set<std::int64_t> journalled(const std::string& path, Calls calls = Calls::fail) {
  std::set<std::int64_t> ids;
  std::istringstream in(read_file(path));
  for (std::string line; std::getline(in, line);) {
    const std::int64_t id = std::strtoll(line.c_str() + 1, nullptr, 10);
    if (line.front() == '+') ids.insert(id);
    if (line.front() == '-' || (line.front() == '!' && calls == Calls::say_not_found)) ids.erase(id);
  }
  return ids;
}

// Opens the store as a new process would and checks all that must hold.
void check(const ScratchDirectory& scratch, const std::string& journal_path, const std::string& when, Calls calls = Calls::fail) {
  SCOPED_TRACE(when);
  PosixFileLayer files;
  StoreFixture fixture(scratch, files, budget);
  const auto opened = fixture.open();
  ASSERT_TRUE(opened) << to_string(opened.error());
  std::set<std::string> expected;
  std::set<std::int64_t> present;
  std::vector<CheckpointId> ids;
  fixture.store->for_each([&](const CheckpointRecord& record) {
    for (const FileStamp& file : record.files) expected.insert(record.file_name + file.suffix);
    present.insert(static_cast<std::int64_t>(record.id));
    ids.push_back(record.id);
  });
  const auto there = fixture.slot_files();
  EXPECT_EQ(std::set<std::string>(there.begin(), there.end()), expected);
  EXPECT_LE(fixture.store->counters().bytes, budget);
  for (const std::int64_t id : journalled(journal_path, calls)) EXPECT_TRUE(present.contains(id)) << "lost " << id;
  for (const CheckpointId id : ids) {
    const auto verified = fixture.await(fixture.store->verify_before_restore(id));
    EXPECT_TRUE(verified) << to_string(verified.error());
  }
  std::size_t with_tokens = 0;
  const auto visitor = [&](const CheckpointRecord& record, TokenSpan tokens) { with_tokens += tokens.size() == record.token_count; };
  EXPECT_TRUE(fixture.await(fixture.store->load_tokens(visitor)));
  EXPECT_EQ(with_tokens, present.size());
}

constexpr int crash_status = 77;

// Runs `body` in a child; true when it was killed or left by a crash rather than at its end.
bool crashed_in_child(const std::function<void()>& body, std::optional<std::chrono::microseconds> kill_after = {}) {
  const pid_t child = ::fork();
  if (child == 0) {
    body();
    ::_exit(0);
  }
  if (kill_after) {
    std::this_thread::sleep_for(*kill_after);
    ::kill(child, SIGKILL);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  const bool clean = WIFEXITED(status) && WEXITSTATUS(status) == 0;
  const bool planned = WIFSIGNALED(status) || (WIFEXITED(status) && WEXITSTATUS(status) == crash_status);
  EXPECT_TRUE(clean || planned) << status;
  return !clean;
}

TEST(Crash, AtEveryCall) {
  const std::uint64_t base = seed();
  // Each is a process of its own: dear under sanitizers, where CAIRN_QUICK takes every third call.
  const int step = std::getenv("CAIRN_QUICK") != nullptr ? 3 : 1;
  int crashes = 0;
  // `after`: the call was done, but the process did not live to hear of it.
  for (const bool after : {false, true}) {
    bool crashed = true;
    for (int number = 1 + static_cast<int>(base % static_cast<std::uint64_t>(step)); crashed; number += step) {
      const ScratchDirectory scratch;
      const std::string journal = scratch.path() + "/journal";
      crashed = crashed_in_child([&] {
        FaultyLayer files;
        const auto die = [&](int call, const char*) {
          if (call == number) ::_exit(crash_status);
          return std::optional<Error>{};
        };
        if (after) {
          files.after = die;
        } else {
          files.before = die;
        }
        StoreFixture fixture(scratch, files, budget);
        if (!fixture.open()) ::_exit(1);
        work(fixture, journal, base, 12);
        if (!fixture.open()) ::_exit(1);
        work(fixture, journal, base + 1, 6);
      });
      crashes += crashed;
      check(scratch, journal, "call " + std::to_string(number) + (after ? " after" : " before"));
      if (HasFatalFailure() || ::testing::Test::HasNonfatalFailure()) return;
    }
  }
  std::cout << crashes << " crashes\n";
  EXPECT_GT(crashes, 100 / step);
}

// Its states were taken for those of an index whose disk is late, and lay beside the budget for three starts more.
TEST(Crash, AtEveryCallOfAStartThatSetsTheIndexAside) {
  int crashes = 0;
  bool crashed = true;
  for (int number = 1; crashed; ++number) {
    SCOPED_TRACE(number);
    const ScratchDirectory scratch;
    PosixFileLayer real;
    {
      StoreFixture fixture(scratch, real, budget);
      ASSERT_TRUE(fixture.open());
      for (Token salt = 0; salt < 3; ++salt) ASSERT_TRUE(fixture.save(tokens_of_length(20, salt), 2000));
    }
    write_file(scratch.state() + "/index.sqlite", std::string(10000, 'x'));
    crashed = crashed_in_child([&] {
      FaultyLayer files;
      files.before = [&](int call, const char*) {
        if (call == number) ::_exit(crash_status);
        return std::optional<Error>{};
      };
      StoreFixture fixture(scratch, files, budget);
      if (!fixture.open()) ::_exit(1);
    });
    crashes += crashed;
    StoreFixture fixture(scratch, real, budget);
    ASSERT_TRUE(fixture.open());
    EXPECT_EQ(fixture.store->strange_states(), "");
    EXPECT_TRUE(fixture.slot_files().empty());
    if (::testing::Test::HasFailure()) return;
  }
  EXPECT_GT(crashes, 10);
}

TEST(Crash, KilledAtRandomInstants) {
  std::mt19937_64 random(seed());
  const ScratchDirectory scratch;  // the same one all along: a crash finds what the last one left
  const std::string journal = scratch.path() + "/journal";
  std::int64_t saved = 0;
  for (int round = 0; round < 150 || saved < 150; ++round) {
    ASSERT_LT(round, 1500) << "hardly anything is ever saved";
    const std::uint64_t child_seed = random();
    // A machine so slow that hardly anything comes to be saved gets longer.
    const auto delay = std::chrono::microseconds(random() % (60'000 * (1 + static_cast<unsigned>(round) / 150)));
    (void)crashed_in_child(
        [&] {
          PosixFileLayer files;
          StoreFixture fixture(scratch, files, budget);
          if (!fixture.open()) ::_exit(1);
          work(fixture, journal, child_seed, 1000);
        },
        delay);
    check(scratch, journal, "round " + std::to_string(round));
    if (::testing::Test::HasFailure()) return;
    const std::string noted = read_file(journal);
    saved = std::count(noted.begin(), noted.end(), '+');
  }
  std::cout << saved << " saved\n";
}

TEST(Faults, EveryCallFailingOnce) {
  const std::uint64_t base = seed();
  int failures = 0;
  for (const ErrorCode code : {ErrorCode::io, ErrorCode::no_space, ErrorCode::not_found}) {
    bool failed = true;
    for (int number = 1; failed; ++number) {
      const ScratchDirectory scratch;
      const std::string journal = scratch.path() + "/journal";
      {
        FaultyLayer files;
        StoreFixture fixture(scratch, files, budget);
        failed = false;
        files.before = [&](int call, const char* name) -> std::optional<Error> {
          if (call != number) return std::nullopt;
          failed = true;
          return disk_error(code, std::string("made to fail: ") + name);
        };
        auto opened = fixture.open();
        if (!opened) opened = fixture.open();  // once failed, the second time it must succeed
        ASSERT_TRUE(opened) << to_string(opened.error());
        work(fixture, journal, base, 15);
        files.before = nullptr;
        // The store is usable, and holds to its budget.
        EXPECT_TRUE(fixture.save(tokens_of_length(10), 1000));
        EXPECT_TRUE(fixture.await(fixture.store->flush()));
        EXPECT_LE(fixture.store->counters().bytes, budget);
        EXPECT_EQ(fixture.store->counters().reserved_bytes, 0u);
        EXPECT_EQ(fixture.store->counters().condemned_bytes, 0u);
      }
      check(scratch, journal, "call " + std::to_string(number) + " fails with " + std::string(to_string(code)),
            code == ErrorCode::not_found ? Calls::say_not_found : Calls::fail);
      if (::testing::Test::HasFailure()) return;
      failures += failed;
    }
  }
  EXPECT_GT(failures, 150);
}

TEST(Faults, ADiskThatFailsForAWhile) {
  const ScratchDirectory scratch;
  const std::string journal = scratch.path() + "/journal";
  {
    FaultyLayer files;
    StoreFixture fixture(scratch, files, budget);
    ASSERT_TRUE(fixture.open());
    work(fixture, journal, seed(), 30);
    files.before = [](int, const char* name) -> std::optional<Error> {
      return disk_error(ErrorCode::io, std::string("gone: ") + name);
    };
    work(fixture, journal, seed() + 1, 30);
    EXPECT_FALSE(fixture.save(tokens_of_length(10), 1000));
    EXPECT_GT(fixture.store->counters().disk_errors, 0u);
    files.before = nullptr;
    ASSERT_TRUE(fixture.await(fixture.store->flush()));
    EXPECT_TRUE(fixture.save(tokens_of_length(10), 1000));
    EXPECT_EQ(fixture.store->counters().condemned_bytes, 0u);
  }
  check(scratch, journal, "afterwards");
}

}  // namespace
}  // namespace cairn::test

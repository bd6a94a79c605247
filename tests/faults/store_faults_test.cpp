// The store on a disk that loses power at every call, fails every call, and runs full; index writes included. Afterwards no
// entry is without its file, no file without its entry, nothing that was committed is lost and nothing wrong is found good.
#include <gtest/gtest.h>

#include <algorithm>
#include <cerrno>
#include <iostream>
#include <set>

#include "simulated_disk.hpp"
#include "unit/checkpoint_support.hpp"

namespace cairn::test {
namespace {

constexpr std::uint64_t budget = 30000;
constexpr std::uint64_t ram_budget = 16000;

// What must be there: id to tokens of all that was committed and not removed since.
using Journal = std::map<CheckpointId, Tokens>;

class Machine {
 public:
  explicit Machine(bool with_tiers = false) : tiers(with_tiers) { use_for_sqlite(&disk); }
  ~Machine() { use_for_sqlite(nullptr); }
  Machine(const Machine&) = delete;
  Machine& operator=(const Machine&) = delete;

  SimulatedDisk disk;
  SimulatedFileLayer files{disk};
  const bool tiers;
  Journal journal;
  Journal copied;  // with tiers: what must be there when the slot directory is emptied

  std::unique_ptr<StoreFixture> start() {
    auto fixture = std::make_unique<StoreFixture>(scratch_, files, budget);
    if (tiers) {
      fixture->options.disk_dir = scratch_.path() + "/disk";
      fixture->options.ram_budget_bytes = ram_budget;
    }
    fixture->write = [this](const std::string& path, const std::string& data) {
      const std::lock_guard hold(disk.mutex);
      SimulatedDisk::File file;
      if (disk.open(path, true, file) == 0) disk.write(*file, 0, data);  // on a full disk: as much as fits
    };
    return fixture;
  }

  // Some of everything that the store does.
  void work(StoreFixture& fixture, std::mt19937_64& random, int steps) {
    fixture.store->on_removed([this](const CheckpointRecord& record, RemovalReason reason) {
      if (reason == RemovalReason::bad_file) return;  // nobody has touched the files: it is lost
      journal.erase(record.id);
      copied.erase(record.id);
    });
    std::vector<CheckpointId> ids;
    fixture.store->for_each([&](const CheckpointRecord& record) { ids.push_back(record.id); });
    for (int step = 0; step < steps; ++step) {
      fixture.now_ms += 1000;
      if (tiers && random() % 3 == 0) {
        (void)fixture.await(fixture.store->copy_down([] { return false; }));
        note_copied(*fixture.store);
      }
      const auto choice = random() % 10;
      if (choice < 5 || ids.empty()) {
        const Tokens tokens = tokens_of_length(20, static_cast<Token>(random() % 1000));
        std::vector<std::string> sides;
        if (random() % 2 == 0) sides = {".ckpt"};
        const auto committed = fixture.save(tokens, 2000 + random() % 8000, 1, sides);
        if (!committed) continue;
        journal[committed->id] = tokens;
        if (tiers && !ids.empty() && random() % 3 == 0) {
          // As if it went on from that one.
          (void)fixture.await(fixture.store->supersede(ids[random() % ids.size()], committed->id));
        }
        ids.push_back(committed->id);
        continue;
      }
      const CheckpointId id = ids[random() % ids.size()];
      if (choice == 5) (void)fixture.await(fixture.store->erase(id));
      if (choice == 6) {
        const auto use = fixture.store->use(id);
        (void)fixture.await(fixture.store->verify_before_restore(id));
      }
      if (choice == 7) (void)fixture.await(fixture.store->put_setting("rate", std::to_string(step)));
      if (choice == 8) fixture.store->mark_used(id);
      if (choice == 9) {
        auto reservation = fixture.await(fixture.store->reserve(1000));
        if (reservation) fixture.write(fixture.options.slot_dir + "/" + reservation->temporary_name(), "half a save");
      }
    }
  }

  void note_copied(const CheckpointStore& store) {
    store.for_each([this](const CheckpointRecord& record) {
      if (record.on_disk && journal.contains(record.id)) copied[record.id] = journal[record.id];
    });
  }

  // A reboot: what lies in RAM is gone.
  void empty_slots() {
    const std::string slots = scratch_.slots();
    for (const std::string& name : disk.names_in(slots)) disk.remove(slots + "/" + name);
    disk.sync_directory(slots);
    journal = copied;
  }

  // As the next process finds it.
  void check(const std::string& when) {
    SCOPED_TRACE(when);
    disk.fault = nullptr;
    const auto fixture = start();
    const auto opened = fixture->open();
    ASSERT_TRUE(opened) << to_string(opened.error());
    EXPECT_EQ(fixture->store->index_damage(), "");
    std::set<std::string> expected{"cairn.lock"}, expected_on_disk{"cairn.lock"};
    std::vector<CheckpointId> ids;
    fixture->store->for_each([&](const CheckpointRecord& record) {
      for (const FileStamp& file : record.files) {
        if (record.in_slots) expected.insert(record.file_name + file.suffix);
        if (record.on_disk) expected_on_disk.insert(record.file_name + file.suffix);
      }
      ids.push_back(record.id);
    });
    const std::vector<std::string> there = disk.names_in(fixture->options.slot_dir);
    EXPECT_EQ(std::set<std::string>(there.begin(), there.end()), expected);
    EXPECT_LE(fixture->store->counters().slot_bytes, tiers ? ram_budget : budget);
    if (tiers) {
      const std::vector<std::string> below = disk.names_in(fixture->options.disk_dir);
      EXPECT_EQ(std::set<std::string>(below.begin(), below.end()), expected_on_disk);
      EXPECT_LE(fixture->store->counters().disk_bytes, budget);
    }
    Journal present;
    const auto visitor = [&](const CheckpointRecord& record, TokenSpan tokens) {
      present[record.id] = Tokens(tokens.begin(), tokens.end());
    };
    EXPECT_TRUE(fixture->await(fixture->store->load_tokens(visitor)));
    EXPECT_EQ(present.size(), ids.size());
    for (const auto& [id, tokens] : journal) {
      EXPECT_TRUE(present.contains(id)) << "lost " << static_cast<std::int64_t>(id);
      EXPECT_EQ(present[id], tokens);
    }
    for (const CheckpointId id : ids) {
      const auto use = fixture->store->use(id);
      if (tiers && !use) continue;  // what was brought up before it has pushed it out
      const auto verified = fixture->await(fixture->store->verify_before_restore(id));
      EXPECT_TRUE(verified) << to_string(verified.error());
    }
  }

 private:
  ScratchDirectory scratch_;  // its names only: all files lie on the simulated disk
};

std::string_view name_of(SimulatedDisk::Loss loss) {
  switch (loss) {
    case SimulatedDisk::Loss::everything: return "all that was not synced is lost";
    case SimulatedDisk::Loss::nothing: return "nothing is lost";
    case SimulatedDisk::Loss::some: return "some is lost and torn";
  }
  return "?";
}

class PowerCut : public ::testing::TestWithParam<bool> {};
class FailingCalls : public ::testing::TestWithParam<bool> {};
class FullDisk : public ::testing::TestWithParam<bool> {};
const auto tiers_or_not = ::testing::Bool();
std::string name_of_tiers(const ::testing::TestParamInfo<bool>& tiers) { return tiers.param ? "TwoTiers" : "OneTier"; }
INSTANTIATE_TEST_SUITE_P(Store, PowerCut, tiers_or_not, name_of_tiers);
INSTANTIATE_TEST_SUITE_P(Store, FailingCalls, tiers_or_not, name_of_tiers);
INSTANTIATE_TEST_SUITE_P(Store, FullDisk, tiers_or_not, name_of_tiers);

TEST_P(PowerCut, AtEveryCall) {
  const std::uint64_t base = seed();
  int cuts = 0;
  for (const auto loss : {SimulatedDisk::Loss::everything, SimulatedDisk::Loss::nothing, SimulatedDisk::Loss::some}) {
    bool cut = true;
    for (int number = 1; cut; ++number) {
      Machine machine(GetParam());
      std::mt19937_64 random(base);
      cut = false;
      machine.disk.fault = [&](int call, std::string_view) -> std::optional<int> {
        if (call == number) {
          cut = true;
          machine.disk.die();
        }
        return std::nullopt;
      };
      for (const int steps : {14, 6}) {
        const auto fixture = machine.start();
        if (fixture->open()) machine.work(*fixture, random, steps);
      }
      std::mt19937_64 chance(base + static_cast<std::uint64_t>(number));
      machine.disk.power_cut(loss, chance);
      if (machine.tiers && number % 2 == 0) machine.empty_slots();
      cuts += cut;
      machine.check("call " + std::to_string(number) + ", " + std::string(name_of(loss)));
      if (::testing::Test::HasFailure()) return;
    }
  }
  std::cout << cuts << " power cuts\n";
  EXPECT_GT(cuts, 500);
}

TEST(RebuiltIndex, SurvivesAPowerCutAtEveryCall) {
  const std::uint64_t base = seed();
  int cuts = 0, rebuilt = 0;
  for (const auto loss : {SimulatedDisk::Loss::everything, SimulatedDisk::Loss::nothing, SimulatedDisk::Loss::some}) {
    bool cut = true;
    for (int number = 1; cut; ++number) {
      Machine machine;
      const auto save = [&](StoreFixture& fixture, Token salt) {
        const Tokens tokens = tokens_of_length(20, salt);
        const auto saved = fixture.save(tokens, 2000);
        if (saved) machine.journal[saved->id] = tokens;
      };
      std::string index;
      {
        const auto fixture = machine.start();
        ASSERT_TRUE(fixture->open());
        index = fixture->options.state_dir + "/index.sqlite";
        for (Token salt = 1; salt <= 3; ++salt) save(*fixture, salt);
        ASSERT_EQ(machine.journal.size(), 3u);
      }
      const SimulatedDisk::File file = machine.disk.find(index);
      damage_index(index, UnreadPage::file_names, file->data);
      file->durable = file->data;
      file->unsynced.clear();
      const int before = machine.disk.calls();
      cut = false;
      machine.disk.fault = [&](int call, std::string_view) -> std::optional<int> {
        if (call == before + number) {
          cut = true;
          machine.disk.die();
        }
        return std::nullopt;
      };
      {
        const auto fixture = machine.start();
        if (fixture->open()) {
          fixture->store->on_index_rebuilt([&](const std::string&) { ++rebuilt; });
          save(*fixture, 4);
          (void)fixture->await(fixture->store->flush());
        }
      }
      std::mt19937_64 chance(base + static_cast<std::uint64_t>(number));
      machine.disk.power_cut(loss, chance);
      cuts += cut;
      machine.check("call " + std::to_string(number) + ", " + std::string(name_of(loss)));
      if (::testing::Test::HasFailure()) return;
    }
  }
  std::cout << cuts << " power cuts, " << rebuilt << " times built anew\n";
  EXPECT_GT(cuts, 100);
  EXPECT_GT(rebuilt, 3);
}

// One call fails, or that one and all for a while after it; the store must be usable when that is over.
TEST_P(FailingCalls, EveryOneOfThem) {
  const std::uint64_t base = seed();
  int failures = 0;
  for (const int code : {EIO, ENOSPC}) {
    for (const int lasting : {1, 40}) {
      bool failed = true;
      for (int number = 1; failed; ++number) {
        Machine machine(GetParam());
        {
          std::mt19937_64 random(base);
          failed = false;
          machine.disk.fault = [&](int call, std::string_view) -> std::optional<int> {
            if (call < number || call >= number + lasting) return std::nullopt;
            failed = true;
            return code;
          };
          const auto fixture = machine.start();
          bool opened = false;
          for (int attempt = 0; attempt < lasting + 2 && !opened; ++attempt) opened = fixture->open().has_value();
          ASSERT_TRUE(opened) << "call " << number;
          machine.work(*fixture, random, 12);
          machine.disk.fault = nullptr;
          const Tokens tokens = tokens_of_length(10);
          const auto saved = fixture->save(tokens, 1000);
          ASSERT_TRUE(saved) << "call " << number << ": " << to_string(saved.error());
          machine.journal[saved->id] = tokens;
          EXPECT_TRUE(fixture->await(fixture->store->flush()));
          EXPECT_FALSE(fixture->store->saving_trouble());
          if (machine.tiers) {
            fixture->now_ms += 600'000;  // a pause of copying is over
            const auto copying = fixture->await(fixture->store->copy_down([] { return false; }));
            EXPECT_TRUE(copying || copying.error().code == ErrorCode::no_space) << to_string(copying.error());  // full of better ones
            EXPECT_LE(fixture->store->counters().disk_bytes, budget);
            EXPECT_EQ(fixture->store->counters().condemned_disk_bytes, 0u);
            EXPECT_EQ(fixture->store->counters().disk_reserved_bytes, 0u);
            machine.note_copied(*fixture->store);
            EXPECT_FALSE(machine.copied.empty());
          }
          EXPECT_LE(fixture->store->counters().slot_bytes, machine.tiers ? ram_budget : budget);
          EXPECT_EQ(fixture->store->counters().reserved_bytes, 0u);
          EXPECT_EQ(fixture->store->counters().condemned_bytes, 0u);
        }
        failures += failed;
        if (machine.tiers && number % 2 == 0) machine.empty_slots();
        machine.check("call " + std::to_string(number) + " fails with " + std::to_string(code) + ", " + std::to_string(lasting) + " of them");
        if (::testing::Test::HasFailure()) return;
      }
    }
  }
  std::cout << failures << " failures\n";
  EXPECT_GT(failures, 200);  // as many as the random work has calls
}

TEST_P(FullDisk, AtEverySize) {
  const std::uint64_t base = seed();
  int refused = 0;
  for (std::uint64_t capacity = 2000; capacity < 150'000; capacity += 1777) {
    Machine machine(GetParam());
    std::mt19937_64 random(base);
    machine.disk.capacity_bytes = capacity;
    {
      const auto fixture = machine.start();
      const bool opened = fixture->open().has_value();
      if (opened) {
        machine.work(*fixture, random, 25);
        refused += fixture->store->saving_trouble().has_value();
      } else {
        ++refused;
      }
      machine.disk.capacity_bytes = 1u << 30;
      if (!opened) {
        ASSERT_TRUE(fixture->open());
      }
      const Tokens tokens = tokens_of_length(10);
      const auto saved = fixture->save(tokens, 1000);
      ASSERT_TRUE(saved) << capacity << ": " << to_string(saved.error());
      machine.journal[saved->id] = tokens;
    }
    machine.check("a disk of " + std::to_string(capacity) + " bytes");
    if (::testing::Test::HasFailure()) return;
  }
  EXPECT_GT(refused, 10);
}

// A disk that says that it synced and did not loses the states whose files it damages, and those alone; what is found afterwards is right.
TEST(LyingDisk, NothingWrongIsFoundGoodAndNothingElseIsLost) {
  std::mt19937_64 random(seed());
  int found_good = 0, found_bad = 0;
  for (int round = 0; round < 200; ++round) {
    Machine machine;
    std::set<std::string> damaged;
    {
      const auto fixture = machine.start();
      ASSERT_TRUE(fixture->open());
      machine.work(*fixture, random, 6);
      for (const std::string& name : machine.disk.names_in(fixture->options.slot_dir)) {
        // Forgets a part of what it holds.
        const SimulatedDisk::File file = machine.disk.find(fixture->options.slot_dir + "/" + name);
        if (file->data.empty() || random() % 3 != 0) continue;
        const std::size_t from = random() % file->data.size();
        std::string& data = file->data;
        for (std::size_t i = from; i < data.size() && i < from + 512; ++i) data[i] = static_cast<char>(~data[i]);
        file->durable = data;
        damaged.insert(name);
      }
    }
    auto fixture = machine.start();
    ASSERT_TRUE(fixture->open());
    std::vector<CheckpointRecord> records;
    fixture->store->for_each([&](const CheckpointRecord& record) { records.push_back(record); });
    for (const CheckpointRecord& record : records) {
      const bool whole = std::ranges::none_of(record.files, [&](const FileStamp& file) { return damaged.contains(record.file_name + file.suffix); });
      EXPECT_EQ(fixture->await(fixture->store->verify_before_restore(record.id)).has_value(), whole) << record.file_name;
      (whole ? found_good : found_bad) += 1;
      if (!whole) {
        machine.journal.erase(record.id);
        continue;
      }
      // Found good: then the memory behind the tokens is what was written.
      const SimulatedDisk::File file = machine.disk.find(fixture->options.slot_dir + "/" + record.file_name);
      const auto header = read_state_header(machine.files, fixture->options.slot_dir + "/" + record.file_name);
      ASSERT_TRUE(header);
      EXPECT_EQ(file->data.find_first_not_of('\x5a', header->state_offset_bytes), std::string::npos);
      const auto tokens = fixture->await(fixture->store->tokens_of(record.id));
      EXPECT_TRUE(tokens && *tokens == header->tokens);
    }
    fixture.reset();
    machine.check("round " + std::to_string(round));
    if (::testing::Test::HasFailure()) return;
  }
  EXPECT_GT(found_good, 100);
  EXPECT_GT(found_bad, 100);
}

}  // namespace
}  // namespace cairn::test

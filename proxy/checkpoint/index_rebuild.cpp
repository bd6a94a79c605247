// What is done about damage that SQLite finds in the index.
#include <sqlite3.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "checkpoint/index.hpp"
#include "checkpoint/index_statement.hpp"

namespace cairn {

// With `id` those of one checkpoint. What breaks a rule of its table is damaged, too.
Result<void> Index::copy_rows(const char* select, const char* insert, Index& to, CheckpointId id) {
  Statement read(*this, select);
  if (id != CheckpointId{}) read.integer(static_cast<std::int64_t>(id));
  for (;;) {
    auto row = read.step();
    if (!row) return row.error();
    if (!*row) return {};
    Statement write(to, insert);
    auto done = write.values_of(read).run();
    if (!done && (sqlite3_errcode(to.database_) & 0xff) != SQLITE_CONSTRAINT) return done;
  }
}

Result<void> Index::copy_all(Index& to) {
  constexpr std::pair<const char*, const char*> tables[] = {
      {"SELECT * FROM namespaces", "INSERT INTO namespaces VALUES(?, ?, ?, ?, ?, ?)"},
      {"SELECT * FROM settings", "INSERT INTO settings VALUES(?, ?)"},
      {"SELECT * FROM checkpoints", "INSERT INTO checkpoints VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"}};
  for (const auto& [select, insert] : tables) {
    if (auto copied = copy_rows(select, insert, to); !copied) return copied;
  }
  std::vector<CheckpointId> ids;
  {
    Statement read(to, "SELECT id FROM checkpoints");
    for (;;) {
      auto row = read.step();
      if (!row) return row.error();
      if (!*row) break;
      ids.push_back(CheckpointId{read.integer_at(0)});
    }
  }
  for (const CheckpointId id : ids) {
    // Those that cannot be read are missed at the next start.
    auto copied = copy_rows("SELECT * FROM checkpoint_tokens WHERE checkpoint_id=?", "INSERT INTO checkpoint_tokens VALUES(?, ?)", to, id);
    if (!copied && copied.error().code != ErrorCode::corrupt) return copied;
  }
  // Numbers are not given twice: a row that waits for its deletion may have had them.
  if (auto done = to.execute("DELETE FROM sqlite_sequence"); !done) return done;
  auto copied = copy_rows("SELECT * FROM sqlite_sequence", "INSERT INTO sqlite_sequence VALUES(?, ?)", to);
  if (copied || copied.error().code != ErrorCode::corrupt) return copied;
  if (auto done = to.execute("DELETE FROM sqlite_sequence"); !done) return done;
  return to.execute("INSERT INTO sqlite_sequence SELECT 'checkpoints', ifnull(max(id), 0) + 1000000 FROM checkpoints");
}

Result<void> Index::rebuild(const std::string& why) {
  auto fresh = open_empty();
  if (!fresh) return fresh.error();
  {
    Transaction transaction(**fresh);
    if (!transaction.begun()) return transaction.begun();
    if (auto copied = copy_all(**fresh); !copied) return copied;
    if (auto done = transaction.commit(); !done) return done;
  }
  // Page by page, whatever the old ones hold.
  sqlite3_backup* const backup = sqlite3_backup_init(database_, "main", (*fresh)->database_, "main");
  if (backup == nullptr) return error("rebuild");
  const int stepped = sqlite3_backup_step(backup, -1);
  const int finished = sqlite3_backup_finish(backup);
  if (finished != SQLITE_OK) return error("rebuild");
  if (stepped != SQLITE_DONE) return disk_error(ErrorCode::io, std::string("index: rebuild: ") + sqlite3_errstr(stepped), true);
  rebuilt_ = why;
  return {};
}

Result<void> Index::check(const std::string& path) {
  sqlite3* database = nullptr;
  const int code = sqlite3_open_v2(path.c_str(), &database, SQLITE_OPEN_READONLY | SQLITE_OPEN_NOMUTEX, nullptr);
  Index index(database);
  if (code != SQLITE_OK) return index.error("open " + path);
  sqlite3_busy_timeout(database, 2000);
  Statement read(index, "PRAGMA integrity_check(1)");
  auto row = read.step();
  if (!row) return row.error();
  std::string found = *row ? read.string_at(0) : "nothing";
  if (found == "ok") return {};
  std::ranges::replace(found, '\n', ' ');
  return disk_error(ErrorCode::corrupt, "index: " + found);
}

}  // namespace cairn

#include "checkpoint/index.hpp"

#include <sqlite3.h>
#include <xxhash.h>

#include <cstring>
#include <chrono>
#include <utility>

#include "checkpoint/index_codec.hpp"
#include "checkpoint/index_statement.hpp"

namespace cairn {
namespace {

// Tokens have a table of their own: SQLite rewrites a whole row, overflow pages too, when one of its columns changes.
constexpr const char* schema = R"(
CREATE TABLE namespaces(
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  identity TEXT NOT NULL, probe BLOB NOT NULL, facts TEXT NOT NULL,
  created_unix_ms INTEGER NOT NULL, last_seen_unix_ms INTEGER NOT NULL) STRICT;
CREATE TABLE checkpoints(
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  namespace_id INTEGER NOT NULL, file_name TEXT NOT NULL UNIQUE,
  token_count INTEGER NOT NULL, token_hash INTEGER NOT NULL,
  bytes INTEGER NOT NULL, checksum BLOB NOT NULL, seal INTEGER NOT NULL,
  files TEXT NOT NULL, resume_positions BLOB NOT NULL, kind TEXT NOT NULL,
  cost_to_recompute_s REAL NOT NULL, uses INTEGER NOT NULL,
  created_unix_ms INTEGER NOT NULL, last_used_unix_ms INTEGER NOT NULL,
  pinned INTEGER NOT NULL, pin_label TEXT NOT NULL) STRICT;
CREATE TABLE checkpoint_tokens(checkpoint_id INTEGER PRIMARY KEY, tokens BLOB NOT NULL) STRICT;
CREATE TABLE settings(key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
)";

Error corrupt(std::string what) { return disk_error(ErrorCode::corrupt, "index: " + std::move(what)); }

// Over all that a restore trusts, so that a flipped bit in the index cannot pass a state of one model for another's.
std::uint64_t seal_of(const CheckpointRecord& record, std::uint64_t token_hash) {
  const std::uint64_t numbers[] = {static_cast<std::uint64_t>(record.namespace_id), record.token_count, token_hash,
                                   record.bytes, record.checksum.low, record.checksum.high};
  return XXH3_64bits_withSeed(record.file_name.data(), record.file_name.size(),
                              XXH3_64bits(numbers, sizeof numbers));
}

}  // namespace

Result<std::unique_ptr<Index>> Index::open(const std::string& path, Missing missing) {
  sqlite3* database = nullptr;
  const int create = missing == Missing::create ? SQLITE_OPEN_CREATE : 0;
  const int code = sqlite3_open_v2(path.c_str(), &database, SQLITE_OPEN_READWRITE | create | SQLITE_OPEN_NOMUTEX, nullptr);
  std::unique_ptr<Index> index(new Index(database));
  if (code != SQLITE_OK) return index->error("open " + path);
  if (auto done = index->prepare_schema(missing); !done) return done.error();
  return index;
}

Result<std::unique_ptr<Index>> Index::open_empty() { return open(":memory:"); }

Index::~Index() {
  for (const auto& [sql, statement] : statements_) sqlite3_finalize(statement);
  sqlite3_close(database_);
}

Result<void> Index::prepare_schema(Missing missing) {
  sqlite3_extended_result_codes(database_, 1);
  sqlite3_busy_timeout(database_, 2000);
  std::int64_t version = 0;
  {
    Statement read(*this, "PRAGMA user_version");
    auto row = read.step();
    if (!row) return row.error();
    if (*row) version = read.integer_at(0);
  }
  if (version > index_format_version) {
    return disk_error(ErrorCode::unsupported, "index: format " + std::to_string(version) + " is newer than " +
                                                  std::to_string(index_format_version) +
                                                  ", which this Cairn knows");
  }
  if (version == 0 && missing == Missing::not_found) return disk_error(ErrorCode::not_found, "index: it has no tables");
  // WAL with FULL: a commit is on disk when it returns, for one fsync of a few KB next to the fsync of a state of tens of
  // megabytes. NORMAL would lose the last commits in a power cut, and the sweep would then delete their files.
  for (const char* pragma : {"PRAGMA journal_mode=WAL", "PRAGMA synchronous=FULL"}) {
    if (auto done = execute(pragma); !done) return done;
  }
  if (version == index_format_version) return {};
  Transaction transaction(*this);
  if (!transaction.begun()) return transaction.begun();
  if (auto done = execute(schema); !done) return done;
  const std::string stamp = "PRAGMA user_version=" + std::to_string(index_format_version);
  if (auto done = execute(stamp.c_str()); !done) return done;
  return transaction.commit();
}

Result<void> Index::execute(const char* sql) {
  if (sqlite3_exec(database_, sql, nullptr, nullptr, nullptr) != SQLITE_OK) return error(sql);
  return {};
}

Error Index::error(const std::string& doing) const {
  const int code = database_ == nullptr ? SQLITE_NOMEM : sqlite3_errcode(database_) & 0xff;
  ErrorCode kind = ErrorCode::io;
  if (code == SQLITE_FULL) kind = ErrorCode::no_space;
  if (code == SQLITE_CORRUPT || code == SQLITE_NOTADB || code == SQLITE_ERROR) kind = ErrorCode::corrupt;
  const std::string said = database_ == nullptr ? "out of memory" : sqlite3_errmsg(database_);
  return disk_error(kind, "index: " + doing.substr(0, 60) + ": " + said, code == SQLITE_BUSY);
}

sqlite3_stmt* Index::prepared(const char* sql) {
  sqlite3_stmt*& statement = statements_[sql];
  if (statement == nullptr) sqlite3_prepare_v3(database_, sql, -1, SQLITE_PREPARE_PERSISTENT, &statement, nullptr);
  return statement;
}

Result<std::vector<NamespaceRecord>> Index::namespaces() {
  Statement read(*this,
                 "SELECT id, identity, probe, facts, created_unix_ms, last_seen_unix_ms FROM namespaces ORDER BY id");
  std::vector<NamespaceRecord> records;
  for (;;) {
    auto row = read.step();
    if (!row) return row.error();
    if (!*row) return records;
    records.push_back({NamespaceId{read.integer_at(0)}, read.string_at(1), read.string_at(2), read.string_at(3),
                       read.integer_at(4), read.integer_at(5)});
  }
}

Result<NamespaceId> Index::add_namespace(const NamespaceRecord& record) {
  return mending([&]() -> Result<NamespaceId> {
    Statement write(*this,
                    "INSERT INTO namespaces(identity, probe, facts, created_unix_ms, last_seen_unix_ms) "
                    "VALUES(?, ?, ?, ?, ?)");
    write.text(record.identity).blob(record.probe).text(record.facts);
    write.integer(record.created_unix_ms).integer(record.last_seen_unix_ms);
    if (auto done = write.run(); !done) return done.error();
    return NamespaceId{sqlite3_last_insert_rowid(database_)};
  });
}

Result<void> Index::update_namespace(const NamespaceRecord& record) {
  return mending([&] {
    Statement write(*this, "UPDATE namespaces SET identity=?, probe=?, facts=?, last_seen_unix_ms=? WHERE id=?");
    write.text(record.identity).blob(record.probe).text(record.facts);
    write.integer(record.last_seen_unix_ms).integer(static_cast<std::int64_t>(record.id));
    return write.run();
  });
}

Result<void> Index::for_each_checkpoint(const CheckpointVisitor& visitor, std::vector<CheckpointId>& unreadable) {
  Statement read(*this,
                 "SELECT id, namespace_id, file_name, token_count, token_hash, bytes, checksum, seal, files, "
                 "resume_positions, kind, cost_to_recompute_s, uses, created_unix_ms, last_used_unix_ms, pinned, pin_label "
                 "FROM checkpoints ORDER BY id");
  for (;;) {
    auto row = read.step();
    if (!row) return row.error();
    if (!*row) return {};
    CheckpointRecord record;
    record.id = CheckpointId{read.integer_at(0)};
    record.namespace_id = NamespaceId{read.integer_at(1)};
    record.file_name = read.string_at(2);
    record.token_count = static_cast<std::uint32_t>(read.integer_at(3));
    record.bytes = static_cast<std::uint64_t>(read.integer_at(5));
    const std::string_view checksum = read.bytes_at(6);
    bool good = checksum.size() == sizeof record.checksum;
    if (good) std::memcpy(&record.checksum, checksum.data(), sizeof record.checksum);
    good = good && seal_of(record, static_cast<std::uint64_t>(read.integer_at(4))) ==
                       static_cast<std::uint64_t>(read.integer_at(7));
    good = good && decode_files(read.bytes_at(8), record.files);
    good = good && decode_positions(read.bytes_at(9), record.token_count, record.resume_positions);
    record.kind = memory_kind_from_string(read.bytes_at(10));
    record.cost_to_recompute_s = read.real_at(11);
    record.uses = static_cast<std::uint64_t>(read.integer_at(12));
    record.created_unix_ms = read.integer_at(13);
    record.last_used_unix_ms = read.integer_at(14);
    record.pinned = read.integer_at(15) != 0;
    record.pin_label = read.string_at(16);
    if (good) {
      visitor(std::move(record));
    } else {
      unreadable.push_back(record.id);
    }
  }
}

Result<CheckpointId> Index::add_checkpoint(const CheckpointRecord& record, TokenSpan tokens) {
  return mending([&] { return insert(record, tokens); });
}

Result<CheckpointId> Index::insert(const CheckpointRecord& record, TokenSpan tokens) {
  Transaction transaction(*this);
  if (!transaction.begun()) return transaction.begun().error();
  const std::uint64_t token_hash = hash_tokens(tokens);
  const std::string files = encode_files(record.files);
  const std::string positions = encode_positions(record.resume_positions);
  const std::string kind{to_string(record.kind)};
  const std::string_view checksum(reinterpret_cast<const char*>(&record.checksum), sizeof record.checksum);
  std::int64_t id = 0;
  {
    Statement write(*this,
                    "INSERT INTO checkpoints(namespace_id, file_name, token_count, token_hash, bytes, checksum, seal, "
                    "files, resume_positions, kind, cost_to_recompute_s, uses, created_unix_ms, last_used_unix_ms, pinned, "
                    "pin_label) VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)");
    write.integer(static_cast<std::int64_t>(record.namespace_id)).text(record.file_name);
    write.integer(record.token_count).integer(static_cast<std::int64_t>(token_hash));
    write.integer(static_cast<std::int64_t>(record.bytes)).blob(checksum);
    write.integer(static_cast<std::int64_t>(seal_of(record, token_hash)));
    write.text(files).blob(positions).text(kind).real(record.cost_to_recompute_s);
    write.integer(static_cast<std::int64_t>(record.uses)).integer(record.created_unix_ms);
    write.integer(record.last_used_unix_ms).integer(record.pinned ? 1 : 0).text(record.pin_label);
    if (auto done = write.run(); !done) return done.error();
    id = sqlite3_last_insert_rowid(database_);
  }
  const std::string blob = encode_tokens(tokens);
  Statement write(*this, "INSERT INTO checkpoint_tokens(checkpoint_id, tokens) VALUES(?, ?)");
  write.integer(id).blob(blob);
  if (auto done = write.run(); !done) return done.error();
  if (auto done = transaction.commit(); !done) return done.error();
  return CheckpointId{id};
}

Result<void> Index::update_checkpoints(const std::vector<CheckpointRecord>& records) {
  if (records.empty()) return {};
  return mending([&] { return update(records); });
}

Result<void> Index::update(const std::vector<CheckpointRecord>& records) {
  Transaction transaction(*this);
  if (!transaction.begun()) return transaction.begun();
  for (const CheckpointRecord& record : records) {
    const std::string files = encode_files(record.files);
    const std::string positions = encode_positions(record.resume_positions);
    const std::string kind{to_string(record.kind)};
    Statement write(*this,
                    "UPDATE checkpoints SET files=?, resume_positions=?, kind=?, cost_to_recompute_s=?, uses=?, "
                    "last_used_unix_ms=?, pinned=?, pin_label=? WHERE id=?");
    write.text(files).blob(positions).text(kind).real(record.cost_to_recompute_s);
    write.integer(static_cast<std::int64_t>(record.uses)).integer(record.last_used_unix_ms);
    write.integer(record.pinned ? 1 : 0).text(record.pin_label).integer(static_cast<std::int64_t>(record.id));
    if (auto done = write.run(); !done) return done;
  }
  return transaction.commit();
}

Result<void> Index::remove_checkpoints(const std::vector<CheckpointId>& ids) {
  if (ids.empty()) return {};
  Result<void> all = mending([&] { return remove(ids, true); });
  if (all || all.error().code != ErrorCode::corrupt) return all;
  // A damaged page: one by one, whatever can be removed.
  Result<void> result;
  for (const CheckpointId& id : ids) {
    Result<void> done = remove({&id, 1}, true);
    if (!done && done.error().code == ErrorCode::corrupt) done = remove({&id, 1}, false);
    if (!done && result) result = done;
  }
  return result;
}

Result<void> Index::remove(std::span<const CheckpointId> ids, bool with_tokens) {
  Transaction transaction(*this);
  if (!transaction.begun()) return transaction.begun();
  for (const CheckpointId id : ids) {
    for (const char* sql : {"DELETE FROM checkpoints WHERE id=?", "DELETE FROM checkpoint_tokens WHERE checkpoint_id=?"}) {
      Statement write(*this, sql);
      write.integer(static_cast<std::int64_t>(id));
      if (auto done = write.run(); !done) return done;
      if (!with_tokens) break;
    }
  }
  return transaction.commit();
}

Result<Tokens> Index::tokens(CheckpointId id) {
  Statement read(*this,
                 "SELECT token_count, token_hash, tokens FROM checkpoints JOIN checkpoint_tokens ON checkpoint_id=id "
                 "WHERE id=?");
  read.integer(static_cast<std::int64_t>(id));
  auto row = read.step();
  if (!row) return row.error();
  if (!*row) {
    return disk_error(ErrorCode::not_found,
                      "index: no tokens of checkpoint " + std::to_string(static_cast<std::int64_t>(id)));
  }
  const std::int64_t count = read.integer_at(0);
  if (count < 0) return corrupt("negative token count");
  return decode_tokens(read.bytes_at(2), static_cast<std::uint64_t>(count),
                       static_cast<std::uint64_t>(read.integer_at(1)));
}

Result<Index::TokenBatch> Index::tokens_after(CheckpointId id, std::size_t enough) {
  Statement read(*this,
                 "SELECT id, token_count, token_hash, tokens FROM checkpoints JOIN checkpoint_tokens ON checkpoint_id=id "
                 "WHERE id>? ORDER BY id");
  read.integer(static_cast<std::int64_t>(id));
  TokenBatch batch;
  batch.tokens.reserve(enough);
  while (batch.tokens.size() + batch.rows.size() < enough) {
    auto row = read.step();
    if (!row) return row.error();
    if (!*row) break;
    const std::int64_t count = read.integer_at(1);
    Result<void> appended = corrupt("negative token count");
    if (count >= 0) {
      appended = append_tokens(read.bytes_at(3), static_cast<std::uint64_t>(count), static_cast<std::uint64_t>(read.integer_at(2)), batch.tokens);
    }
    batch.rows.push_back({CheckpointId{read.integer_at(0)}, static_cast<std::size_t>(count)});
    if (!appended) batch.rows.back().tokens = appended.error();
  }
  return batch;
}

Result<std::map<std::string, std::string>> Index::settings() {
  Statement read(*this, "SELECT key, value FROM settings");
  std::map<std::string, std::string> values;
  for (;;) {
    auto row = read.step();
    if (!row) return row.error();
    if (!*row) return values;
    values.emplace(read.string_at(0), read.string_at(1));
  }
}

Result<void> Index::put_setting(const std::string& key, const std::string& value) {
  return mending([&] {
    Statement write(*this, "INSERT INTO settings(key, value) VALUES(?, ?) ON CONFLICT(key) DO UPDATE SET value=excluded.value");
    write.text(key).text(value);
    return write.run();
  });
}

// Reading does not touch all pages: without this no write would succeed any more, and each start would find the index good.
template <class Write>
auto Index::mending(const Write& write) -> decltype(write()) {
  auto done = write();
  constexpr std::chrono::minutes not_again_for{1};  // it reads all there is
  if (done || done.error().code != ErrorCode::corrupt || beyond_mending_ || std::chrono::steady_clock::now() < mended_from_) return done;
  if (auto rebuilt = rebuild(done.error().context); !rebuilt) {
    beyond_mending_ = rebuilt.error().code == ErrorCode::corrupt;
    mended_from_ = std::chrono::steady_clock::now() + not_again_for;  // a full disk, say
    Error both = done.error();
    both.context += "; it could not be built anew: " + rebuilt.error().context;
    return both;
  }
  done = write();
  beyond_mending_ = !done && done.error().code == ErrorCode::corrupt;
  return done;
}

Result<void> Index::is_in_place() const {
  int moved = 0;
  if (sqlite3_file_control(database_, "main", SQLITE_FCNTL_HAS_MOVED, &moved) != SQLITE_OK || moved == 0) return {};
  return disk_error(ErrorCode::io, std::string(sqlite3_db_filename(database_, "main")) + " is not the file that was opened: restart Cairn");
}

}  // namespace cairn

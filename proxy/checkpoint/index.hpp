// The SQLite database that outlives both processes: namespaces, checkpoints, settings.
// Thread: one at a time (the store's index thread).
// Owner: CheckpointStore.
// Errors: source disk; unsupported (a newer format), corrupt (not a database, damaged), no_space, io. A write that comes upon damage
// first has the database built anew of what can be read.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/result.hpp"
#include "checkpoint/index_codec.hpp"
#include "checkpoint/record.hpp"
#include "prefix/tokens.hpp"

struct sqlite3;
struct sqlite3_stmt;

namespace cairn {

// PRAGMA user_version of what this program writes.
inline constexpr int index_format_version = 1;

class Index {
 public:
  // A newer format is refused and not touched. One without tables, which a start that was broken off left, counts as missing.
  enum class Missing { create, not_found };
  static Result<std::unique_ptr<Index>> open(const std::string& path, Missing missing = Missing::create);
  static Result<std::unique_ptr<Index>> open_empty();  // in memory
  ~Index();
  Index(const Index&) = delete;
  Index& operator=(const Index&) = delete;

  Result<std::vector<NamespaceRecord>> namespaces();
  Result<NamespaceId> add_namespace(const NamespaceRecord& record);  // its id is ignored
  Result<void> update_namespace(const NamespaceRecord& record);

  // Rows that make no sense (unknown kind, broken blob) are named in `unreadable` instead.
  using CheckpointVisitor = std::function<void(CheckpointRecord)>;
  Result<void> for_each_checkpoint(const CheckpointVisitor& visitor, std::vector<CheckpointId>& unreadable);
  Result<CheckpointId> add_checkpoint(const CheckpointRecord& record, TokenSpan tokens);  // its id is ignored
  // Everything that can change after the commit, in one transaction.
  Result<void> update_checkpoints(const std::vector<CheckpointRecord>& records);
  // Where a page of theirs is damaged the tokens of a checkpoint may stay: without it they are never asked for.
  Result<void> remove_checkpoints(const std::vector<CheckpointId>& ids);
  Result<Tokens> tokens(CheckpointId id);  // not_found, corrupt
  // Tokens of many checkpoints, in one piece: of short prompts there may be a million.
  struct TokenBatch {
    struct Row {
      CheckpointId id{};
      Result<std::size_t> tokens;  // how many of `tokens`, in turn; or what is wrong with them
    };
    std::vector<Row> rows;
    Tokens tokens;
  };
  // Those of the checkpoints with the next higher numbers, ascending, until they have `enough` tokens; empty at the end. Tokens
  // that are not what was written are `corrupt` in their row.
  Result<TokenBatch> tokens_after(CheckpointId id, std::size_t enough);

  Result<std::map<std::string, std::string>> settings();
  Result<void> put_setting(const std::string& key, const std::string& value);

  // io when the file was removed or replaced: what is written then is gone with the process.
  Result<void> is_in_place() const;

  // corrupt: what SQLite finds wrong with the file at `path`, also where no reading of ours goes. On any thread.
  static Result<void> check(const std::string& path);
  // All that can be read, in place of what there is: in one transaction, for a crash may happen anywhere. corrupt: not even the tables.
  Result<void> rebuild(const std::string& why);
  // Why that was done since this was last asked; empty: it was not.
  std::string take_rebuilt() { return std::exchange(rebuilt_, {}); }

 private:
  class Statement;
  class Transaction;
  explicit Index(sqlite3* database) : database_(database) {}
  Result<void> prepare_schema(Missing missing);
  template <class Write>
  auto mending(const Write& write) -> decltype(write());
  Result<CheckpointId> insert(const CheckpointRecord& record, TokenSpan tokens);
  Result<void> update(const std::vector<CheckpointRecord>& records);
  Result<void> remove(std::span<const CheckpointId> ids, bool with_tokens);
  Result<void> copy_rows(const char* select, const char* insert, Index& to, CheckpointId id = {});
  Result<void> copy_all(Index& to);
  Result<void> execute(const char* sql);
  Error error(const std::string& doing) const;
  sqlite3_stmt* prepared(const char* sql);

  sqlite3* database_;
  std::map<const char*, sqlite3_stmt*> statements_;  // by the address of their text
  std::string rebuilt_;
  bool beyond_mending_ = false;  // was rebuilt in vain
  std::chrono::steady_clock::time_point mended_from_{};  // it could not be rebuilt: not tried before
};

}  // namespace cairn

// How Index speaks to SQLite: its statements and transactions.
// Thread, errors: as Index.
#pragma once

#include <sqlite3.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "checkpoint/index.hpp"

namespace cairn {

// One use of a prepared statement: bound, stepped, and reset when it goes out of scope.
class Index::Statement {
 public:
  Statement(Index& index, const char* sql) : index_(index), statement_(index.prepared(sql)) {}
  ~Statement() {
    if (statement_ == nullptr) return;
    sqlite3_reset(statement_);
    sqlite3_clear_bindings(statement_);
  }
  Statement(const Statement&) = delete;
  Statement& operator=(const Statement&) = delete;

  // Each takes the next parameter. What is bound must live until the statement is done.
  Statement& integer(std::int64_t value) {
    if (statement_ != nullptr) sqlite3_bind_int64(statement_, ++bound_, value);
    return *this;
  }
  Statement& real(double value) {
    if (statement_ != nullptr) sqlite3_bind_double(statement_, ++bound_, value);
    return *this;
  }
  Statement& text(const std::string& value) {
    if (statement_ != nullptr) sqlite3_bind_text64(statement_, ++bound_, value.data(), value.size(), SQLITE_STATIC, SQLITE_UTF8);
    return *this;
  }
  Statement& blob(std::string_view value) {
    // A null pointer would bind NULL, not an empty blob.
    const void* data = value.empty() ? "" : value.data();
    if (statement_ != nullptr) sqlite3_bind_blob64(statement_, ++bound_, data, value.size(), SQLITE_STATIC);
    return *this;
  }
  Statement& values_of(const Statement& row) {
    for (int column = 0; statement_ != nullptr && column < sqlite3_column_count(row.statement_); ++column) {
      sqlite3_bind_value(statement_, ++bound_, sqlite3_column_value(row.statement_, column));
    }
    return *this;
  }

  // True: a row is there to be read.
  Result<bool> step() {
    if (statement_ == nullptr) return index_.error("prepare");
    const int code = sqlite3_step(statement_);
    if (code == SQLITE_ROW) return true;
    if (code == SQLITE_DONE) return false;
    return index_.error(sqlite3_sql(statement_));
  }
  Result<void> run() {
    auto stepped = step();
    if (!stepped) return stepped.error();
    return {};
  }

  std::int64_t integer_at(int column) const { return sqlite3_column_int64(statement_, column); }
  double real_at(int column) const { return sqlite3_column_double(statement_, column); }
  std::string_view bytes_at(int column) const {
    const void* data = sqlite3_column_blob(statement_, column);
    const int bytes = sqlite3_column_bytes(statement_, column);
    return data == nullptr ? std::string_view{} : std::string_view(static_cast<const char*>(data), static_cast<std::size_t>(bytes));
  }
  std::string string_at(int column) const { return std::string(bytes_at(column)); }

 private:
  Index& index_;
  sqlite3_stmt* statement_;
  int bound_ = 0;
};

// Rolled back unless committed.
class Index::Transaction {
 public:
  explicit Transaction(Index& index) : index_(index), begun_(index.execute("BEGIN IMMEDIATE")) {}
  ~Transaction() {
    if (begun_ && sqlite3_get_autocommit(index_.database_) == 0) (void)index_.execute("ROLLBACK");
  }
  Transaction(const Transaction&) = delete;
  Transaction& operator=(const Transaction&) = delete;
  const Result<void>& begun() const { return begun_; }
  Result<void> commit() { return index_.execute("COMMIT"); }

 private:
  Index& index_;
  Result<void> begun_;
};

}  // namespace cairn

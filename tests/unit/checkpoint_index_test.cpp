#include "checkpoint/index.hpp"

#include <gtest/gtest.h>
#include <sqlite3.h>

#include <algorithm>

#include "checkpoint_support.hpp"

namespace cairn::test {
namespace {

void raw_sql(const std::string& path, const std::string& sql) {
  sqlite3* database = nullptr;
  ASSERT_EQ(sqlite3_open(path.c_str(), &database), SQLITE_OK);
  char* message = nullptr;
  EXPECT_EQ(sqlite3_exec(database, sql.c_str(), nullptr, nullptr, &message), SQLITE_OK) << message;
  sqlite3_close(database);
}

CheckpointRecord a_record(const std::string& name, std::uint32_t token_count) {
  CheckpointRecord record;
  record.namespace_id = NamespaceId{7};
  record.file_name = name;
  record.token_count = token_count;
  record.resume_positions = {96, 5, 300};
  record.kind = CheckpointKind::checkpointed;
  record.bytes = 123456789012;
  record.cost_to_recompute_s = 12.5;
  record.uses = 3;
  record.created_unix_ms = 1;
  record.last_used_unix_ms = 2;
  record.pinned = true;
  record.pin_label = "système";
  record.checksum = {0xfedcba9876543210u, 0x0123456789abcdefu};
  record.files = {{"", 123456789000, 42, 1234567890123456789, 0}, {".ckpt", 12, 43, 17, 0}};
  return record;
}

Result<std::vector<CheckpointRecord>> all_of(Index& index, std::vector<CheckpointId>& unreadable) {
  std::vector<CheckpointRecord> records;
  auto read = index.for_each_checkpoint([&](CheckpointRecord record) { records.push_back(std::move(record)); }, unreadable);
  if (!read) return read.error();
  return records;
}

TEST(TokenBlob, RoundTrips) {
  std::mt19937_64 random(seed());
  for (int round = 0; round < 300; ++round) {
    Tokens tokens(random() % 500);
    for (Token& token : tokens) token = static_cast<Token>(random() >> (random() % 64));
    const std::string blob = encode_tokens(tokens);
    const auto back = decode_tokens(blob, tokens.size(), hash_tokens(tokens));
    ASSERT_TRUE(back);
    EXPECT_EQ(*back, tokens);
    EXPECT_FALSE(decode_tokens(blob, tokens.size() + 1, hash_tokens(tokens)));
    EXPECT_FALSE(decode_tokens(blob + '\0', tokens.size(), hash_tokens(tokens)));
    if (tokens.empty()) continue;
    EXPECT_FALSE(decode_tokens(blob, tokens.size() - 1, hash_tokens(tokens)));
    std::string flipped = blob;
    flipped[random() % flipped.size()] ^= static_cast<char>(1 << (random() % 8));
    EXPECT_EQ(decode_tokens(flipped, tokens.size(), hash_tokens(tokens)).error().code, ErrorCode::corrupt);
  }
}

TEST(TokenBlob, NeverTrustsACount) {
  EXPECT_FALSE(decode_tokens("abc", std::uint64_t{1} << 62, 0));
  EXPECT_FALSE(decode_tokens("\xff\xff\xff\xff\xff\xff\xff", 1, 0));
}

void expect_same(const CheckpointRecord& record, const CheckpointRecord& wanted) {
  EXPECT_EQ(record.id, wanted.id);
  EXPECT_EQ(record.namespace_id, wanted.namespace_id);
  EXPECT_EQ(record.file_name, wanted.file_name);
  EXPECT_EQ(record.token_count, wanted.token_count);
  EXPECT_EQ(record.resume_positions, wanted.resume_positions);
  EXPECT_EQ(record.kind, wanted.kind);
  EXPECT_EQ(record.bytes, wanted.bytes);
  EXPECT_EQ(record.cost_to_recompute_s, wanted.cost_to_recompute_s);
  EXPECT_EQ(record.uses, wanted.uses);
  EXPECT_EQ(record.created_unix_ms, wanted.created_unix_ms);
  EXPECT_EQ(record.last_used_unix_ms, wanted.last_used_unix_ms);
  EXPECT_EQ(record.pinned, wanted.pinned);
  EXPECT_EQ(record.pin_label, wanted.pin_label);
  EXPECT_EQ(record.checksum, wanted.checksum);
  ASSERT_EQ(record.files.size(), wanted.files.size());
  for (std::size_t i = 0; i < wanted.files.size(); ++i) {
    EXPECT_EQ(record.files[i].suffix, wanted.files[i].suffix);
    EXPECT_EQ(record.files[i].bytes, wanted.files[i].bytes);
    EXPECT_EQ(record.files[i].inode, wanted.files[i].inode);
    EXPECT_EQ(record.files[i].mtime_ns, wanted.files[i].mtime_ns);
    EXPECT_EQ(record.files[i].ctime_ns, 0);
  }
}

TEST(Index, KeepsEverythingAcrossOpens) {
  const ScratchDirectory scratch;
  const std::string path = scratch.path() + "/index.sqlite";
  const Tokens tokens = tokens_of_length(400);
  CheckpointId id{};
  NamespaceId model_id{};
  {
    auto index = Index::open(path);
    ASSERT_TRUE(index) << to_string(index.error());
    const NamespaceRecord model{NamespaceId{}, "{\"model\":1}", std::string("\0\1\2", 3), "{}", 11, 12};
    const auto added_model = (*index)->add_namespace(model);
    ASSERT_TRUE(added_model);
    model_id = *added_model;
    auto added = (*index)->add_checkpoint(a_record("one", 400), tokens);
    ASSERT_TRUE(added) << to_string(added.error());
    id = *added;
    ASSERT_TRUE((*index)->put_setting("rate", "1"));
    ASSERT_TRUE((*index)->put_setting("rate", "2"));
    EXPECT_FALSE((*index)->add_checkpoint(a_record("one", 400), tokens));  // a file has one entry
  }
  auto index = Index::open(path);
  ASSERT_TRUE(index);
  std::vector<CheckpointId> unreadable;
  const auto records = all_of(**index, unreadable);
  ASSERT_TRUE(records);
  ASSERT_EQ(records->size(), 1u);
  EXPECT_TRUE(unreadable.empty());
  CheckpointRecord wanted = a_record("one", 400);
  wanted.id = id;
  std::ranges::sort(wanted.resume_positions);
  expect_same(records->front(), wanted);
  EXPECT_EQ(*(*index)->tokens(id), tokens);
  EXPECT_EQ((*index)->settings()->at("rate"), "2");
  const auto namespaces = (*index)->namespaces();
  ASSERT_EQ(namespaces->size(), 1u);
  const NamespaceRecord& model = namespaces->front();
  EXPECT_EQ(model.id, model_id);
  EXPECT_EQ(model.identity, "{\"model\":1}");
  EXPECT_EQ(model.probe, std::string("\0\1\2", 3));
  EXPECT_EQ(model.facts, "{}");
  EXPECT_EQ(model.created_unix_ms, 11);
  EXPECT_EQ(model.last_seen_unix_ms, 12);

  CheckpointRecord changed = wanted;
  changed.uses = 99;
  changed.last_used_unix_ms = 5;
  changed.pinned = false;
  changed.pin_label = "";
  changed.kind = CheckpointKind::exact;
  changed.resume_positions = {};
  changed.cost_to_recompute_s = 0.25;
  changed.files[0].inode = 77;
  ASSERT_TRUE((*index)->update_checkpoints({changed}));
  index = Index::open(path);
  ASSERT_TRUE(index);
  const auto updated = all_of(**index, unreadable);
  ASSERT_TRUE(updated && updated->size() == 1 && unreadable.empty());
  expect_same(updated->front(), changed);
  ASSERT_TRUE((*index)->remove_checkpoints({id}));
  EXPECT_TRUE(all_of(**index, unreadable)->empty());
  EXPECT_EQ((*index)->tokens(id).error().code, ErrorCode::not_found);
  EXPECT_NE(*(*index)->add_checkpoint(a_record("two", 400), tokens), id);  // never used twice
}

TEST(Index, HandsOutTokensInBatches) {
  const ScratchDirectory scratch;
  const std::string path = scratch.path() + "/index.sqlite";
  std::vector<Tokens> written;
  std::vector<CheckpointId> ids;
  auto index = Index::open(path);
  ASSERT_TRUE(index);
  for (const std::size_t length : {3, 40, 1, 25, 7, 300}) {
    written.push_back(tokens_of_length(length, static_cast<Token>(length)));
    auto added = (*index)->add_checkpoint(a_record("of " + std::to_string(length), static_cast<std::uint32_t>(length)), written.back());
    ASSERT_TRUE(added);
    ids.push_back(*added);
  }
  raw_sql(path, "UPDATE checkpoint_tokens SET tokens=x'01' WHERE checkpoint_id=" + std::to_string(static_cast<std::int64_t>(ids[1])));
  raw_sql(path, "UPDATE checkpoints SET token_count=-1 WHERE id=" + std::to_string(static_cast<std::int64_t>(ids[3])));
  for (const std::size_t enough : {1, 30, 50, 1000}) {
    std::size_t at = 0;
    for (CheckpointId after{};;) {
      const auto batch = (*index)->tokens_after(after, enough);
      ASSERT_TRUE(batch);
      if (batch->rows.empty()) break;
      after = batch->rows.back().id;
      TokenSpan rest = batch->tokens;
      for (const auto& [id, tokens] : batch->rows) {
        ASSERT_LT(at, ids.size());
        EXPECT_EQ(id, ids[at]);
        if (at == 1 || at == 3) {
          EXPECT_EQ(tokens.error().code, ErrorCode::corrupt);
        } else {
          ASSERT_EQ(*tokens, written[at].size());
          EXPECT_EQ(Tokens(rest.begin(), rest.begin() + static_cast<std::ptrdiff_t>(*tokens)), written[at]);
          rest = rest.subspan(*tokens);
        }
        ++at;
      }
      EXPECT_TRUE(rest.empty());
    }
    EXPECT_EQ(at, ids.size()) << enough;
  }
}

TEST(Index, ANewerFormatIsRefusedAndLeftAlone) {
  const ScratchDirectory scratch;
  const std::string path = scratch.path() + "/index.sqlite";
  { ASSERT_TRUE(Index::open(path)); }
  raw_sql(path, "PRAGMA user_version=" + std::to_string(index_format_version + 1));
  const std::string before = read_file(path);
  const auto index = Index::open(path);
  ASSERT_FALSE(index);
  EXPECT_EQ(index.error().code, ErrorCode::unsupported);
  EXPECT_NE(index.error().context.find("newer"), std::string::npos);
  EXPECT_EQ(read_file(path), before);
}

TEST(Index, GarbageIsCorrupt) {
  const ScratchDirectory scratch;
  const std::string path = scratch.path() + "/index.sqlite";
  write_file(path, std::string(8192, 'x'));
  EXPECT_EQ(Index::open(path).error().code, ErrorCode::corrupt);
  EXPECT_FALSE(Index::open("/nonexistent/index.sqlite"));
}

TEST(Index, AnEntryThatWasTamperedWithIsUnreadable) {
  const char* changes[] = {"namespace_id=8", "file_name='other'", "token_count=399", "token_hash=token_hash+1",
                           "bytes=bytes+1",  "checksum=x'00'",    "files='nonsense'", "resume_positions=x'ff'"};
  for (const char* change : changes) {
    const ScratchDirectory scratch;
    const std::string path = scratch.path() + "/index.sqlite";
    {
      auto index = Index::open(path);
      ASSERT_TRUE((*index)->add_checkpoint(a_record("one", 400), tokens_of_length(400)));
    }
    raw_sql(path, std::string("UPDATE checkpoints SET ") + change);
    auto index = Index::open(path);
    std::vector<CheckpointId> unreadable;
    EXPECT_TRUE(all_of(**index, unreadable)->empty()) << change;
    EXPECT_EQ(unreadable.size(), 1u) << change;
  }
}

// One damaged page of tokens, and no row of any batch was deleted any more.
TEST(Index, CheckpointsGoThoughAPageOfTokensIsDamaged) {
  const ScratchDirectory scratch;
  const std::string path = scratch.path() + "/index.sqlite";
  std::vector<CheckpointId> ids;
  const auto tokens_of = [](std::size_t number) { return tokens_of_length(100, static_cast<Token>(number * 1000)); };
  {
    auto index = Index::open(path);
    for (std::size_t i = 0; i < 200; ++i) {
      CheckpointRecord record = a_record(std::to_string(i), 100);
      record.resume_positions.clear();
      auto added = (*index)->add_checkpoint(record, tokens_of(i));
      ASSERT_TRUE(added);
      ids.push_back(*added);
    }
  }
  std::string data = read_file(path);
  const std::size_t at = data.find(encode_tokens(tokens_of(100)));
  ASSERT_NE(at, std::string::npos);
  constexpr std::size_t page_bytes = 4096;
  data.replace(at - at % page_bytes, 12, 12, '\xff');
  write_file(path, data);
  auto index = Index::open(path);
  ASSERT_TRUE(index);
  const CheckpointId kept = ids.front();
  ids.erase(ids.begin());
  const auto removed = (*index)->remove_checkpoints(ids);
  ASSERT_TRUE(removed) << to_string(removed.error());
  std::vector<CheckpointId> unreadable;
  const auto left = all_of(**index, unreadable);
  ASSERT_TRUE(left);
  ASSERT_EQ(left->size(), 1u);
  EXPECT_EQ(left->front().id, kept);
  EXPECT_EQ(*(*index)->tokens(kept), tokens_of(0));
}

// All rows could be read, at each start; none could be written, ever again.
TEST(Index, IsBuiltAnewWhereDamageIsFoundByAWriteAlone) {
  for (const UnreadPage damage : {UnreadPage::file_names, UnreadPage::freelist, UnreadPage::sequence}) {
    SCOPED_TRACE(static_cast<int>(damage));
    const ScratchDirectory scratch;
    const std::string path = scratch.path() + "/index.sqlite";
    std::vector<CheckpointId> ids;
    const auto tokens_of = [](std::size_t number) { return tokens_of_length(9000, static_cast<Token>(number * 1000)); };
    const auto add = [&](Index& index, std::size_t number) {
      CheckpointRecord record = a_record(std::to_string(number), 9000);
      auto added = index.add_checkpoint(record, tokens_of(number));
      EXPECT_TRUE(added) << to_string(added.error());
      ids.push_back(added ? *added : CheckpointId{});
    };
    {
      auto index = Index::open(path);
      ASSERT_TRUE((*index)->add_namespace({{}, "identity", "probe", "facts", 1, 2}));
      ASSERT_TRUE((*index)->put_setting("key", "value"));
      for (std::size_t i = 0; i < 5; ++i) add(**index, i);
      const std::vector<CheckpointId> last{ids.back()};
      ASSERT_TRUE((*index)->remove_checkpoints(last));  // leaves free pages
    }
    ASSERT_TRUE(Index::check(path));
    damage_index(path, damage);
    EXPECT_EQ(Index::check(path).error().code, ErrorCode::corrupt);
    const auto written = [&](Index& index) {
      std::vector<CheckpointId> unreadable;
      auto all = all_of(index, unreadable);
      EXPECT_TRUE(unreadable.empty());
      EXPECT_TRUE(all);
      for (const CheckpointRecord& record : *all) {
        EXPECT_EQ(*index.tokens(record.id), tokens_of(static_cast<std::size_t>(std::stoi(record.file_name)))) << record.file_name;
      }
      return all->size();
    };
    auto index = Index::open(path);
    ASSERT_TRUE(index);
    EXPECT_EQ(written(**index), 4u);
    add(**index, 5);
    EXPECT_NE((*index)->take_rebuilt(), "");
    EXPECT_EQ((*index)->take_rebuilt(), "") << "once";
    EXPECT_EQ(written(**index), 5u);
    EXPECT_GT(ids[5], ids[4]) << "no number is given twice";
    EXPECT_EQ((*index)->namespaces()->size(), 1u);
    EXPECT_EQ((*index)->settings()->at("key"), "value");
    EXPECT_TRUE((*index)->is_in_place());
    EXPECT_TRUE((*index)->put_setting("key", "another"));
    const std::vector<CheckpointId> first{ids.front()};
    EXPECT_TRUE((*index)->remove_checkpoints(first));
    const auto sound = Index::check(path);
    EXPECT_TRUE(sound) << to_string(sound.error());
    index = Index::open(path);
    ASSERT_TRUE(index);
    EXPECT_EQ(written(**index), 4u);
    EXPECT_EQ((*index)->take_rebuilt(), "");
  }
}

TEST(Index, KnowsThatItsFileWasRemovedOrReplaced) {
  const ScratchDirectory scratch;
  const std::string path = scratch.path() + "/index.sqlite";
  auto index = Index::open(path);
  ASSERT_TRUE((*index)->add_checkpoint(a_record("one", 400), tokens_of_length(400)));
  EXPECT_TRUE((*index)->is_in_place());
  fs::rename(path, path + ".away");
  EXPECT_EQ((*index)->is_in_place().error().code, ErrorCode::io);
  write_file(path, "another");
  const auto replaced = (*index)->is_in_place();
  ASSERT_FALSE(replaced);
  EXPECT_EQ(replaced.error().context, path + " is not the file that was opened: restart Cairn");
  fs::rename(path + ".away", path);
  EXPECT_TRUE((*index)->is_in_place());
}

}  // namespace
}  // namespace cairn::test

#include "checkpoint/state_file.hpp"

#include <gtest/gtest.h>

#include "checkpoint_support.hpp"

namespace cairn::test {
namespace {

Result<StateHeader> parse(std::string data) {
  MemoryFile file(std::move(data));
  return read_state_header(file);
}

Result<std::vector<std::uint32_t>> positions_in(const ScratchDirectory& scratch, const std::string& data) {
  PosixFileLayer files;
  const std::string path = scratch.path() + "/state.bin";
  write_file(path, data);
  auto found = read_context_checkpoints(files, path);
  if (!found) return found.error();
  return found->positions;
}

TEST(StateFile, ReadsPlainTokensOfOlderVersions) {
  const Tokens tokens = tokens_of_length(37);
  for (const std::uint32_t version : {1u, 2u, 3u}) {
    const auto header = parse(state_bytes(version, tokens, 50).data);
    ASSERT_TRUE(header) << to_string(header.error());
    EXPECT_EQ(header->version, version);
    EXPECT_EQ(header->tokens, tokens);
    EXPECT_EQ(header->state_offset_bytes, 12u + 37 * 4);
  }
}

TEST(StateFile, ReadsPackedTokensOfVersion4) {
  const Tokens tokens = tokens_of_length(37);
  const auto header = parse(state_bytes(4, tokens, 50).data);
  ASSERT_TRUE(header) << to_string(header.error());
  EXPECT_EQ(header->tokens, tokens);
  EXPECT_FALSE(header->has_media);
  EXPECT_EQ(header->state_offset_bytes, 12u + (3 + 37 + 1) * 4);
  EXPECT_EQ(header->file_bytes, header->state_offset_bytes + 50);
}

TEST(StateFile, SeesAnEmptiedSlot) {
  const auto header = parse(state_bytes(4, {}, 164).data);
  ASSERT_TRUE(header);
  EXPECT_TRUE(header->tokens.empty());
}

TEST(StateFile, SeesMedia) {
  StateBytes bytes;
  bytes.put(state_file_magic).put(4u).put(6u).put(-1).put(1).put(2).put(5).put(-1).put(1).fill(10);
  const auto header = parse(bytes.data);
  ASSERT_TRUE(header);
  EXPECT_TRUE(header->has_media);
}

TEST(StateFile, RefusesWhatItIsNot) {
  EXPECT_EQ(parse("").error().code, ErrorCode::corrupt);
  EXPECT_EQ(parse("not a slot file at all").error().code, ErrorCode::corrupt);
  StateBytes other_packing;
  other_packing.put(state_file_magic).put(4u).put(3u).put(-1).put(2).put(0);
  EXPECT_EQ(parse(other_packing.data).error().code, ErrorCode::unsupported);
  StateBytes unpacked;
  unpacked.put(state_file_magic).put(4u).put(3u).put(5).put(6).put(7);
  EXPECT_EQ(parse(unpacked.data).error().code, ErrorCode::corrupt);
}

TEST(StateFile, NeverTrustsACount) {
  for (const std::uint32_t version : {2u, 4u}) {
    for (const std::uint32_t count : {38u, 1000u, 0x7fffffffu, 0xffffffffu}) {
      StateBytes bytes;
      bytes.put(state_file_magic).put(version).put(count).put(-1).put(1).put(0x7fffffff).fill(20);
      EXPECT_EQ(parse(bytes.data).error().code, ErrorCode::corrupt) << version << ' ' << count;
    }
  }
  for (const std::int32_t count : {3, 4, -1, 0x7fffffff}) {  // of ids, in 5 words
    StateBytes bytes;
    bytes.put(state_file_magic).put(4u).put(5u).put(-1).put(1).put(count).fill(20);
    EXPECT_EQ(parse(bytes.data).error().code, ErrorCode::corrupt) << count;
  }
}

TEST(StateFile, TruncatedAnywhereIsCorruptOrWhole) {
  const std::string whole = state_bytes(4, tokens_of_length(20), 40, {8, 16}).data;
  const ScratchDirectory scratch;
  for (std::size_t length = 0; length < whole.size(); ++length) {
    const std::string cut = whole.substr(0, length);
    const auto header = parse(cut);
    EXPECT_EQ(header.has_value(), length >= 12 + 24 * 4) << length;
    if (!header) continue;
    const auto positions = positions_in(scratch, cut);
    ASSERT_TRUE(positions);
    EXPECT_TRUE(positions->empty()) << length;
  }
}

TEST(StateFile, GarbageNeverCrashes) {
  std::mt19937_64 random(seed());
  for (int round = 0; round < 20000; ++round) {
    std::string data = state_bytes(random() % 2 == 0 ? 4 : 2, tokens_of_length(random() % 20), 20, {4, 8}).data;
    for (int flips = 0; flips < 3; ++flips) data[random() % data.size()] = static_cast<char>(random());
    MemoryFile file(data);
    const auto header = read_state_header(file);
    if (!header) continue;
    EXPECT_LE(header->tokens.size() * 4, data.size());
    const std::size_t at = data.find("SCKP");
    if (at == std::string::npos) continue;
    (void)read_context_checkpoints(file, *header, {at});
  }
}

TEST(ContextCheckpoints, AreReadFromTheAppendix) {
  const ScratchDirectory scratch;
  const Tokens tokens = tokens_of_length(2000);
  EXPECT_EQ(*positions_in(scratch, state_bytes(4, tokens, 5000).data), (std::vector<std::uint32_t>{}));
  const std::vector<std::uint32_t> two{984, 1496};
  EXPECT_EQ(*positions_in(scratch, state_bytes(4, tokens, 5000, two).data), two);
  const std::vector<std::uint32_t> many{84, 596, 684, 1196, 1284, 1796, 1884, 1900, 1950, 1996, 2000};
  EXPECT_EQ(*positions_in(scratch, state_bytes(4, tokens, 5000, many, 70000).data), many);
}

TEST(ContextCheckpoints, AreFoundAtEveryOffset) {
  const ScratchDirectory scratch;
  const Tokens tokens = tokens_of_length(100);
  const std::vector<std::uint32_t> one{96};
  // Around the edge of the pieces that the file is read in.
  for (std::size_t memory = (1u << 18) - 8; memory < (1u << 18) + 8; ++memory) {
    EXPECT_EQ(*positions_in(scratch, state_bytes(4, tokens, memory, one).data), one) << memory;
  }
}

TEST(ContextCheckpoints, BytesThatOnlyLookLikeThemAreNot) {
  const ScratchDirectory scratch;
  const std::vector<std::uint32_t> two{10, 90};
  Tokens tokens = tokens_of_length(100);
  std::memcpy(&tokens[50], "SCKP", 4);
  const std::string inside = state_bytes(4, tokens, 500, two).data;
  std::string decoy = inside;
  decoy.replace(600, 12, std::string("SCKP\1\0\0\0\1\0\0\0", 12));
  EXPECT_EQ(*positions_in(scratch, inside), two);
  EXPECT_EQ(*positions_in(scratch, decoy), two);
  EXPECT_TRUE(positions_in(scratch, inside + "x")->empty());
  const std::vector<std::uint32_t> beyond{10, 101};  // more tokens than the file holds
  EXPECT_TRUE(positions_in(scratch, state_bytes(4, tokens, 500, beyond).data)->empty());
}

TEST(StateFiles, SideFilesBelongToThem) {
  const ScratchDirectory scratch;
  PosixFileLayer files;
  const std::string path = scratch.path() + "/a";
  EXPECT_EQ(stamp_state_files(files, path).error().code, ErrorCode::not_found);
  write_file(path, "state");
  write_file(path + ".checkpoints", "side");
  const auto stamps = stamp_state_files(files, path);
  ASSERT_TRUE(stamps);
  ASSERT_EQ(stamps->size(), 2u);
  EXPECT_EQ((*stamps)[1].suffix, ".checkpoints");
  const auto scan = scan_state_files(files, path, *stamps, false);
  ASSERT_TRUE(scan);
  EXPECT_EQ(scan->bytes, 9u);
  write_file(path + ".checkpoints", "sidE");
  EXPECT_NE(scan_state_files(files, path, *stamps, false)->checksum, scan->checksum);
  write_file(path + ".checkpoints", "longer");
  EXPECT_EQ(scan_state_files(files, path, *stamps, false).error().code, ErrorCode::corrupt);
  // The same bytes, cut elsewhere between the two files, are not the same state.
  write_file(path, "states");
  write_file(path + ".checkpoints", "ide");
  const auto moved = stamp_state_files(files, path);
  EXPECT_NE(scan_state_files(files, path, *moved, false)->checksum, scan->checksum);
}

TEST(StateFiles, LinksAndDirectoriesAreNone) {
  const ScratchDirectory scratch;
  PosixFileLayer files;
  fs::create_symlink("/etc/passwd", scratch.path() + "/link");
  fs::create_directory(scratch.path() + "/directory");
  EXPECT_EQ(stamp_state_files(files, scratch.path() + "/link").error().code, ErrorCode::corrupt);
  EXPECT_EQ(stamp_state_files(files, scratch.path() + "/directory").error().code, ErrorCode::corrupt);
  EXPECT_FALSE(files.open(scratch.path() + "/link"));
}

}  // namespace
}  // namespace cairn::test

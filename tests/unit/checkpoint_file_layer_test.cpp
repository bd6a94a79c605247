// The real file system behind the seam.
#include "checkpoint/file_layer.hpp"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <map>

#include "checkpoint_support.hpp"

namespace cairn::test {
namespace {

TEST(PosixDirectory, TellsNamesAndWhatTheyAre) {
  const ScratchDirectory scratch;
  write_file(scratch.slots() + "/empty", "");
  write_file(scratch.slots() + "/some", "12345");
  fs::create_directory(scratch.slots() + "/folder");
  fs::create_symlink(scratch.slots() + "/some", scratch.slots() + "/link");
  PosixFileLayer files;
  auto directory = files.open_directory(scratch.slots());
  ASSERT_TRUE(directory) << to_string(directory.error());
  std::map<std::string, FileStatus> found;
  for (;;) {
    const auto name = (*directory)->next();
    ASSERT_TRUE(name);
    if (name->empty()) break;
    const auto status = (*directory)->status();
    ASSERT_TRUE(status);
    found[std::string(*name)] = *status;
  }
  ASSERT_EQ(found.size(), 4u);
  EXPECT_FALSE(found.at("folder").regular);
  EXPECT_FALSE(found.at("link").regular);
  for (const std::string name : {"empty", "some"}) {
    const auto by_path = files.status(scratch.slots() + "/" + name);
    ASSERT_TRUE(by_path);
    const FileStatus& status = found.at(name);
    EXPECT_TRUE(status.regular);
    EXPECT_EQ(status.bytes, by_path->bytes);
    EXPECT_EQ(status.inode, by_path->inode);
    EXPECT_EQ(status.mtime_ns, by_path->mtime_ns);
    EXPECT_EQ(status.ctime_ns, by_path->ctime_ns);
  }
}

TEST(PosixDirectory, AFileThatIsGoneMeanwhileIsNotFound) {
  const ScratchDirectory scratch;
  write_file(scratch.slots() + "/file", "");
  PosixFileLayer files;
  auto directory = files.open_directory(scratch.slots());
  ASSERT_TRUE(directory);
  ASSERT_EQ(*(*directory)->next(), "file");
  fs::remove(scratch.slots() + "/file");
  EXPECT_EQ((*directory)->status().error().code, ErrorCode::not_found);
  EXPECT_EQ(files.open_directory(scratch.path() + "/none").error().code, ErrorCode::not_found);
}

// Not by the real ids, as access() does, and root may write everywhere.
TEST(PosixFileLayer, TellsWhereThisUserMayNotWrite) {
  const ScratchDirectory scratch;
  fs::permissions(scratch.path(), fs::perms{0755});
  fs::permissions(scratch.slots(), fs::perms{0555});
  PosixFileLayer files;
  const uid_t us = ::geteuid();
  constexpr uid_t nobody = 65534;
  if (us == 0) ASSERT_EQ(::seteuid(nobody), 0);
  const auto others = files.space(scratch.slots());
  if (us == 0) ASSERT_EQ(::seteuid(us), 0);
  fs::permissions(scratch.slots(), fs::perms{0755});
  const auto ours = files.space(scratch.slots());
  ASSERT_TRUE(others && ours);
  EXPECT_FALSE(others->may_write);
  EXPECT_TRUE(ours->may_write);
  EXPECT_FALSE(others->read_only);
}

// Copies were made for their owner alone: a llama-server of another user could not restore them.
TEST(PosixFileLayer, WhatIsCreatedIsForAllWhomTheUmaskLets) {
  const ScratchDirectory scratch;
  PosixFileLayer files;
  const auto mode_of = [&](const std::string& name, mode_t mask) -> mode_t {
    const std::string path = scratch.slots() + "/" + name;
    const mode_t before = ::umask(mask);
    EXPECT_TRUE(files.create(path));
    ::umask(before);
    struct stat status {};
    EXPECT_EQ(::stat(path.c_str(), &status), 0);
    return status.st_mode & 07777;
  };
  EXPECT_EQ(mode_of("open", 0022), 0644u);
  EXPECT_EQ(mode_of("group", 0027), 0640u);
  EXPECT_EQ(mode_of("own", 0077), 0600u);
}

// Made for their owner alone, a llama-server of another user could neither save nor restore in them.
TEST(PosixFileLayer, DirectoriesAreForTheGroupAsTheUmaskLetsWhereTheyAreNotForTheOwnerAlone) {
  const ScratchDirectory scratch;
  PosixFileLayer files;
  const mode_t before = ::umask(0022);
  EXPECT_TRUE(files.make_directory(scratch.path() + "/new/state", DirectoryFor::owner));
  EXPECT_TRUE(files.make_directory(scratch.path() + "/new/slots/", DirectoryFor::backend));
  EXPECT_TRUE(files.make_directory(scratch.path() + "/new/other/", DirectoryFor::owner));
  EXPECT_TRUE(files.make_directory(scratch.path() + "/new/state", DirectoryFor::backend));
  ::umask(before);
  const auto mode_of = [&](const std::string& name) -> mode_t {
    struct stat status {};
    EXPECT_EQ(::stat((scratch.path() + name).c_str(), &status), 0);
    return status.st_mode & 07777;
  };
  EXPECT_EQ(mode_of("/new"), 0750u) << "what lies there tells prompts";
  EXPECT_EQ(mode_of("/new/state"), 0700u) << "it is as it was made";
  EXPECT_EQ(mode_of("/new/slots"), 0750u);
  EXPECT_EQ(mode_of("/new/other"), 0700u);
}

}  // namespace
}  // namespace cairn::test

#include "request/weights_sample.hpp"

#include <gtest/gtest.h>
#include <stdlib.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>

namespace cairn {
namespace {

namespace fs = std::filesystem;

class WeightsSample : public ::testing::Test {
 protected:
  WeightsSample() {
    std::string pattern = (fs::temp_directory_path() / "cairn-weights-XXXXXX").string();
    if (::mkdtemp(pattern.data()) == nullptr) throw std::runtime_error("mkdtemp");
    folder_ = pattern;
  }
  ~WeightsSample() override {
    std::error_code ignored;
    fs::remove_all(folder_, ignored);
  }
  // A hole on disk, but for `mark` at its end.
  std::string file(const std::string& name, std::uint64_t bytes, char mark = 'a') {
    const std::string path = (folder_ / name).string();
    std::ofstream(path, std::ios::binary) << mark;
    fs::resize_file(path, bytes);
    std::fstream out(path, std::ios::binary | std::ios::in | std::ios::out);
    out.seekp(static_cast<std::streamoff>(bytes) - 1).put(mark);
    return path;
  }
  void change(const std::string& path, std::uint64_t at) {
    std::fstream out(path, std::ios::binary | std::ios::in | std::ios::out);
    out.seekp(static_cast<std::streamoff>(at)).put('z');
  }
  fs::path folder_;
};

TEST_F(WeightsSample, EveryByteOfASmallFileCounts) {
  const std::string path = file("a.gguf", 3'000'001);
  const auto before = sample_weights(path);
  ASSERT_TRUE(before);
  EXPECT_EQ(before->size(), 32u);
  EXPECT_EQ(sample_weights(file("b.gguf", 3'000'001)), before) << "whatever its name";
  EXPECT_NE(sample_weights(file("c.gguf", 3'000'002)), before);
  for (const std::uint64_t at : {1ull, 1'500'000ull, 3'000'000ull}) {
    fs::copy_file(path, folder_ / "copy", fs::copy_options::overwrite_existing);
    change((folder_ / "copy").string(), at);
    EXPECT_NE(sample_weights((folder_ / "copy").string()), before) << at;
  }
}

TEST_F(WeightsSample, OfALargeOneItsEndsAndWhatLiesBetween) {
  constexpr std::uint64_t bytes = 200u << 20;
  const auto before = sample_weights(file("a.gguf", bytes));
  ASSERT_TRUE(before);
  EXPECT_NE(sample_weights(file("a.gguf", bytes + 1)), before);
  EXPECT_NE(sample_weights(file("a.gguf", bytes, 'b')), before) << "its end";
  // A layer of many has other weights throughout.
  std::fstream out(file("a.gguf", bytes), std::ios::binary | std::ios::in | std::ios::out);
  out.seekp(bytes / 3) << std::string(bytes / 100, 'z');
  out.close();
  EXPECT_NE(sample_weights((folder_ / "a.gguf").string()), before);
}

TEST_F(WeightsSample, OfASplitOneAllFiles) {
  const std::string first = file("m-00001-of-00002.gguf", 1000);
  EXPECT_EQ(sample_weights(first), std::nullopt) << "one is missing";
  const std::string second = file("m-00002-of-00002.gguf", 1000);
  const auto before = sample_weights(first);
  ASSERT_TRUE(before);
  change(second, 500);
  EXPECT_NE(sample_weights(first), before);
}

TEST_F(WeightsSample, WhatCannotBeReadSaysNothing) {
  EXPECT_EQ(sample_weights((folder_ / "none.gguf").string()), std::nullopt);
  EXPECT_EQ(sample_weights(folder_.string()), std::nullopt);
  EXPECT_EQ(sample_weights(""), std::nullopt);
  EXPECT_EQ(sample_weights("-00001-of-"), std::nullopt);
}

TEST(FirstSamples, AreKeptOfTheLatestProcesses) {
  EXPECT_FALSE(first_sample("", "p"));
  std::string kept = with_first_sample("", "first", "a");
  EXPECT_EQ(first_sample(kept, "first"), "a");
  kept = with_first_sample(kept, "first", "b");
  EXPECT_EQ(first_sample(kept, "first"), "b") << "it was loaded anew";
  for (int i = 0; i < 63; ++i) kept = with_first_sample(kept, "other" + std::to_string(i), "c");
  EXPECT_EQ(first_sample(kept, "first"), "b");
  kept = with_first_sample(kept, "last", "c");
  EXPECT_FALSE(first_sample(kept, "first"));
  EXPECT_EQ(first_sample(kept, "other0"), "c");
  for (const char* bad : {"{", "{}", "[1]", "[[\"p\"]]", "[[\"p\",1]]"}) {
    EXPECT_FALSE(first_sample(bad, "p")) << bad;
    EXPECT_EQ(first_sample(with_first_sample(bad, "p", "a"), "p"), "a") << bad;
  }
}

}  // namespace
}  // namespace cairn

#include "backend/gguf_metadata.hpp"

#include <gtest/gtest.h>
#include <stdlib.h>
#include <unistd.h>

#include <cstdint>
#include <fstream>
#include <limits>
#include <stdexcept>
#include <string>

namespace cairn {
namespace {

enum Type : std::uint32_t { u8, i8, u16, i16, u32, i32, f32, boolean, text, array, u64, i64, f64 };

class GgufFile {
 public:
  explicit GgufFile(std::uint32_t version = 3, std::uint64_t tensors = 0) : version_(version), tensors_(tensors) {}
  template <class T>
  GgufFile& put(T value) {
    data_.append(reinterpret_cast<const char*>(&value), sizeof value);
    return *this;
  }
  GgufFile& put_text(const std::string& value) {
    put<std::uint64_t>(value.size());
    data_ += value;
    return *this;
  }
  GgufFile& key(const std::string& name, Type type) {
    ++pairs_;
    return put_text(name).put<std::uint32_t>(type);
  }
  GgufFile& string(const std::string& name, const std::string& value) { return key(name, text).put_text(value); }
  template <class T>
  GgufFile& number(const std::string& name, Type type, T value) {
    return key(name, type).put(value);
  }
  GgufFile& claim_pairs(std::uint64_t pairs) {
    pairs_ = pairs;
    return *this;
  }
  std::string bytes() const {
    std::string head = "GGUF";
    head.append(reinterpret_cast<const char*>(&version_), 4);
    head.append(reinterpret_cast<const char*>(&tensors_), 8);
    head.append(reinterpret_cast<const char*>(&pairs_), 8);
    return head + data_;
  }

 private:
  std::uint32_t version_;
  std::uint64_t tensors_;
  std::uint64_t pairs_ = 0;
  std::string data_;
};

Result<GgufMetadata> read(const std::string& bytes) {
  std::string path = "/tmp/cairn-gguf-XXXXXX";
  const int descriptor = ::mkstemp(path.data());
  if (descriptor < 0) throw std::runtime_error("mkstemp");
  ::close(descriptor);
  std::ofstream(path, std::ios::binary) << bytes;
  auto metadata = read_gguf_metadata(path);
  ::unlink(path.c_str());
  return metadata;
}

// Every type of value lies before what is looked for.
GgufFile with_everything(std::uint32_t version) {
  GgufFile file(version, 291);
  file.number<std::uint8_t>("a.u8", u8, 1).number<std::int16_t>("a.i16", i16, 1).number<float>("a.f32", f32, 1.5f);
  file.number<std::uint8_t>("a.bool", boolean, 1).number<double>("a.f64", f64, 2.5).number<std::int64_t>("a.i64", i64, -1);
  file.string("general.architecture", "granitehybrid").string("general.name", "x").string("tokenizer.chat_template", std::string(2'000'000, 't'));
  file.key("tokenizer.ggml.tokens", array).put<std::uint32_t>(text).put<std::uint64_t>(3).put_text("<s>").put_text("").put_text("abc");
  file.key("tokenizer.ggml.scores", array).put<std::uint32_t>(f32).put<std::uint64_t>(2).put(1.0f).put(2.0f);
  file.key("nested", array).put<std::uint32_t>(array).put<std::uint64_t>(2);
  file.put<std::uint32_t>(u8).put<std::uint64_t>(1).put<std::uint8_t>(1);
  file.put<std::uint32_t>(text).put<std::uint64_t>(1).put_text("x");
  return file;
}

TEST(GgufMetadataTest, VersionsTwoAndThree) {
  for (const std::uint32_t version : {2u, 3u}) {
    GgufFile file = with_everything(version);
    file.number<std::uint32_t>("granitehybrid.ssm.state_size", u32, 128);
    file.number<std::uint32_t>("granitehybrid.attention.sliding_window", u32, 4096);
    const auto metadata = read(file.bytes());
    ASSERT_TRUE(metadata) << to_string(metadata.error());
    EXPECT_EQ(metadata->architecture, "granitehybrid");
    EXPECT_TRUE(metadata->recurrent);
    EXPECT_EQ(metadata->sliding_window, 4096u);
  }
}

TEST(GgufMetadataTest, FullAttention) {
  GgufFile file;
  file.string("general.architecture", "llama").number<std::uint32_t>("llama.attention.head_count", u32, 8);
  file.string("general.description", "trained on .ssm. texts");
  const auto metadata = read(file.bytes());
  ASSERT_TRUE(metadata);
  EXPECT_FALSE(metadata->recurrent);
  EXPECT_EQ(metadata->sliding_window, 0u);
}

TEST(GgufMetadataTest, SlidingWindowsOfAllWidths) {
  const auto window = [](auto value, Type type) {
    GgufFile file;
    file.string("general.architecture", "gemma3").number("gemma3.attention.sliding_window", type, value);
    return read(file.bytes())->sliding_window;
  };
  EXPECT_EQ(window(std::uint32_t{512}, u32), 512u);
  EXPECT_EQ(window(std::int32_t{512}, i32), 512u);
  EXPECT_EQ(window(std::uint64_t{512}, u64), 512u);
  EXPECT_EQ(window(std::int64_t{512}, i64), 512u);
}

TEST(GgufMetadataTest, AWindowPatternIsNoWindow) {
  GgufFile file;
  file.string("general.architecture", "gemma3");
  file.key("gemma3.attention.sliding_window_pattern", array).put<std::uint32_t>(boolean).put<std::uint64_t>(2).put<std::uint8_t>(1).put<std::uint8_t>(0);
  file.number<std::uint32_t>("gemma3.attention.sliding_window", u32, 512);
  EXPECT_EQ(read(file.bytes())->sliding_window, 512u);
}

TEST(GgufMetadataTest, RecurrentKinds) {
  for (const char* key : {"mamba2.ssm.conv_kernel", "rwkv6.wkv.head_size", "lfm2.shortconv.l_cache", "kimi.kda.head_dim", "rwkv6.token_shift_count"}) {
    GgufFile file;
    file.string("general.architecture", "x").number<std::uint32_t>(key, u32, 4);
    EXPECT_TRUE(read(file.bytes())->recurrent) << key;
  }
}

TEST(GgufMetadataTest, WhatIsNoGguf) {
  EXPECT_EQ(read_gguf_metadata("/no/such/file").error().code, ErrorCode::not_found);
  EXPECT_EQ(read_gguf_metadata("").error().code, ErrorCode::not_found);
  for (const std::string& bytes : {std::string(), std::string("GGU"), std::string("GGUF"), std::string("GGML") + std::string(100, '\0'),
                                   GgufFile(1).string("general.architecture", "x").bytes(), GgufFile(4).string("general.architecture", "x").bytes(),
                                   GgufFile(0x03000000).string("general.architecture", "x").bytes(), GgufFile().bytes(),
                                   GgufFile().string("general.name", "x").bytes(),
                                   GgufFile().number<std::uint32_t>("general.architecture", u32, 3).bytes()}) {
    const auto metadata = read(bytes);
    ASSERT_FALSE(metadata);
    EXPECT_EQ(metadata.error().code, ErrorCode::corrupt);
  }
  EXPECT_FALSE(read_gguf_metadata("/tmp"));  // a directory
}

TEST(GgufMetadataTest, TruncatedAnywhere) {
  GgufFile file(3);
  file.number<std::uint8_t>("a", u8, 1).string("general.architecture", "mamba2").number<std::uint32_t>("mamba2.ssm.x", u32, 1);
  file.key("tokens", array).put<std::uint32_t>(text).put<std::uint64_t>(2).put_text("ab").put_text("cd");
  const std::string whole = file.bytes();
  for (std::size_t size = 0; size <= whole.size(); ++size) {
    const auto metadata = read(whole.substr(0, size));  // never a crash
    if (metadata) EXPECT_EQ(metadata->architecture, "mamba2");
    else EXPECT_EQ(metadata.error().code, ErrorCode::corrupt);
  }
}

TEST(GgufMetadataTest, GiantCountsAndLengths) {
  constexpr std::uint64_t giant = std::numeric_limits<std::uint64_t>::max();
  for (const std::uint64_t count : {giant, giant / 2, giant / 4 + 1, giant / 8 + 1, std::uint64_t{1} << 33, std::uint64_t{100} << 20}) {
    const auto base = [] { return GgufFile().string("general.architecture", "llama"); };
    // What was read before stands.
    EXPECT_TRUE(read(base().claim_pairs(count).bytes()) || true);
    EXPECT_EQ(read(base().key("x", text).put(count).bytes())->architecture, "llama");
    for (const Type type : {u8, u64, text, array, Type{13}, Type{99}}) {
      EXPECT_EQ(read(base().key("x", array).put<std::uint32_t>(type).put(count).bytes())->architecture, "llama");
    }
    EXPECT_EQ(read(base().key("x", Type{77}).put(count).bytes())->architecture, "llama");
    EXPECT_FALSE(read(GgufFile().put(count).claim_pairs(1).bytes()));  // a key's length
    EXPECT_FALSE(read(GgufFile().key("general.architecture", text).put(count).bytes()));
  }
}

// A list in a list in a list …: 12 bytes a level.
TEST(GgufMetadataTest, ListsInListsDoNotEatTheStack) {
  GgufFile file;
  file.string("general.architecture", "llama").key("x", array);
  for (int i = 0; i < 3'000'000; ++i) file.put<std::uint32_t>(array).put<std::uint64_t>(1);
  EXPECT_EQ(read(file.bytes())->architecture, "llama");
}

}  // namespace
}  // namespace cairn

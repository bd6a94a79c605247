#include "config.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <unistd.h>

#include <boost/json.hpp>

#include <filesystem>
#include <fstream>
#include <functional>
#include <stdexcept>

namespace cairn {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::StartsWith;

class ConfigFile : public ::testing::Test {
 protected:
  ConfigFile() {
    std::string pattern = "/tmp/cairn-config-XXXXXX";
    if (::mkdtemp(pattern.data()) == nullptr) throw std::runtime_error("mkdtemp");
    directory_ = pattern;
    path_ = directory_ + "/cairn.yaml";
  }
  ~ConfigFile() override {
    std::error_code ignored;
    std::filesystem::remove_all(directory_, ignored);
  }
  Result<Config> load(const std::string& text) {
    std::ofstream(path_) << text;
    return load_config(path_);
  }
  Config good(const std::string& text) {
    const auto config = load(text);
    EXPECT_TRUE(config) << text << ": " << to_string(config.error());
    return config ? *config : Config{};
  }
  // What is said about a bad one, without the directory.
  std::string complaint(const std::string& text) {
    const auto config = load(text);
    if (config) return "none";
    EXPECT_EQ(config.error().code, ErrorCode::invalid);
    EXPECT_THAT(config.error().context, StartsWith(directory_ + "/"));
    return config.error().context.substr(directory_.size() + 1);
  }

  std::string directory_, path_;
};

TEST_F(ConfigFile, EveryKey) {
  const Config config = good(R"(# a comment
listen: 0.0.0.0:9000
backend: http://10.0.0.1:8000
backend_api_key: "secret: with colon"
slot_dir: /var/cache/slots
state_dir: /var/lib/cairn
budget: 100GiB
min_free: 1 GiB
checkpoint_interval: 2048
checkpoint_budget: 5%
worst_recomputation: 750 ms
log_prompts: true
ubatch: 1024
max_body: 16MiB
max_header: 32KiB
max_connections: 77
max_waiting: 5
max_wait_s: 60
shutdown_limit_s: 9
verify_checksums: no
log_level: debug
)");
  EXPECT_EQ(config.listen, "0.0.0.0:9000");
  EXPECT_EQ(config.backend, "http://10.0.0.1:8000");
  EXPECT_EQ(config.backend_api_key, "secret: with colon");
  EXPECT_EQ(config.slot_dir, "/var/cache/slots");
  EXPECT_EQ(config.state_dir, "/var/lib/cairn");
  EXPECT_EQ(config.budget_bytes, 100ull << 30);
  EXPECT_EQ(config.min_free_bytes, 1ull << 30);
  EXPECT_EQ(config.checkpoint_interval_tokens, 2048u);
  EXPECT_DOUBLE_EQ(config.checkpoint_budget, 0.05);
  EXPECT_EQ(config.worst_recomputation, std::chrono::milliseconds(750));
  EXPECT_TRUE(config.log_prompts);
  EXPECT_EQ(config.ubatch_tokens, 1024u);
  EXPECT_EQ(config.max_body_bytes, 16ull << 20);
  EXPECT_EQ(config.max_header_bytes, 32ull << 10);
  EXPECT_EQ(config.max_connections, 77u);
  EXPECT_EQ(config.max_waiting, 5u);
  EXPECT_EQ(config.max_wait, std::chrono::seconds(60));
  EXPECT_EQ(config.shutdown_limit, std::chrono::seconds(9));
  EXPECT_FALSE(config.verify_checksums);
  EXPECT_EQ(config.log_level, "debug");
  EXPECT_TRUE(validate(config));
}

TEST_F(ConfigFile, WhatIsNotSaidKeepsItsDefault) {
  const Config defaults;
  for (const char* text : {"", "\n# nothing\n", "---\n", "{}", "listen: 127.0.0.1:8081"}) {
    const Config config = good(text);
    EXPECT_EQ(config.listen, defaults.listen);
    EXPECT_EQ(config.budget_bytes, defaults.budget_bytes);
    EXPECT_EQ(config.checkpoint_interval_tokens, std::nullopt);
    EXPECT_EQ(config.worst_recomputation_tokens, 512u);
    EXPECT_FALSE(config.log_prompts);
    EXPECT_TRUE(config.verify_checksums);
  }
  EXPECT_EQ(good("checkpoint_interval: off").checkpoint_interval_tokens, 0u);
  EXPECT_EQ(good("checkpoint_interval: auto").checkpoint_interval_tokens, std::nullopt);
  EXPECT_DOUBLE_EQ(good("checkpoint_budget: 0.1").checkpoint_budget, 0.1);
  EXPECT_EQ(good("worst_recomputation: 4096").worst_recomputation_tokens, 4096u);
  EXPECT_EQ(good("worst_recomputation: 2s").worst_recomputation, std::chrono::seconds(2));
  EXPECT_EQ(good("listen: ':8081'").listen, ":8081");
}

TEST_F(ConfigFile, MistakesAreNamedWithFileLineAndKey) {
  EXPECT_EQ(complaint("listen: 127.0.0.1:1\n\nbudgett: 5GiB\n"), "cairn.yaml:3: budgett: there is no such key");
  EXPECT_EQ(complaint("a: 1"), "cairn.yaml:1: a: there is no such key");
  EXPECT_EQ(complaint("\nbudget: lots"), "cairn.yaml:2: budget: 'lots' is not a size (20GiB, 500MiB, …)");
  EXPECT_THAT(complaint("\n\nlisten: 8081"), AllOf(StartsWith("cairn.yaml:3: listen: "), HasSubstr("HOST:PORT")));
  EXPECT_THAT(complaint("backend: ftp://x:1"), StartsWith("cairn.yaml:1: backend: "));
  EXPECT_THAT(complaint("backend: http://x:1/v1"), StartsWith("cairn.yaml:1: backend: "));
  EXPECT_THAT(complaint("verify_checksums: 2"), StartsWith("cairn.yaml:1: verify_checksums: '2'"));
  EXPECT_THAT(complaint("log_level: loud"), AllOf(StartsWith("cairn.yaml:1: log_level: "), HasSubstr("debug, info, warn, error")));
  for (const char* key : {"ubatch", "max_connections", "max_waiting", "shutdown_limit_s", "checkpoint_interval"}) {
    for (const char* value : {"x", "-1", "1.5", "10k", "99999999999999999999", "''"}) {
      EXPECT_THAT(complaint(std::string(key) + ": " + value), StartsWith(std::string("cairn.yaml:1: ") + key + ": ")) << value;
    }
  }
  EXPECT_THAT(complaint("max_waiting: 0"), StartsWith("cairn.yaml:1: max_waiting: "));
  EXPECT_THAT(complaint("checkpoint_interval: 127"), StartsWith("cairn.yaml:1: checkpoint_interval: "));
  for (const char* value : {"x", "-1%", "101%", "2", "nan", "'%'", "''"}) {
    EXPECT_THAT(complaint(std::string("checkpoint_budget: ") + value), StartsWith("cairn.yaml:1: checkpoint_budget: ")) << value;
  }
  for (const char* value : {"x", "255", "0s", "2h", "ms", "-1", "''"}) {
    EXPECT_THAT(complaint(std::string("worst_recomputation: ") + value), StartsWith("cairn.yaml:1: worst_recomputation: ")) << value;
  }
  EXPECT_THAT(complaint("shutdown_limit_s: 3601"), StartsWith("cairn.yaml:1: shutdown_limit_s: "));
}

TEST_F(ConfigFile, ValuesOfTheWrongShape) {
  EXPECT_EQ(complaint("listen:\n  - 127.0.0.1:1\n"), "cairn.yaml:1: listen: one value is expected");
  EXPECT_EQ(complaint("slot_dir: {a: b}"), "cairn.yaml:1: slot_dir: one value is expected");
  EXPECT_THAT(complaint("log_level: info\nbudget:\n"), StartsWith("cairn.yaml:2: budget: one value is expected"));
  EXPECT_THAT(complaint("- listen"), StartsWith("cairn.yaml:1: "));
  EXPECT_THAT(complaint("just words"), StartsWith("cairn.yaml:1: "));
  EXPECT_THAT(complaint("? [a]\n: b"), AllOf(StartsWith("cairn.yaml:1: "), HasSubstr("key")));
}

TEST_F(ConfigFile, WhatIsNoYaml) {
  EXPECT_THAT(complaint("listen: [\n"), StartsWith("cairn.yaml:"));
  EXPECT_THAT(complaint("a: b\n c: d\n"), StartsWith("cairn.yaml:2"));
  EXPECT_THAT(complaint("listen: \"x"), StartsWith("cairn.yaml:"));
  std::filesystem::remove(path_);
  EXPECT_EQ(load_config(path_).error().context, path_ + ": cannot be read");
  EXPECT_FALSE(load_config(directory_));
}

TEST_F(ConfigFile, OneBackendOrSeveral) {
  const std::vector<BackendConfig> one = all_backends(good("backend: http://a:1\nbackend_api_key: k\nubatch: 256\n"));
  ASSERT_EQ(one.size(), 1u);
  EXPECT_EQ(one[0].url, "http://a:1");
  EXPECT_EQ(one[0].api_key, "k");
  EXPECT_EQ(one[0].ubatch_tokens, 256u);
  EXPECT_TRUE(one[0].models.empty());

  const std::vector<BackendConfig> several = all_backends(good(R"(backend_api_key: shared
backends:
  - url: http://a:1
    models: [small, "org/small"]
    api_key: own
    ubatch: 128
  - url: http://b:2
)"));
  ASSERT_EQ(several.size(), 2u);
  EXPECT_THAT(several[0].models, testing::ElementsAre("small", "org/small"));
  EXPECT_EQ(several[0].api_key, "own");
  EXPECT_EQ(several[0].ubatch_tokens, 128u);
  EXPECT_EQ(several[1].url, "http://b:2");
  EXPECT_EQ(several[1].api_key, "shared");
  EXPECT_EQ(several[1].ubatch_tokens, 512u);
}

TEST_F(ConfigFile, MistakesInBackends) {
  EXPECT_EQ(complaint("backends: http://a:1"), "cairn.yaml:1: backends: a list is expected");
  EXPECT_EQ(complaint("backends: []"), "cairn.yaml:1: backends: a list is expected");
  EXPECT_THAT(complaint("backends:\n  - http://a:1\n"), StartsWith("cairn.yaml:2: backends: each is a list of `key: value`"));
  EXPECT_EQ(complaint("backends:\n  - models: [a]\n"), "cairn.yaml:2: backends: url: missing");
  EXPECT_THAT(complaint("backends:\n  - url: a:1\n"), StartsWith("cairn.yaml:2: backends: url: "));
  EXPECT_EQ(complaint("backends:\n  - url: http://a:1\n    url: http://b:1\n"), "cairn.yaml:3: backends: url: it is there twice");
  EXPECT_EQ(complaint("backends:\n  - url: http://a:1\n    slots: 2\n"), "cairn.yaml:3: backends: slots: there is no such key");
  EXPECT_EQ(complaint("backends:\n  - url: [http://a:1]\n"), "cairn.yaml:2: backends: url: one value is expected");
  EXPECT_EQ(complaint("backends:\n  - url: http://a:1\n    models: a\n"), "cairn.yaml:3: backends: models: a list of names is expected");
  EXPECT_EQ(complaint("backends:\n  - url: http://a:1\n    models: []\n"), "cairn.yaml:3: backends: models: a list of names is expected");
  EXPECT_EQ(complaint("backends:\n  - url: http://a:1\n    models: ['']\n"), "cairn.yaml:3: backends: models: a name must be a word");
  EXPECT_THAT(complaint("backends:\n  - url: http://a:1\n    ubatch: 0\n"), StartsWith("cairn.yaml:3: backends: ubatch: "));
  EXPECT_EQ(complaint("backends:\n  - {url: http://a:1, models: [m]}\n  - {url: http://b:1, models: [m]}\n"),
            "cairn.yaml:3: backends: models: 'm' is there twice");
  EXPECT_EQ(complaint("backends:\n  - {url: http://a:1}\n  - {url: http://b:1}\n"),
            "cairn.yaml:3: backends: models: missing (only one may serve all that no other does)");
  EXPECT_EQ(complaint("backend: http://a:1\nbackends:\n  - url: http://b:1\n"), "cairn.yaml:3: backends: beside them there is no backend");
}

// A key that stands there twice is a mistake of somebody who edits a long file.
TEST_F(ConfigFile, AKeyMayNotBeThereTwice) {
  EXPECT_THAT(complaint("budget: 1GiB\nlog_level: info\nbudget: 2GiB\n"), StartsWith("cairn.yaml:3: budget: "));
}

TEST(ConfigValidate, NamesTheKey) {
  const auto complaint = [](const std::function<void(Config&)>& change) {
    Config config;
    change(config);
    const auto valid = validate(config);
    return valid ? std::string("none") : valid.error().context;
  };
  EXPECT_EQ(complaint([](Config&) {}), "none");
  EXPECT_THAT(complaint([](Config& c) { c.listen = "x"; }), StartsWith("listen: "));
  EXPECT_THAT(complaint([](Config& c) { c.backend = "127.0.0.1:8080"; }), StartsWith("backend: "));
  EXPECT_THAT(complaint([](Config& c) { c.slot_dir = "/a"; }), StartsWith("state_dir: "));
  EXPECT_THAT(complaint([](Config& c) { c.state_dir = "/a"; }), StartsWith("slot_dir: "));
  EXPECT_THAT(complaint([](Config& c) { c.disk_dir = "/a"; }), StartsWith("slot_dir: "));
  const auto tiers = [](std::uint64_t ram) {
    return [ram](Config& c) {
      c.slot_dir = "/a";
      c.state_dir = "/c";
      c.disk_dir = "/b";
      c.budget_bytes = 100;
      c.ram_budget_bytes = ram;
    };
  };
  EXPECT_THAT(complaint(tiers(101)), StartsWith("ram_budget: "));
  EXPECT_EQ(complaint(tiers(100)), "none");
}

// `cairn check` said that all is well, and `cairn serve` ended because "another Cairn", itself, held the lock.
TEST_F(ConfigFile, NoDirectoryIsTwoOfThem) {
  const auto complaint = [](const std::string& slots, const std::string& states, const std::string& disk) {
    Config config;
    config.slot_dir = slots;
    config.state_dir = states;
    config.disk_dir = disk;
    const auto valid = validate(config);
    return valid ? std::string("none") : valid.error().context;
  };
  const std::string one = directory_ + "/one", link = directory_ + "/link";
  std::filesystem::create_directory(one);
  std::filesystem::create_directory_symlink(one, link);
  EXPECT_EQ(complaint(one, directory_ + "/two", ""), "none");
  EXPECT_EQ(complaint(one, one + "/two", one + "/three"), "none");
  EXPECT_EQ(complaint("", "", ""), "none");
  EXPECT_THAT(complaint(one, one, ""), StartsWith("state_dir: is slot_dir itself"));
  EXPECT_THAT(complaint(one, directory_ + "/two/../one/", ""), StartsWith("state_dir: "));
  EXPECT_THAT(complaint(one, link, ""), StartsWith("state_dir: "));
  EXPECT_THAT(complaint(directory_ + "/not/there", directory_ + "/not/there/", ""), StartsWith("state_dir: "));
  EXPECT_THAT(complaint(one, directory_ + "/two", link), StartsWith("disk_dir: is slot_dir itself"));
  EXPECT_THAT(complaint(one, directory_ + "/two", directory_ + "/two"), StartsWith("disk_dir: is state_dir itself"));
}

TEST(ConfigSizes, Table) {
  const std::vector<std::pair<std::string, std::uint64_t>> good{
      {"0", 0},           {"7", 7},          {"7B", 7},          {"1K", 1024},       {"1KiB", 1024},
      {"500MiB", 500u << 20}, {"500 MiB", 500u << 20}, {"1G", 1u << 30}, {"20GiB", 20ull << 30}, {"2T", 2ull << 40},
      {"1TiB", 1ull << 40},   {"18446744073709551615", 18446744073709551615ull}, {"16777215TiB", 16777215ull << 40}};
  for (const auto& [text, bytes] : good) {
    const auto size = parse_size(text);
    ASSERT_TRUE(size) << text;
    EXPECT_EQ(*size, bytes) << text;
  }
  for (const char* text : {"", " ", "GiB", "-1", "+1", "1.5G", "1 X", "1 G B", "1gib", "1KB", " 1", "0x10", "18446744073709551616",
                           "16777216TiB", "99999999999GiB", "1e9", "off"}) {
    EXPECT_FALSE(parse_size(text)) << text;
  }
}

TEST(ConfigInterval, Table) {
  EXPECT_EQ(*parse_interval("off"), 0u);
  EXPECT_EQ(*parse_interval("128"), 128u);
  EXPECT_EQ(*parse_interval("1000000"), 1'000'000u);
  for (const char* text : {"", "0", "127", "-1", "1k", "Off", "4294967296", "1 "}) EXPECT_FALSE(parse_interval(text)) << text;
}

TEST(ConfigListen, Table) {
  struct Row {
    const char* text;
    const char* host;
    int port;
  };
  for (const Row& row : {Row{"127.0.0.1:8081", "127.0.0.1", 8081}, Row{"[::1]:8081", "::1", 8081}, Row{":8081", "0.0.0.0", 8081},
                         Row{"localhost:0", "localhost", 0}, Row{"[::]:65535", "::", 65535}}) {
    const auto address = parse_listen(row.text);
    ASSERT_TRUE(address) << row.text;
    EXPECT_EQ(address->host, row.host);
    EXPECT_EQ(address->port, row.port);
  }
  for (const char* text : {"", "8081", "127.0.0.1", "127.0.0.1:", "127.0.0.1:65536", "127.0.0.1:-1", "127.0.0.1:x", "127.0.0.1:80 ", "[::1]", "[::1]8081"}) {
    EXPECT_FALSE(parse_listen(text)) << text;
  }
}

// The examples are read by users as the reference: they must be true.
TEST_F(ConfigFile, TheExamplesLoadAndMakeSense) {
  for (const char* name : {"/cairn.yaml", "/docker.yaml", "/models.yaml"}) {
    const auto config = load_config(std::string{CAIRN_CONFIG_DIR} + name);
    ASSERT_TRUE(config) << to_string(config.error());
    EXPECT_TRUE(validate(*config)) << name;
  }
}

TEST_F(ConfigFile, EveryKeyOfTheSchemaIsAKeyAndItsDefaultIsTaken) {
  std::ifstream in(std::string{CAIRN_CONFIG_DIR} + "/schema.json");
  const std::string text{std::istreambuf_iterator<char>(in), {}};
  const boost::json::value schema = boost::json::parse(text);
  std::size_t checked = 0;
  for (const auto& [key, about] : schema.at("properties").as_object()) {
    const boost::json::value* fallback = about.as_object().if_contains("default");
    const boost::json::value* examples = about.as_object().if_contains("examples");
    if (fallback == nullptr && examples != nullptr) fallback = &examples->at(0);
    const std::string value = fallback == nullptr ? "word" : boost::json::serialize(*fallback);
    const auto config = load(std::string{key} + ": " + value + "\n");
    EXPECT_TRUE(config) << key << ": " << to_string(config.error());
    ++checked;
  }
  EXPECT_EQ(checked, 29u);  // as many as config.cpp has: a new key belongs into the schema too
}

}  // namespace
}  // namespace cairn

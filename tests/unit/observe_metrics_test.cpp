#include "observe/metrics.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <vector>

namespace cairn {
namespace {

using testing::HasSubstr;

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

// Prometheus' text format 0.0.4: every line a comment or `name{labels} value`, one TYPE a family, before its samples.
void expect_prometheus_text(const std::string& text) {
  static const std::regex comment(R"(# (TYPE [a-zA-Z_:][a-zA-Z0-9_:]* (counter|gauge|histogram)|HELP [a-zA-Z_:][a-zA-Z0-9_:]* .*))");
  static const std::regex sample(
      R"(([a-zA-Z_:][a-zA-Z0-9_:]*)(\{([a-zA-Z_][a-zA-Z0-9_]*="([^"\\\n]|\\.)*"(,[a-zA-Z_][a-zA-Z0-9_]*="([^"\\\n]|\\.)*")*)?\})? (-?[0-9.]+(e[-+]?[0-9]+)?|\+Inf|NaN))");
  std::set<std::string> typed;
  ASSERT_TRUE(text.empty() || text.back() == '\n');
  for (const std::string& line : lines_of(text)) {
    if (line.starts_with("# TYPE ")) EXPECT_TRUE(typed.insert(line.substr(7, line.find(' ', 7) - 7)).second) << line;
    if (line.starts_with("#")) {
      EXPECT_TRUE(std::regex_match(line, comment)) << line;
      continue;
    }
    std::smatch parts;
    ASSERT_TRUE(std::regex_match(line, parts, sample)) << line;
    std::string name = parts[1];
    for (const std::string suffix : {"_bucket", "_sum", "_count"}) {
      if (name.ends_with(suffix) && typed.contains(name.substr(0, name.size() - suffix.size()))) name.resize(name.size() - suffix.size());
    }
    EXPECT_TRUE(typed.contains(name)) << line;
  }
}

TEST(Metrics, NothingYet) {
  const Metrics metrics;
  EXPECT_EQ(metrics.text(), "");
  EXPECT_EQ(metrics.value("cairn_requests_total", ""), 0);
}

TEST(Metrics, Counters) {
  Metrics metrics;
  metrics.add("cairn_tokens_total", "");
  metrics.add("cairn_tokens_total", "", 17402);
  metrics.add("cairn_requests_total", R"(endpoint="chat",outcome="ok")");
  metrics.add("cairn_requests_total", R"(endpoint="chat",outcome="error")", 2);
  EXPECT_EQ(metrics.value("cairn_tokens_total", ""), 17403);
  EXPECT_EQ(metrics.value("cairn_requests_total", R"(endpoint="chat",outcome="error")"), 2);
  EXPECT_EQ(metrics.value("cairn_requests_total", "other"), 0);
  EXPECT_EQ(metrics.text(),
            "# TYPE cairn_requests_total counter\n"
            "cairn_requests_total{endpoint=\"chat\",outcome=\"error\"} 2\n"
            "cairn_requests_total{endpoint=\"chat\",outcome=\"ok\"} 1\n"
            "# TYPE cairn_tokens_total counter\n"
            "cairn_tokens_total 17403\n");
  expect_prometheus_text(metrics.text());
}

TEST(Metrics, BigCountersKeepTheirDigits) {
  Metrics metrics;
  metrics.add("cairn_bytes_total", "", 9007199254740991.0);
  EXPECT_THAT(metrics.text(), HasSubstr("cairn_bytes_total 9007199254740991\n"));
  metrics.add("cairn_huge_total", "", 1e300);
  metrics.add("cairn_small_total", "", 1e-9);
  expect_prometheus_text(metrics.text());
}

TEST(Metrics, HistogramsAreCumulativeAndTheirBoundsInclusive) {
  Metrics metrics;
  for (const double seconds : {0.0, 0.0005, 0.0006, 0.1, 3.0, 600.0, 601.0}) metrics.observe("cairn_step_seconds", R"(step="plan")", seconds);
  const std::string text = metrics.text();
  expect_prometheus_text(text);
  EXPECT_THAT(text, HasSubstr("# TYPE cairn_step_seconds histogram\n"));
  EXPECT_THAT(text, HasSubstr("cairn_step_seconds_bucket{step=\"plan\",le=\"0.0005\"} 2\n"));
  EXPECT_THAT(text, HasSubstr("cairn_step_seconds_bucket{step=\"plan\",le=\"0.001\"} 3\n"));
  EXPECT_THAT(text, HasSubstr("cairn_step_seconds_bucket{step=\"plan\",le=\"0.05\"} 3\n"));
  EXPECT_THAT(text, HasSubstr("cairn_step_seconds_bucket{step=\"plan\",le=\"0.1\"} 4\n"));
  EXPECT_THAT(text, HasSubstr("cairn_step_seconds_bucket{step=\"plan\",le=\"2.5\"} 4\n"));
  EXPECT_THAT(text, HasSubstr("cairn_step_seconds_bucket{step=\"plan\",le=\"10\"} 5\n"));
  EXPECT_THAT(text, HasSubstr("cairn_step_seconds_bucket{step=\"plan\",le=\"600\"} 6\n"));
  EXPECT_THAT(text, HasSubstr("cairn_step_seconds_bucket{step=\"plan\",le=\"+Inf\"} 7\n"));
  EXPECT_THAT(text, HasSubstr("cairn_step_seconds_count{step=\"plan\"} 7\n"));
  EXPECT_THAT(text, HasSubstr("cairn_step_seconds_sum{step=\"plan\"} 1204.10"));
}

TEST(Metrics, HistogramsWithoutLabels) {
  Metrics metrics;
  metrics.observe("cairn_lag_seconds", "", 0.01);
  metrics.observe("cairn_lag_seconds", R"(loop="b")", 0.01);
  expect_prometheus_text(metrics.text());
  EXPECT_THAT(metrics.text(), HasSubstr("cairn_lag_seconds_bucket{le=\"0.01\"} 1\n"));
}

TEST(Metrics, Gauges) {
  std::string out;
  Metrics::write_gauge(out, "cairn_slots", "Slots of the backend.", 4);
  Metrics::write_gauge(out, "cairn_store_bytes", "Bytes of saved states.", 20ull << 30);
  EXPECT_EQ(out,
            "# HELP cairn_slots Slots of the backend.\n# TYPE cairn_slots gauge\ncairn_slots 4\n"
            "# HELP cairn_store_bytes Bytes of saved states.\n# TYPE cairn_store_bytes gauge\ncairn_store_bytes 21474836480\n");
  expect_prometheus_text(out);
}

TEST(Metrics, LabelsInOneFamilyAreApart) {
  Metrics metrics;
  metrics.observe("cairn_step_seconds", R"(step="a")", 1);
  metrics.observe("cairn_step_seconds", R"(step="b")", 1);
  metrics.observe("cairn_step_seconds", R"(step="b")", 1);
  expect_prometheus_text(metrics.text());
  EXPECT_THAT(metrics.text(), HasSubstr("cairn_step_seconds_count{step=\"a\"} 1\n"));
  EXPECT_THAT(metrics.text(), HasSubstr("cairn_step_seconds_count{step=\"b\"} 2\n"));
}

}  // namespace
}  // namespace cairn

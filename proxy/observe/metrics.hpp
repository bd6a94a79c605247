// Counters and histograms of the process, and their Prometheus text.
// Thread: the I/O thread.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace cairn {

class Histogram {
 public:
  void observe(double seconds);
  void write(std::string& out, std::string_view name, std::string_view labels) const;

 private:
  static constexpr std::array<double, 14> bounds{0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05,
                                                 0.1,    0.25,  1,      2.5,   10,   60,    600};
  std::array<std::uint64_t, bounds.size() + 1> buckets_{};
  std::uint64_t count_ = 0;
  double sum_ = 0;
};

class Metrics {
 public:
  // `labels` like `endpoint="chat",outcome="ok"`, or empty.
  void add(std::string_view name, std::string_view labels, double by = 1);
  void observe(std::string_view name, std::string_view labels, double seconds);
  double value(std::string_view name, std::string_view labels) const;  // of a counter; for tests

  // The text exposition format; gauges are written by the caller with write_gauge.
  std::string text() const;
  static void write_gauge(std::string& out, std::string_view name, std::string_view help, double value);
  struct Labelled {
    std::string labels;
    double value = 0;
  };
  static void write_gauges(std::string& out, std::string_view name, std::string_view help, const std::vector<Labelled>& values);

 private:
  // By name, then by labels: the format wants one TYPE line a name.
  std::map<std::string, std::map<std::string, double, std::less<>>, std::less<>> counters_;
  std::map<std::string, std::map<std::string, Histogram, std::less<>>, std::less<>> histograms_;
};

}  // namespace cairn

#include "observe/metrics.hpp"

#include <fmt/format.h>

#include <iterator>

namespace cairn {

void Histogram::observe(double seconds) {
  std::size_t bucket = 0;
  while (bucket < bounds.size() && seconds > bounds[bucket]) ++bucket;
  ++buckets_[bucket];
  ++count_;
  sum_ += seconds;
}

void Histogram::write(std::string& out, std::string_view name, std::string_view labels) const {
  const std::string_view comma = labels.empty() ? "" : ",";
  std::uint64_t below = 0;
  for (std::size_t i = 0; i < bounds.size(); ++i) {
    below += buckets_[i];
    fmt::format_to(std::back_inserter(out), "{}_bucket{{{}{}le=\"{}\"}} {}\n", name, labels, comma, bounds[i], below);
  }
  fmt::format_to(std::back_inserter(out), "{}_bucket{{{}{}le=\"+Inf\"}} {}\n", name, labels, comma, count_);
  fmt::format_to(std::back_inserter(out), "{}_sum{{{}}} {}\n{}_count{{{}}} {}\n", name, labels, sum_, name, labels, count_);
}

void Metrics::add(std::string_view name, std::string_view labels, double by) {
  counters_[std::string{name}][std::string{labels}] += by;
}

void Metrics::observe(std::string_view name, std::string_view labels, double seconds) {
  histograms_[std::string{name}][std::string{labels}].observe(seconds);
}

double Metrics::value(std::string_view name, std::string_view labels) const {
  const auto family = counters_.find(name);
  if (family == counters_.end()) return 0;
  const auto counter = family->second.find(labels);
  return counter == family->second.end() ? 0 : counter->second;
}

std::string Metrics::text() const {
  std::string out;
  for (const auto& [name, family] : counters_) {
    fmt::format_to(std::back_inserter(out), "# TYPE {} counter\n", name);
    for (const auto& [labels, value] : family) {
      if (labels.empty()) fmt::format_to(std::back_inserter(out), "{} {}\n", name, value);
      else fmt::format_to(std::back_inserter(out), "{}{{{}}} {}\n", name, labels, value);
    }
  }
  for (const auto& [name, family] : histograms_) {
    fmt::format_to(std::back_inserter(out), "# TYPE {} histogram\n", name);
    for (const auto& [labels, histogram] : family) histogram.write(out, name, labels);
  }
  return out;
}

void Metrics::write_gauge(std::string& out, std::string_view name, std::string_view help, double value) {
  fmt::format_to(std::back_inserter(out), "# HELP {} {}\n# TYPE {} gauge\n{} {}\n", name, help, name, name, value);
}

void Metrics::write_gauges(std::string& out, std::string_view name, std::string_view help, const std::vector<Labelled>& values) {
  fmt::format_to(std::back_inserter(out), "# HELP {} {}\n# TYPE {} gauge\n", name, help, name);
  for (const Labelled& one : values) fmt::format_to(std::back_inserter(out), "{}{{{}}} {}\n", name, one.labels, one.value);
}

}  // namespace cairn

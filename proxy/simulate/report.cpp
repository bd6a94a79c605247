#include "simulate/report.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>

namespace cairn {

namespace {

constexpr double gib = 1024.0 * 1024 * 1024;

// The largest unit that makes it one at least, up to GiB.
struct Unit {
  const char* name;
  double bytes;
};
Unit unit_of(std::uint64_t bytes) {
  constexpr double kib = 1024, mib = 1024 * kib;
  const auto size = static_cast<double>(bytes);
  if (size >= gib) return {"GiB", gib};
  if (size >= mib) return {"MiB", mib};
  return size >= kib ? Unit{"KiB", kib} : Unit{"bytes", 1};
}

double share(const SimulationReport& report, const SimulationResult& result) {
  return report.unbounded.hit_rate() > 0 ? result.hit_rate() / report.unbounded.hit_rate() : 0;
}

std::string row(const SimulationReport& report, std::string_view policy, std::string_view budget, const SimulationResult& result) {
  return fmt::format("{:<10} {:>12} {:>9.3f} {:>13.3f} {:>18} {:>13.1f} {:>10} {:>13.0f} {:>13.0f}\n", policy, budget, result.hit_rate(), share(report, result),
                     result.prompt_tokens - result.reused_tokens, static_cast<double>(result.written_bytes) / gib, result.evictions,
                     result.written_s, result.saved_s());
}

std::string escaped(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == '<') out += "&lt;";
    else if (c == '&') out += "&amp;";
    else out += c;
  }
  return out;
}

std::string json_of(const SimulationResult& result) {
  return fmt::format(
      R"("hit_rate":{:.6f},"recomputed_tokens":{},"reused_tokens":{},"written_bytes":{},"saves":{},"evictions":{},"cuts":{},"superseded":{},)"
      R"("held_bytes":{},"cold_seconds":{:.3f},"computed_seconds":{:.3f},"restore_seconds":{:.3f},"save_seconds":{:.3f},"saved_seconds":{:.3f})",
      result.hit_rate(), result.prompt_tokens - result.reused_tokens, result.reused_tokens, result.written_bytes, result.saves, result.evictions,
      result.cuts, result.superseded, result.held_bytes, result.cold_s, result.computed_s, result.restored_s, result.written_s,
      result.saved_s());
}

}  // namespace

std::string to_table(const SimulationReport& report) {
  std::string out = fmt::format("{} requests in {:.0f} s, {} prompt tokens, {} distinct\n\n", report.unbounded.requests, report.span_s,
                                report.unbounded.prompt_tokens, report.distinct_tokens);
  out += fmt::format("{:<10} {:>12} {:>9} {:>13} {:>18} {:>13} {:>10} {:>13} {:>13}\n", "policy", "budget", "hit rate", "of unbounded", "recomputed tokens",
                     "written GiB", "evictions", "writing s", "saved s");
  for (const SimulationReport::Run& run : report.runs) {
    const Unit unit = unit_of(run.budget_bytes);
    out += row(report, run.policy, fmt::format("{:.2f} {}", static_cast<double>(run.budget_bytes) / unit.bytes, unit.name), run.result);
  }
  return out + row(report, "-", "unbounded", report.unbounded);
}

std::string to_json(const SimulationReport& report) {
  std::string runs;
  for (const SimulationReport::Run& run : report.runs) {
    runs += fmt::format(R"({}{{"policy":"{}","budget_bytes":{},"share_of_unbounded":{:.6f},{}}})", runs.empty() ? "" : ",", run.policy, run.budget_bytes,
                        share(report, run.result), json_of(run.result));
  }
  return fmt::format(R"({{"requests":{},"span_seconds":{:.3f},"prompt_tokens":{},"distinct_tokens":{},"unbounded":{{{}}},"runs":[{}]}})", report.unbounded.requests,
                     report.span_s, report.unbounded.prompt_tokens, report.distinct_tokens, json_of(report.unbounded), runs);
}

std::string to_svg(const SimulationReport& report, std::string_view title) {
  constexpr double left = 60, top = 40, width = 520, height = 300;
  constexpr std::array<std::string_view, 4> colours{"#1b6ca8", "#c0392b", "#7d8a2e", "#8e44ad"};
  std::uint64_t largest = 1;
  for (const SimulationReport::Run& run : report.runs) largest = std::max(largest, run.budget_bytes);
  const Unit unit = unit_of(largest);
  const double highest = std::max(report.unbounded.hit_rate(), 0.01) * 1.1;
  const auto x = [&](std::uint64_t bytes) { return left + width * static_cast<double>(bytes) / static_cast<double>(largest); };
  const auto y = [&](double rate) { return top + height * (1 - rate / highest); };

  std::string out = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 700 400\" font-family=\"sans-serif\" font-size=\"12\">\n"
      "<rect width=\"700\" height=\"400\" fill=\"white\"/>\n<text x=\"{}\" y=\"22\" font-size=\"15\">{}</text>\n"
      "<path d=\"M{} {}V{}H{}\" fill=\"none\" stroke=\"black\"/>\n",
      left, escaped(title), left, top, top + height, left + width);
  constexpr int ticks = 5;
  for (int i = 0; i <= ticks; ++i) {
    const double rate = highest * i / ticks;
    const auto bytes = static_cast<std::uint64_t>(static_cast<double>(largest) * i / ticks);
    out += fmt::format("<text x=\"{:.0f}\" y=\"{:.0f}\" text-anchor=\"end\">{:.2f}</text>\n", left - 6, y(rate) + 4, rate);
    out += fmt::format("<text x=\"{:.0f}\" y=\"{:.0f}\" text-anchor=\"middle\">{:.1f}</text>\n", x(bytes), top + height + 18,
                       static_cast<double>(bytes) / unit.bytes);
  }
  out += fmt::format("<text x=\"{:.0f}\" y=\"{:.0f}\" text-anchor=\"middle\">budget, {}</text>\n", left + width / 2, top + height + 38, unit.name);
  out += fmt::format("<text x=\"6\" y=\"{:.0f}\">hit rate</text>\n", top - 8);
  out += fmt::format("<path d=\"M{} {:.1f}H{}\" stroke=\"gray\" stroke-dasharray=\"5 4\"/><text x=\"{}\" y=\"{:.1f}\" fill=\"gray\">unbounded</text>\n", left,
                     y(report.unbounded.hit_rate()), left + width, left + width + 6, y(report.unbounded.hit_rate()) + 4);
  std::vector<std::string_view> policies;
  for (const SimulationReport::Run& run : report.runs) {
    if (std::find(policies.begin(), policies.end(), run.policy) == policies.end()) policies.push_back(run.policy);
  }
  for (std::size_t i = 0; i < policies.size(); ++i) {
    const std::string_view colour = colours[i % colours.size()];
    std::string points;
    for (const SimulationReport::Run& run : report.runs) {
      if (run.policy != policies[i]) continue;
      points += fmt::format("{:.1f},{:.1f} ", x(run.budget_bytes), y(run.result.hit_rate()));
      out += fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"3\" fill=\"{}\"/>\n", x(run.budget_bytes), y(run.result.hit_rate()), colour);
    }
    out += fmt::format("<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"2\"/>\n", points, colour);
    out += fmt::format("<text x=\"{}\" y=\"{}\" fill=\"{}\">{}</text>\n", left + width + 6, top + height - 80 + 18 * static_cast<double>(i), colour, policies[i]);
  }
  return out + "</svg>\n";
}

}  // namespace cairn

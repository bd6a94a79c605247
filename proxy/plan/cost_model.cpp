#include "plan/cost_model.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstdio>

namespace cairn {

namespace {
// Before the first sample: a laptop with a small model. Wrong by a factor of ten either way, it still picks a restore over
// recomputing a long prompt, and is corrected by the first answers.
constexpr std::array<double, 3> prefill_prior{1.0 / 1000, 1e-8, 0.006};
// One long prompt that took longer than thought speaks of the rate, not of the cost of a piece.
constexpr std::array<double, 3> prefill_scale{1000, 1000.0 * 8000, 3};
constexpr std::array<double, 2> save_prior{0.01, 1.0 / 1e9};
constexpr std::array<double, 2> restore_prior{0.01, 1.0 / 1.5e9};
constexpr std::array<double, 2> commit_prior{0.004, 1.0 / 2e9};
constexpr std::array<double, 2> bytes_scale{1, 50e6};
constexpr std::array<double, 2> state_prior{1e6, 20e3};
constexpr std::array<double, 2> state_scale{1, 4000};
constexpr double context_checkpoint_prior = 1e6;  // bytes
constexpr double most_overhead_s = 0.1;           // what takes longer waited for something else

double relative_weight(double y, double floor) {
  const double bounded = std::max(y, floor);
  return 1.0 / (bounded * bounded);
}
}  // namespace

CostModel::CostModel()
    : prefill_(prefill_prior, prefill_scale),
      save_(save_prior, bytes_scale),
      restore_(restore_prior, bytes_scale),
      commit_(commit_prior, bytes_scale),
      state_(state_prior, state_scale, 0.995, 0.01),
      context_checkpoint_bytes_(context_checkpoint_prior) {}

void CostModel::expect_state(double base_bytes, double bytes_a_token) {
  if (bytes_a_token > 0 && state_.samples() == 0) state_.set_prior({base_bytes, bytes_a_token});
}

void CostModel::expect_context_checkpoints(double bytes) {
  context_checkpoint_bytes_ = std::max(context_checkpoint_bytes_, bytes);
}

void CostModel::observe_prefill(double from, double tokens, double seconds) {
  if (tokens < 1 || seconds <= 0) return;
  prefill_.add({tokens, tokens * (from + tokens / 2), 1}, seconds, relative_weight(seconds, 0.005));
  // Pieces of like size say nothing of their rate: on a machine that has just become busy the fit takes it all for the cost of a
  // request, and nothing seems worth bringing back. The dearest seen costs what 2,100 tokens do (0.17 s, a hybrid on an H100).
  constexpr double most_tokens = 3000;
  if (prefill_.weights()[2] > most_tokens * prefill_.weights()[0]) prefill_.hold({most_tokens, 0, -1});
}
void CostModel::observe_save(double bytes, double seconds) {
  if (bytes > 0 && seconds >= 0) save_.add({1, bytes}, seconds, relative_weight(seconds, 0.002));
}
void CostModel::observe_restore(double bytes, double seconds) {
  if (bytes > 0 && seconds >= 0) restore_.add({1, bytes}, seconds, relative_weight(seconds, 0.002));
}
void CostModel::observe_commit(double bytes, double seconds) {
  if (bytes > 0 && seconds >= 0) commit_.add({1, bytes}, seconds, relative_weight(seconds, 0.002));
}
void CostModel::observe_piece_overhead(double seconds) {
  constexpr double newest = 0.1;
  if (seconds >= 0) piece_overhead_s_ += newest * (std::min(seconds, most_overhead_s) - piece_overhead_s_);
}
void CostModel::observe_state(double tokens, double context_checkpoints, double context_checkpoint_bytes, double bytes) {
  if (!(tokens > 0) || !(bytes > context_checkpoint_bytes) || !(context_checkpoint_bytes >= 0)) return;
  if (context_checkpoints > 0 && context_checkpoint_bytes == 0) return;
  const double rest = bytes - context_checkpoint_bytes;
  state_.add({1, tokens}, rest, relative_weight(rest, 1000));
  // Of a recurrent model all are alike; those of a sliding window grow until it is full.
  constexpr double newest = 0.5;
  if (context_checkpoints > 0) context_checkpoint_bytes_ += newest * (context_checkpoint_bytes / context_checkpoints - context_checkpoint_bytes_);
}

double CostModel::prefill_seconds(double from, double to) const {
  const double tokens = to - from;
  if (tokens <= 0) return 0;
  // Never negative, and never free: a fit through few samples can bend below zero at the far end.
  return std::max(prefill_.predict({tokens, tokens * (from + tokens / 2), 1}), tokens * 1e-6);
}
double CostModel::piece_seconds() const { return std::max(prefill_.weights()[2], 0.0005); }
double CostModel::boundary_seconds() const {
  // llama-server ends each piece with batches of its own for its two context checkpoints (at -4 and -(4 + ubatch)): on two
  // cores 8, 15 and 20 ms a cut where a request of a few tokens takes 5 to 8 (mamba2, granitehybrid, gemma3; build 11669).
  constexpr double batches_more = 2.0;
  // Copying is part of what the samples of pieces show, but short prompts, which copy less, outweigh them. From GPU memory
  // context checkpoints come at 1 to 1.4 GB/s: a cut of a hybrid whose checkpoints have 77 MB took 110 to 170 ms on an H100.
  constexpr double copy_s_per_byte = 1e-9;
  const double copy_s = 2 * context_checkpoint_bytes() * copy_s_per_byte;
  // On a busy machine a few slow short requests look like dear pieces: small batches cost no more than some tens of tokens do.
  constexpr double most_tokens = 48;
  const double most_s = most_tokens * prefill_seconds(0, 1000) / 1000;
  return std::max(std::min(batches_more * piece_seconds(), most_s), copy_s) + piece_overhead_s_;
}
double CostModel::save_seconds(double bytes) const { return std::max(save_.predict({1, bytes}), bytes * 1e-11); }
double CostModel::commit_seconds(double bytes) const { return std::max(commit_.predict({1, bytes}), bytes * 1e-11); }
double CostModel::restore_seconds(double bytes) const { return std::max(restore_.predict({1, bytes}), bytes * 1e-11); }
double CostModel::state_bytes(double tokens, double context_checkpoints) const {
  return std::max(state_.predict({1, tokens}), 4 * tokens) + context_checkpoints * context_checkpoint_bytes_;
}
double CostModel::context_checkpoint_bytes() const { return context_checkpoint_bytes_; }

std::string CostModel::to_json() const {
  const auto& p = prefill_.weights();
  const auto& s = save_.weights();
  const auto& r = restore_.weights();
  const auto& b = state_.weights();
  const auto& c = commit_.weights();
  return fmt::format(
      R"({{"prefill":[{:.6g},{:.6g},{:.6g}],"save":[{:.6g},{:.6g}],"restore":[{:.6g},{:.6g}],"state":[{:.6g},{:.6g},{:.6g}],"commit":[{:.6g},{:.6g}],"overhead":{:.6g}}})",
      p[0], p[1], p[2], s[0], s[1], r[0], r[1], b[0], b[1], context_checkpoint_bytes_, c[0], c[1], piece_overhead_s_);
}

bool CostModel::load(std::string_view json) {
  const std::string text{json};
  std::array<double, 3> p{};
  std::array<double, 2> s{};
  std::array<double, 2> r{};
  std::array<double, 2> b{};
  std::array<double, 2> c{};
  double inside = 0;
  double overhead = piece_overhead_s_;
  const int read = std::sscanf(
      text.c_str(), R"({"prefill":[%lf,%lf,%lf],"save":[%lf,%lf],"restore":[%lf,%lf],"state":[%lf,%lf,%lf],"commit":[%lf,%lf],"overhead":%lf})", &p[0], &p[1],
      &p[2], &s[0], &s[1], &r[0], &r[1], &b[0], &b[1], &inside, &c[0], &c[1], &overhead);
  constexpr int without_commit = 10, without_overhead = 12;  // as it was written before these were timed, or kept
  if ((read != without_commit && read != without_overhead && read != without_overhead + 1) || !(inside >= 0) || !(overhead >= 0)) return false;
  prefill_.set_prior(p);
  save_.set_prior(s);
  restore_.set_prior(r);
  state_.set_prior(b);
  if (read != without_commit) commit_.set_prior(c);
  context_checkpoint_bytes_ = inside;
  piece_overhead_s_ = std::min(overhead, most_overhead_s);
  return true;
}

}  // namespace cairn

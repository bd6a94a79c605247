// A small linear model learned sample by sample, older samples forgotten slowly: the rates of a backend drift with its load.
#pragma once

#include <array>
#include <cmath>
#include <cstddef>

namespace cairn {

// y = sum(weight[i] * x[i]). Normal equations with exponential forgetting and a ridge towards the prior, so that it
// predicts sensibly before the first sample and stays solvable when the samples all look alike.
template <std::size_t N>
class LeastSquares {
 public:
  using Vector = std::array<double, N>;

  // `scale[i]`: a typical value of x[i], so that the ridge weighs alike in every direction.
  LeastSquares(Vector prior, Vector scale, double forget = 0.98, double ridge = 0.3)
      : prior_(prior), scale_(scale), forget_(forget), ridge_(ridge), weights_(prior) {}

  // `weight` of the sample; use 1/y^2 to make errors relative.
  void add(const Vector& x, double y, double weight = 1.0) {
    Vector z{};
    for (std::size_t i = 0; i < N; ++i) z[i] = x[i] / scale_[i];
    // Learn the deviation from the prior.
    double deviation = y;
    for (std::size_t i = 0; i < N; ++i) deviation -= prior_[i] * x[i];
    for (std::size_t i = 0; i < N; ++i) {
      for (std::size_t j = 0; j < N; ++j) a_[i][j] = forget_ * a_[i][j] + weight * z[i] * z[j];
      b_[i] = forget_ * b_[i] + weight * z[i] * deviation;
    }
    weight_sum_ = forget_ * weight_sum_ + weight;
    ++samples_;
    solve([](std::size_t, std::size_t) { return 0.0; });
  }

  // The weights become the best ones with `row` x weights = 0, until the next sample.
  void hold(const Vector& row) {
    Vector z{};
    double deviation = 0;
    double length = 0;
    for (std::size_t i = 0; i < N; ++i) {
      z[i] = row[i] / scale_[i];
      deviation -= prior_[i] * row[i];
      length += z[i] * z[i];
    }
    if (length == 0) return;
    // As a sample of far more weight than all others.
    const double weight = 1e6 * weight_sum_ / length;
    solve([&](std::size_t i, std::size_t j) { return weight * z[i] * (j < N ? z[j] : deviation); });
  }

  double predict(const Vector& x) const {
    double y = 0;
    for (std::size_t i = 0; i < N; ++i) y += weights_[i] * x[i];
    return y;
  }
  const Vector& weights() const { return weights_; }
  std::size_t samples() const { return samples_; }

  // For keeping across restarts: the weights become the prior of the next process.
  void set_prior(const Vector& prior) {
    prior_ = prior;
    weights_ = prior;
    a_ = {};
    b_ = {};
    weight_sum_ = 0;
  }

 private:
  // `more(i, j)` is added to the equations; j = N: to their right side.
  template <typename More>
  void solve(const More& more) {
    std::array<std::array<double, N + 1>, N> m{};
    // The ridge is a fraction of one average sample.
    const double ridge = ridge_ * weight_sum_ / static_cast<double>(samples_ < 20 ? samples_ : 20) * 0.1 + 1e-12 * weight_sum_;
    for (std::size_t i = 0; i < N; ++i) {
      for (std::size_t j = 0; j < N; ++j) m[i][j] = a_[i][j] + (i == j ? ridge : 0.0) + more(i, j);
      m[i][N] = b_[i] + more(i, N);
    }
    for (std::size_t column = 0; column < N; ++column) {
      std::size_t pivot = column;
      for (std::size_t row = column + 1; row < N; ++row) {
        if (std::abs(m[row][column]) > std::abs(m[pivot][column])) pivot = row;
      }
      std::swap(m[pivot], m[column]);
      if (std::abs(m[column][column]) < 1e-300) return;
      for (std::size_t row = 0; row < N; ++row) {
        if (row == column) continue;
        const double factor = m[row][column] / m[column][column];
        for (std::size_t j = column; j <= N; ++j) m[row][j] -= factor * m[column][j];
      }
    }
    for (std::size_t i = 0; i < N; ++i) weights_[i] = prior_[i] + m[i][N] / m[i][i] / scale_[i];
  }

  Vector prior_;
  Vector scale_;
  double forget_;
  double ridge_;
  Vector weights_;
  std::array<Vector, N> a_{};
  Vector b_{};
  double weight_sum_ = 0;
  std::size_t samples_ = 0;
};

}  // namespace cairn

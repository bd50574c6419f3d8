#include "engine/kernels/reference.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace scion::kernels::reference {

std::vector<double> MatMul(std::span<const float> x, std::span<const float> w, int rows, int out_features,
                           int in_features) {
  const size_t k_count = static_cast<size_t>(in_features);
  const size_t n_count = static_cast<size_t>(out_features);
  std::vector<double> y(static_cast<size_t>(rows) * n_count);
  for (size_t r = 0; r < static_cast<size_t>(rows); ++r) {
    for (size_t n = 0; n < n_count; ++n) {
      double sum = 0;
      for (size_t k = 0; k < k_count; ++k) sum += static_cast<double>(x[r * k_count + k]) * w[n * k_count + k];
      y[r * n_count + n] = sum;
    }
  }
  return y;
}

std::vector<double> MatMulSwiglu(std::span<const float> x, std::span<const float> gate, std::span<const float> up,
                                 int rows, int out_features, int in_features) {
  std::vector<double> y = MatMul(x, gate, rows, out_features, in_features);
  const std::vector<double> u = MatMul(x, up, rows, out_features, in_features);
  for (size_t i = 0; i < y.size(); ++i) y[i] = y[i] / (1.0 + std::exp(-y[i])) * u[i];
  return y;
}

std::vector<double> RmsNorm(std::span<const float> x, std::span<const float> weight, double eps) {
  double squares = 0;
  for (float v : x) squares += static_cast<double>(v) * v;
  const double scale = 1.0 / std::sqrt(squares / static_cast<double>(x.size()) + eps);
  std::vector<double> y(x.size());
  for (size_t i = 0; i < x.size(); ++i) y[i] = x[i] * scale * weight[i];
  return y;
}

std::vector<double> Rope(std::span<const float> head, std::span<const float> cos, std::span<const float> sin) {
  const size_t half = head.size() / 2;
  std::vector<double> y(head.size());
  for (size_t i = 0; i < half; ++i) {
    const double a = head[i], b = head[i + half];
    y[i] = a * cos[i] - b * sin[i];
    y[i + half] = b * cos[i] + a * sin[i];
  }
  return y;
}

std::vector<double> Attend(std::span<const float> q, std::span<const float> k, std::span<const float> v, int tokens,
                           double scale) {
  const size_t head_dim = q.size();
  std::vector<double> weights(static_cast<size_t>(tokens));
  for (size_t t = 0; t < weights.size(); ++t) {
    double score = 0;
    for (size_t d = 0; d < head_dim; ++d) score += static_cast<double>(q[d]) * k[t * head_dim + d];
    weights[t] = score * scale;
  }
  const double largest = *std::max_element(weights.begin(), weights.end());
  double sum = 0;
  for (double& w : weights) sum += w = std::exp(w - largest);
  std::vector<double> y(head_dim);
  for (size_t t = 0; t < weights.size(); ++t) {
    for (size_t d = 0; d < head_dim; ++d) y[d] += weights[t] / sum * v[t * head_dim + d];
  }
  return y;
}

double LogSumExp(std::span<const float> x) {
  const double largest = *std::max_element(x.begin(), x.end());
  double sum = 0;
  for (float v : x) sum += std::exp(v - largest);
  return largest + std::log(sum);
}

int Argmax(std::span<const float> x) {
  int best = 0;
  float largest = -std::numeric_limits<float>::infinity();
  bool found = false;
  for (size_t i = 0; i < x.size(); ++i) {
    if (std::isnan(x[i]) || (found && !(x[i] > largest))) continue;
    best = static_cast<int>(i);
    largest = x[i];
    found = true;
  }
  return best;
}

}  // namespace scion::kernels::reference

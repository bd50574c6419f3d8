// The naive version of every kernel: plain loops in double precision, on plain row-major memory. The truth in tests.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace scion::kernels::reference {

// y [rows, out_features] = x [rows, in_features] w^T, w [out_features, in_features].
std::vector<double> MatMul(std::span<const float> x, std::span<const float> w, int rows, int out_features,
                           int in_features);
// silu(x gate^T) * (x up^T)
std::vector<double> MatMulSwiglu(std::span<const float> x, std::span<const float> gate, std::span<const float> up,
                                 int rows, int out_features, int in_features);
std::vector<double> RmsNorm(std::span<const float> x, std::span<const float> weight, double eps);
// One head [head_dim], halves paired (i, i + head_dim/2).
std::vector<double> Rope(std::span<const float> head, std::span<const float> cos, std::span<const float> sin);
// One query head [head_dim] over k, v [tokens, head_dim].
std::vector<double> Attend(std::span<const float> q, std::span<const float> k, std::span<const float> v, int tokens,
                           double scale);
double LogSumExp(std::span<const float> x);
// The lowest index among the largest elements; NaN never wins; 0 if all are NaN.
int Argmax(std::span<const float> x);

}  // namespace scion::kernels::reference

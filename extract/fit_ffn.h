// Fits one FFN to what it ought to give on given inputs: a regression of one layer, in fp32 products and fp64 solves.
// The same bits for any number of threads.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "extract/float_matrix.h"
#include "extract/layerwise_forward.h"
#include "extract/matrix_ops.h"
#include "extract/progress.h"

namespace scion {

// Rows of inputs, what each should give, and how much each counts.
struct FitRows {
  FloatMatrix inputs;          // [rows, in_features]
  FloatMatrix targets;         // [rows, hidden_size]
  std::vector<float> weights;  // [rows], positive
};

// A regression whose rows are made when they are asked for: all of them at once may be more than memory holds.
struct FitProblem {
  int num_rows = 0;
  // Puts the rows of these numbers into `out`, in this order.
  std::function<absl::Status(std::span<const int> rows, FitRows& out)> read;
};

// sum of weight |ffn(input) - target|^2 over sum of weight |target|^2.
absl::StatusOr<double> RelativeError(const FitProblem& problem, const FfnMatrices& ffn, MatrixOps& ops);

// The best down projection for gate and up as they are: ridge regression towards the present one, from normal equations
// that are summed over batches of rows. ridge: of the mean of the diagonal, positive. Internal if they can't be solved.
absl::Status SolveDown(const FitProblem& problem, double ridge, FfnMatrices& ffn, MatrixOps& ops);

struct RefineOptions {
  int batch_rows = 1024;
  int64_t steps = 0;
  double learning_rate = 6e-2;  // of a matrix's root mean square, at the beginning; falls to zero in a straight line
  uint64_t seed = 1;
  // [hidden_size, hidden_size], symmetric, positive: errors e cost e metric e^T. Null: |e|^2.
  const FloatMatrix* metric = nullptr;
};

// Betters gate, up and down together on batches of rows chosen at random. Each step moves a matrix by its gradient's
// momentum made orthogonal (Muon), so that directions in which the inputs are small move as fast as any. Cancelled
// after RequestCancel.
absl::Status RefineFfn(const FitProblem& problem, const RefineOptions& options, FfnMatrices& ffn, MatrixOps& ops,
                       Progress& progress);

}  // namespace scion

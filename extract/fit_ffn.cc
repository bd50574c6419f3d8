#include "extract/fit_ffn.h"

#include <Eigen/Cholesky>
#include <algorithm>
#include <cmath>
#include <numeric>
#include <span>
#include <utility>

#include "engine/base/status.h"
#include "extract/digest_file.h"

namespace scion {
namespace {

constexpr int kBatchRows = 4096;
// Of the products in a step: what they round off is far less than what a batch's choice of rows changes.
constexpr auto kStepType = kernels::WeightType::kBF16;

// Calls fn(rows) for all rows in order.
template <typename Fn>
absl::Status ForBatches(const FitProblem& problem, Fn&& fn) {
  FitRows batch;
  for (int begin = 0; begin < problem.num_rows; begin += kBatchRows) {
    if (CancelRequested()) return absl::CancelledError("interrupted while a layer was fitted");
    std::vector<int> rows(static_cast<size_t>(std::min(kBatchRows, problem.num_rows - begin)));
    std::iota(rows.begin(), rows.end(), begin);
    SCION_RETURN_IF_ERROR(problem.read(rows, batch));
    SCION_RETURN_IF_ERROR(fn(batch));
  }
  return absl::OkStatus();
}

// Hidden activations of a batch: gate and up are what the products give, hidden = gate * sigmoid(gate) * up.
struct Hidden {
  FloatMatrix gate, up, sigmoid, hidden;
};

absl::Status ComputeHidden(const FfnMatrices& ffn, const FloatMatrix& inputs, kernels::WeightType type, MatrixOps& ops,
                           Hidden& out) {
  SCION_RETURN_IF_ERROR(ops.MultiplyTransposed(inputs, ffn.gate, out.gate, type));
  SCION_RETURN_IF_ERROR(ops.MultiplyTransposed(inputs, ffn.up, out.up, type));
  out.sigmoid.Resize(out.gate.rows, out.gate.cols);
  out.hidden.Resize(out.gate.rows, out.gate.cols);
  ops.ForEach(out.gate.rows, [&](int i) {
    const std::span<const float> gate = out.gate.row(i), up = out.up.row(i);
    const std::span<float> sigmoid = out.sigmoid.row(i), hidden = out.hidden.row(i);
    for (size_t j = 0; j < gate.size(); ++j) {
      sigmoid[j] = 1.0f / (1.0f + std::exp(-gate[j]));
      hidden[j] = gate[j] * sigmoid[j] * up[j];
    }
  });
  return absl::OkStatus();
}

void ScaleRows(FloatMatrix& m, std::span<const float> scale, MatrixOps& ops) {
  ops.ForEach(m.rows, [&](int i) {
    for (float& v : m.row(i)) v *= scale[static_cast<size_t>(i)];
  });
}

void AddTo(Eigen::MatrixXd& sum, const FloatMatrix& m, MatrixOps& ops) {
  ops.ForEach(m.rows, [&](int i) {
    const std::span<const float> row = m.row(i);
    for (size_t j = 0; j < row.size(); ++j) sum(static_cast<Eigen::Index>(j), i) += static_cast<double>(row[j]);
  });
}

// Makes all of x's singular values nearly 1, and keeps its singular vectors: five Newton-Schulz steps with the
// coefficients of Muon (K. Jordan et al., 2024), which send singular values from 0.01 to 1 to between 0.7 and 1.2.
absl::Status Orthogonalize(FloatMatrix& x, MatrixOps& ops) {
  constexpr int kSteps = 5;
  constexpr float kLinear = 3.4445f, kCubic = -4.7750f, kQuintic = 2.0315f;
  double sum = 0;
  for (const float v : x.data) sum += static_cast<double>(v) * static_cast<double>(v);
  if (!(sum > 0)) return absl::OkStatus();
  FloatMatrix transposed, square, fourth, change;
  const bool is_tall = x.rows > x.cols;
  if (is_tall) {
    ops.Transpose(x, transposed);
    std::swap(x, transposed);
  }
  const float scale = static_cast<float>(1 / std::sqrt(sum));
  for (float& v : x.data) v *= scale;
  for (int step = 0; step < kSteps; ++step) {  // x = (linear + cubic x x^T + quintic (x x^T)^2) x
    SCION_RETURN_IF_ERROR(ops.MultiplyTransposed(x, x, square, kStepType));
    SCION_RETURN_IF_ERROR(ops.MultiplyTransposed(square, square, fourth, kStepType));
    for (size_t i = 0; i < square.data.size(); ++i)
      square.data[i] = kCubic * square.data[i] + kQuintic * fourth.data[i];
    ops.Transpose(x, transposed);
    SCION_RETURN_IF_ERROR(ops.MultiplyTransposed(square, transposed, change, kStepType));
    for (size_t i = 0; i < x.data.size(); ++i) x.data[i] = kLinear * x.data[i] + change.data[i];
  }
  if (is_tall) {
    ops.Transpose(x, transposed);
    std::swap(x, transposed);
  }
  return absl::OkStatus();
}

// One parameter matrix and the gradients' momentum.
class MuonState {
 public:
  // columns: of those, from the first, the root mean square decides how far a step goes.
  MuonState(FloatMatrix& value, int columns) : value_(value), momentum_(value.rows, value.cols) {
    double sum = 0;
    for (int i = 0; i < value.rows; ++i) {
      for (const float v : value.row(i).first(static_cast<size_t>(columns)))
        sum += static_cast<double>(v) * static_cast<double>(v);
    }
    // An orthogonal matrix of this shape, times the square root of its longer side, has a root mean square of 1.
    size_ = static_cast<float>(std::sqrt(sum / (static_cast<double>(value.rows) * columns)) *
                               std::sqrt(static_cast<double>(std::max(value.rows, value.cols))));
  }

  absl::Status Step(const FloatMatrix& gradient, double learning_rate, MatrixOps& ops) {
    constexpr float kDecay = 0.95f;
    update_.Resize(gradient.rows, gradient.cols);
    for (size_t i = 0; i < gradient.data.size(); ++i) {
      const float g = gradient.data[i];
      momentum_.data[i] = kDecay * momentum_.data[i] + g;
      update_.data[i] = kDecay * momentum_.data[i] + g;
    }
    SCION_RETURN_IF_ERROR(Orthogonalize(update_, ops));
    const float rate = static_cast<float>(learning_rate) * size_;
    for (size_t i = 0; i < value_.data.size(); ++i) value_.data[i] -= rate * update_.data[i];
    return absl::OkStatus();
  }

 private:
  FloatMatrix& value_;
  FloatMatrix momentum_, update_;
  float size_;
};

// Row numbers in an order that only the seed decides, begun anew when all have been taken.
class Shuffle {
 public:
  Shuffle(int rows, uint64_t seed) : order_(static_cast<size_t>(rows)), state_(seed), next_(order_.size()) {
    std::iota(order_.begin(), order_.end(), 0);
  }
  int Next() {
    if (next_ == order_.size()) {
      for (size_t i = order_.size(); i > 1; --i) std::swap(order_[i - 1], order_[Random() % i]);
      next_ = 0;
    }
    return order_[next_++];
  }

 private:
  uint64_t Random() {  // SplitMix64
    state_ += 0x9e3779b97f4a7c15u;
    uint64_t z = state_;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }

  std::vector<int> order_;
  uint64_t state_;
  size_t next_;
};

}  // namespace

absl::StatusOr<double> RelativeError(const FitProblem& problem, const FfnMatrices& ffn, MatrixOps& ops) {
  double error = 0, whole = 0;
  FloatMatrix out;
  SCION_RETURN_IF_ERROR(ForBatches(problem, [&](const FitRows& batch) {
    SCION_RETURN_IF_ERROR(ApplyFfn(ffn, batch.inputs, ops, out));
    for (int i = 0; i < out.rows; ++i) {
      double row_error = 0, row_whole = 0;
      for (size_t k = 0; k < static_cast<size_t>(out.cols); ++k) {
        const double target = static_cast<double>(batch.targets.row(i)[k]);
        const double difference = static_cast<double>(out.row(i)[k]) - target;
        row_error += difference * difference;
        row_whole += target * target;
      }
      error += static_cast<double>(batch.weights[static_cast<size_t>(i)]) * row_error;
      whole += static_cast<double>(batch.weights[static_cast<size_t>(i)]) * row_whole;
    }
    return absl::OkStatus();
  }));
  return whole > 0 ? error / whole : 0.0;
}

absl::Status SolveDown(const FitProblem& problem, double ridge, FfnMatrices& ffn, MatrixOps& ops) {
  const Eigen::Index neurons = ffn.gate.rows, hidden = ffn.down.rows;
  Eigen::MatrixXd normal = Eigen::MatrixXd::Zero(neurons, neurons), right = Eigen::MatrixXd::Zero(neurons, hidden);
  Hidden h;
  FloatMatrix hidden_transposed, targets_transposed, product;
  SCION_RETURN_IF_ERROR(ForBatches(problem, [&](FitRows& batch) {
    SCION_RETURN_IF_ERROR(ComputeHidden(ffn, batch.inputs, kernels::WeightType::kF32, ops, h));
    std::vector<float> roots(batch.weights.size());
    std::ranges::transform(batch.weights, roots.begin(), [](float w) { return std::sqrt(w); });
    ScaleRows(h.hidden, roots, ops);
    ScaleRows(batch.targets, roots, ops);
    ops.Transpose(h.hidden, hidden_transposed);
    ops.Transpose(batch.targets, targets_transposed);
    SCION_RETURN_IF_ERROR(ops.MultiplyTransposed(hidden_transposed, hidden_transposed, product));
    AddTo(normal, product, ops);
    SCION_RETURN_IF_ERROR(ops.MultiplyTransposed(targets_transposed, hidden_transposed, product));
    AddTo(right, product, ops);
    return absl::OkStatus();
  }));
  const double weight = std::max(ridge * normal.trace() / static_cast<double>(neurons), 1e-30);
  normal.diagonal().array() += weight;
  for (Eigen::Index k = 0; k < hidden; ++k) {
    const std::span<const float> row = ffn.down.row(static_cast<int>(k));
    for (Eigen::Index j = 0; j < neurons; ++j) right(j, k) += weight * static_cast<double>(row[static_cast<size_t>(j)]);
  }
  const Eigen::LLT<Eigen::MatrixXd> cholesky(normal);
  const Eigen::MatrixXd down = cholesky.solve(right);
  if (cholesky.info() != Eigen::Success || !down.allFinite()) {
    return absl::InternalError("a layer's normal equations can't be solved");
  }
  for (Eigen::Index k = 0; k < hidden; ++k) {
    const std::span<float> row = ffn.down.row(static_cast<int>(k));
    for (Eigen::Index j = 0; j < neurons; ++j) row[static_cast<size_t>(j)] = static_cast<float>(down(j, k));
  }
  return absl::OkStatus();
}

absl::Status RefineFfn(const FitProblem& problem, const RefineOptions& options, FfnMatrices& ffn, MatrixOps& ops,
                       Progress& progress) {
  const int rows = std::min(options.batch_rows, problem.num_rows);
  Shuffle shuffle(problem.num_rows, options.seed);
  // What silences neurons, behind the hidden units, is far larger than other weights.
  const int hidden = ffn.down.rows;
  MuonState gate_state(ffn.gate, hidden), up_state(ffn.up, hidden), down_state(ffn.down, ffn.down.cols);
  FitRows batch;
  Hidden h;
  FloatMatrix out, weighed, error_transposed, hidden_transposed, inputs_transposed, down_transposed, back, gradient;
  FloatMatrix gate_back, up_back, part;
  std::vector<int> chosen(static_cast<size_t>(rows));
  for (int64_t step = 1; step <= options.steps; ++step) {
    if (CancelRequested()) return absl::CancelledError("interrupted while a layer was fitted");
    std::ranges::generate(chosen, [&] { return shuffle.Next(); });
    SCION_RETURN_IF_ERROR(problem.read(chosen, batch));
    SCION_RETURN_IF_ERROR(ComputeHidden(ffn, batch.inputs, kStepType, ops, h));
    SCION_RETURN_IF_ERROR(ops.MultiplyTransposed(h.hidden, ffn.down, out, kStepType));
    ops.ForEach(rows, [&](int i) {  // the gradient of half the weighted square
      const std::span<const float> target = batch.targets.row(i);
      const std::span<float> error = out.row(i);
      for (size_t k = 0; k < error.size(); ++k)
        error[k] = batch.weights[static_cast<size_t>(i)] * (error[k] - target[k]);
    });
    if (options.metric != nullptr) {
      SCION_RETURN_IF_ERROR(ops.MultiplyTransposed(out, *options.metric, weighed, kStepType));
      std::swap(out, weighed);
    }
    ops.Transpose(ffn.down, down_transposed);
    SCION_RETURN_IF_ERROR(ops.MultiplyTransposed(out, down_transposed, back, kStepType));
    gate_back.Resize(back.rows, back.cols);
    up_back.Resize(back.rows, back.cols);
    ops.ForEach(rows, [&](int i) {
      const std::span<const float> gate = h.gate.row(i), up = h.up.row(i), sigmoid = h.sigmoid.row(i);
      const std::span<const float> d = back.row(i);
      const std::span<float> to_gate = gate_back.row(i), to_up = up_back.row(i);
      for (size_t j = 0; j < gate.size(); ++j) {
        const float s = sigmoid[j];
        to_gate[j] = d[j] * up[j] * s * (1.0f + gate[j] * (1.0f - s));
        to_up[j] = d[j] * gate[j] * s;
      }
    });
    const double rate = options.learning_rate * std::min(1.0, static_cast<double>(step) / 20.0) *
                        (1.0 - static_cast<double>(step - 1) / static_cast<double>(options.steps));
    ops.Transpose(batch.inputs, inputs_transposed);
    ops.Transpose(out, error_transposed);
    ops.Transpose(h.hidden, hidden_transposed);
    SCION_RETURN_IF_ERROR(ops.MultiplyTransposed(error_transposed, hidden_transposed, gradient, kStepType));
    SCION_RETURN_IF_ERROR(down_state.Step(gradient, rate, ops));
    ops.Transpose(gate_back, part);
    SCION_RETURN_IF_ERROR(ops.MultiplyTransposed(part, inputs_transposed, gradient, kStepType));
    SCION_RETURN_IF_ERROR(gate_state.Step(gradient, rate, ops));
    ops.Transpose(up_back, part);
    SCION_RETURN_IF_ERROR(ops.MultiplyTransposed(part, inputs_transposed, gradient, kStepType));
    SCION_RETURN_IF_ERROR(up_state.Step(gradient, rate, ops));
    progress.Advance(static_cast<uint64_t>(rows));
  }
  return absl::OkStatus();
}

}  // namespace scion

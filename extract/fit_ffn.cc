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

// Rows of a problem, as the products want them.
struct Batch {
  FloatMatrix inputs, targets;
  std::vector<float> weights;
};

template <typename Index>
Batch Gather(const FitProblem& problem, int count, Index&& index, MatrixOps& ops) {
  Batch batch{FloatMatrix(count, problem.inputs.cols), FloatMatrix(count, problem.targets.cols),
              std::vector<float>(static_cast<size_t>(count))};
  ops.ForEach(count, [&](int i) {
    const int from = index(i);
    std::ranges::copy(problem.inputs.row(from), batch.inputs.row(i).begin());
    std::ranges::copy(problem.targets.row(from), batch.targets.row(i).begin());
    batch.weights[static_cast<size_t>(i)] = problem.weights[static_cast<size_t>(from)];
  });
  return batch;
}

// Calls fn(batch) for all rows in order.
template <typename Fn>
absl::Status ForBatches(const FitProblem& problem, MatrixOps& ops, Fn&& fn) {
  for (int begin = 0; begin < problem.inputs.rows; begin += kBatchRows) {
    if (CancelRequested()) return absl::CancelledError("interrupted while a layer was fitted");
    const int count = std::min(kBatchRows, problem.inputs.rows - begin);
    SCION_RETURN_IF_ERROR(fn(Gather(
        problem, count, [&](int i) { return begin + i; }, ops)));
  }
  return absl::OkStatus();
}

// Hidden activations of a batch: gate and up are what the products give, hidden = gate * sigmoid(gate) * up.
struct Hidden {
  FloatMatrix gate, up, sigmoid, hidden;
};

absl::Status ComputeHidden(const FfnMatrices& ffn, const FloatMatrix& inputs, MatrixOps& ops, Hidden& out) {
  SCION_RETURN_IF_ERROR(ops.MultiplyTransposed(inputs, ffn.gate, out.gate));
  SCION_RETURN_IF_ERROR(ops.MultiplyTransposed(inputs, ffn.up, out.up));
  out.sigmoid = FloatMatrix(out.gate.rows, out.gate.cols);
  out.hidden = FloatMatrix(out.gate.rows, out.gate.cols);
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

// One parameter matrix and its two moments.
class AdamState {
 public:
  explicit AdamState(FloatMatrix& value) : value_(value), mean_(value.data.size()), square_(value.data.size()) {
    double sum = 0;
    for (const float v : value.data) sum += static_cast<double>(v) * static_cast<double>(v);
    size_ = static_cast<float>(std::sqrt(sum / static_cast<double>(value.data.size())));
  }

  // step counts from 1.
  void Step(const FloatMatrix& gradient, int64_t step, double learning_rate, MatrixOps& ops) {
    constexpr float kMeanDecay = 0.9f, kSquareDecay = 0.99f;
    const float mean_scale = 1.0f / (1.0f - std::pow(kMeanDecay, static_cast<float>(step)));
    const float square_scale = 1.0f / (1.0f - std::pow(kSquareDecay, static_cast<float>(step)));
    const float rate = static_cast<float>(learning_rate) * size_;
    const size_t cols = static_cast<size_t>(value_.cols);
    ops.ForEach(value_.rows, [&](int i) {
      const std::span<const float> g = gradient.row(i);
      const std::span<float> value = value_.row(i);
      float* mean = &mean_[static_cast<size_t>(i) * cols];
      float* square = &square_[static_cast<size_t>(i) * cols];
      for (size_t j = 0; j < cols; ++j) {
        mean[j] = kMeanDecay * mean[j] + (1 - kMeanDecay) * g[j];
        square[j] = kSquareDecay * square[j] + (1 - kSquareDecay) * g[j] * g[j];
        value[j] -= rate * mean[j] * mean_scale / (std::sqrt(square[j] * square_scale) + 1e-20f);
      }
    });
  }

 private:
  FloatMatrix& value_;
  std::vector<float> mean_, square_;
  float size_;  // root mean square at the beginning
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
  SCION_RETURN_IF_ERROR(ForBatches(problem, ops, [&](const Batch& batch) {
    FloatMatrix out;
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
  SCION_RETURN_IF_ERROR(ForBatches(problem, ops, [&](Batch batch) {
    SCION_RETURN_IF_ERROR(ComputeHidden(ffn, batch.inputs, ops, h));
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
  const int rows = std::min(options.batch_rows, problem.inputs.rows);
  Shuffle shuffle(problem.inputs.rows, options.seed);
  AdamState gate_state(ffn.gate), up_state(ffn.up), down_state(ffn.down);
  Hidden h;
  FloatMatrix out, weighed, error_transposed, hidden_transposed, inputs_transposed, down_transposed, back, gradient;
  FloatMatrix gate_back, up_back, part;
  std::vector<int> chosen(static_cast<size_t>(rows));
  for (int64_t step = 1; step <= options.steps; ++step) {
    if (CancelRequested()) return absl::CancelledError("interrupted while a layer was fitted");
    std::ranges::generate(chosen, [&] { return shuffle.Next(); });
    const Batch batch = Gather(
        problem, rows, [&](int i) { return chosen[static_cast<size_t>(i)]; }, ops);
    SCION_RETURN_IF_ERROR(ComputeHidden(ffn, batch.inputs, ops, h));
    SCION_RETURN_IF_ERROR(ops.MultiplyTransposed(h.hidden, ffn.down, out));
    ops.ForEach(rows, [&](int i) {  // the gradient of half the weighted square
      const std::span<const float> target = batch.targets.row(i);
      const std::span<float> error = out.row(i);
      for (size_t k = 0; k < error.size(); ++k)
        error[k] = batch.weights[static_cast<size_t>(i)] * (error[k] - target[k]);
    });
    if (options.metric != nullptr) {
      SCION_RETURN_IF_ERROR(ops.MultiplyTransposed(out, *options.metric, weighed));
      std::swap(out, weighed);
    }
    ops.Transpose(ffn.down, down_transposed);
    SCION_RETURN_IF_ERROR(ops.MultiplyTransposed(out, down_transposed, back));
    gate_back = FloatMatrix(back.rows, back.cols);
    up_back = FloatMatrix(back.rows, back.cols);
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
    SCION_RETURN_IF_ERROR(ops.MultiplyTransposed(error_transposed, hidden_transposed, gradient));
    down_state.Step(gradient, step, rate, ops);
    ops.Transpose(gate_back, part);
    SCION_RETURN_IF_ERROR(ops.MultiplyTransposed(part, inputs_transposed, gradient));
    gate_state.Step(gradient, step, rate, ops);
    ops.Transpose(up_back, part);
    SCION_RETURN_IF_ERROR(ops.MultiplyTransposed(part, inputs_transposed, gradient));
    up_state.Step(gradient, step, rate, ops);
    progress.Advance(static_cast<uint64_t>(rows));
  }
  return absl::OkStatus();
}

}  // namespace scion

#include "extract/matrix_ops.h"

#include <algorithm>

#include "engine/base/status.h"

namespace scion {
namespace {

constexpr int kRowsPerTask = 64;
constexpr int kPanelsPerTask = 4;

int Tasks(int count, int per_task) { return (count + per_task - 1) / per_task; }

}  // namespace

absl::Status MatrixOps::Reserve(AlignedBuffer& buffer, size_t bytes) {
  if (buffer.size() >= bytes) return absl::OkStatus();
  buffer = AlignedBuffer();
  SCION_ASSIGN_OR_RETURN(buffer, AlignedBuffer::Create(bytes, "matrix products"));
  return absl::OkStatus();
}

absl::Status MatrixOps::MultiplyTransposed(const FloatMatrix& a, const FloatMatrix& b, FloatMatrix& out,
                                           kernels::WeightType type) {
  out.rows = a.rows;
  out.cols = b.rows;
  out.data.resize(static_cast<size_t>(a.rows) * static_cast<size_t>(b.rows));
  const int depth = a.cols, num_panels = kernels::NumPanels(b.rows);
  const kernels::ActivationForm form = k_.activation_form(type);
  const size_t panel_bytes = kernels::PackedPanelBytes(type, depth);
  const size_t row_bytes = k_.activation_row_bytes(form, depth);
  SCION_RETURN_IF_ERROR(Reserve(panels_, kernels::PackedBytes(type, b.rows, depth)));
  SCION_RETURN_IF_ERROR(Reserve(activations_, static_cast<size_t>(a.rows) * row_bytes));
  pool_.ParallelFor(num_panels, [&](int panel, int) {
    const int first = panel * kernels::kPanelWidth;
    kernels::PackPanel(DType::kF32, std::as_bytes(b.row(first)).data(), std::min(kernels::kPanelWidth, b.rows - first),
                       depth, type, panels_.data() + static_cast<size_t>(panel) * panel_bytes);
  });
  const int row_tasks = Tasks(a.rows, kRowsPerTask);
  pool_.ParallelFor(row_tasks, [&](int task, int) {
    const int begin = task * kRowsPerTask;
    k_.prepare_activations(form, a.row(begin).data(), static_cast<size_t>(depth), nullptr,
                           std::min(kRowsPerTask, a.rows - begin), depth,
                           activations_.data() + static_cast<size_t>(begin) * row_bytes);
  });
  const kernels::PackedMatrix packed{
      .data = panels_.data(), .out_features = b.rows, .in_features = depth, .type = type};
  const int panel_tasks = Tasks(num_panels, kPanelsPerTask);
  pool_.ParallelFor(row_tasks * panel_tasks, [&](int task, int) {
    const int begin = task % row_tasks * kRowsPerTask, panel = task / row_tasks * kPanelsPerTask;
    k_.matmul(packed, activations_.data() + static_cast<size_t>(begin) * row_bytes,
              std::min(kRowsPerTask, a.rows - begin), panel, std::min(num_panels, panel + kPanelsPerTask),
              out.row(begin).data(), static_cast<size_t>(b.rows), kernels::StoreTo::kCache);
  });
  return absl::OkStatus();
}

void MatrixOps::Transpose(const FloatMatrix& a, FloatMatrix& out) {
  constexpr int kTile = 32;
  out.rows = a.cols;
  out.cols = a.rows;
  out.data.resize(a.data.size());
  pool_.ParallelFor(Tasks(a.rows, kTile), [&](int task, int) {
    const int begin = task * kTile, end = std::min(a.rows, begin + kTile);
    for (int column = 0; column < a.cols; ++column) {
      float* to = out.row(column).data();
      for (int i = begin; i < end; ++i) to[i] = a.row(i)[static_cast<size_t>(column)];
    }
  });
}

void MatrixOps::ForEach(int count, absl::FunctionRef<void(int)> fn) {
  constexpr int kPerTask = 16;
  pool_.ParallelFor(Tasks(count, kPerTask), [&](int task, int) {
    for (int i = task * kPerTask; i < std::min(count, (task + 1) * kPerTask); ++i) fn(i);
  });
}

}  // namespace scion

// A row-major fp32 matrix.
#pragma once

#include <cstddef>
#include <span>
#include <utility>
#include <vector>

namespace scion {

struct FloatMatrix {
  FloatMatrix() = default;
  FloatMatrix(int num_rows, int num_cols)
      : rows(num_rows), cols(num_cols), data(static_cast<size_t>(num_rows) * static_cast<size_t>(num_cols)) {}
  FloatMatrix(int num_rows, int num_cols, std::vector<float> values)
      : rows(num_rows), cols(num_cols), data(std::move(values)) {}

  // Values are unspecified afterwards.
  void Resize(int num_rows, int num_cols) {
    rows = num_rows;
    cols = num_cols;
    data.resize(static_cast<size_t>(num_rows) * static_cast<size_t>(num_cols));
  }

  std::span<float> row(int i) {
    return std::span(data).subspan(static_cast<size_t>(i) * static_cast<size_t>(cols), static_cast<size_t>(cols));
  }
  std::span<const float> row(int i) const {
    return std::span(data).subspan(static_cast<size_t>(i) * static_cast<size_t>(cols), static_cast<size_t>(cols));
  }

  int rows = 0;
  int cols = 0;
  std::vector<float> data;
};

}  // namespace scion

// Rows of weights from one type to another: floats of any width, and GGML's blocks.
#pragma once

#include <cstddef>
#include <vector>

#include "absl/status/status.h"
#include "engine/base/dtype.h"

namespace scion {

class RowConverter {
 public:
  // from: kF32, kF16, kBF16 or blocks; to: kF32, kF16, kBF16, kQ8_0 or kQ4_0. `elements` fill whole blocks of both.
  RowConverter(DType from, DType to, int elements);

  // in: a row; out: DTypeRowBytes(to, elements). Rounds to nearest, ties to even, or as GGML does. DataLoss, to be
  // read after "row 7 has ": "a weight too large for F16" (or a block's scale), and "a weight that is not finite",
  // which only blocks refuse.
  absl::Status Convert(const std::byte* in, std::byte* out);

 private:
  absl::Status ToHalves(std::byte* out) const;
  absl::Status ToBlocks(std::byte* out) const;

  DType from_;
  DType to_;
  std::vector<float> values_;  // [elements]
};

}  // namespace scion

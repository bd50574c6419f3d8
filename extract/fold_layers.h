// The arithmetic of folding: from a domain's experts to one FFN per sparse layer.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/model/checkpoint.h"
#include "extract/dense_layout.h"
#include "extract/dense_writer.h"
#include "extract/fold_text.h"
#include "extract/matrix_ops.h"

namespace scion {

struct FoldOptions {
  int domain = 0;  // index into the model's domains
  int width = 1;
  bool weighted = false;             // experts count by the tokens that visit them
  bool fit = false;                  // to the calibration windows
  int epochs = 1;                    // passes over the calibration text in which a layer is refined
  std::vector<TokenWindow> windows;  // calibration; empty without
  std::FILE* log = nullptr;
};

// Layer by layer, from the first: each fitted layer takes what the layers before it, folded as they are, give, and aims
// at the residual stream of the experts, so that it makes good what they lost. Only the options decide the bits, not
// the number of threads (the tier of `ops` may).
absl::StatusOr<std::map<int, FoldedLayer>> FoldLayers(const Checkpoint& checkpoint, const DenseLayout& layout,
                                                      const FoldOptions& options, MatrixOps& ops);

// How many calibration tokens fit into memory.
int64_t MaxCalibrationTokens(const ModelSpec& spec);

}  // namespace scion

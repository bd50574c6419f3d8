// Writes the weights of a fold: the source's trunk, padded, and the folded FFNs.
#pragma once

#include <cstdio>
#include <map>

#include "absl/status/statusor.h"
#include "engine/model/checkpoint.h"
#include "extract/dense_layout.h"
#include "extract/digest_file.h"
#include "extract/layerwise_forward.h"
#include "extract/new_file.h"

namespace scion {

// gate, up [neurons, hidden_size of the source + channels of the layer]; down [hidden_size of the source, neurons]
struct FoldedLayer {
  FfnMatrices ffn;
  LayerRoute route;  // what the channels say
  int num_experts = 0;
  float channel_size = 1.0f;  // what a channel that is set brings to the FFN's input, times the root mean square of x
};

struct DenseFile {
  FileDigest digest;
  uint64_t tensor_bytes = 0;  // of the data
};

// Matrices have the types that they have in the source, FFNs that of the source's experts; norms are F32 where the fold
// is wider. Memory: the largest tensor in fp32. DataLoss: the source can't be read. Cancelled after RequestCancel.
absl::StatusOr<DenseFile> WriteDense(const Checkpoint& source, const DenseLayout& layout,
                                     const std::map<int, FoldedLayer>& folded, NewFile out, std::FILE* log);

// Rounds to what a tensor of the type holds. kF32, kF16, kBF16.
void RoundTo(DType type, FloatMatrix& values);

}  // namespace scion

// A model with its matrices rounded to blocks of 8 or 4 bits, as GGML rounds them: a directory like its source,
// smaller.
//
// Attention, FFNs, experts, head and embedding become blocks, if blocks fill their rows; norms, gates, routes and the
// rest stay as they are. Head and embedding are never coarser than Q8_0. Files keep their names, so that domains stay
// what they are. Every matrix has the values that it would have in memory with `--weights q8` or `q4`; the embedding,
// which these leave alone, is rounded too.
#pragma once

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "engine/base/dtype.h"
#include "engine/model/checkpoint.h"
#include "extract/safetensors_writer.h"

namespace scion {

struct QuantizeOptions {
  std::filesystem::path model;
  std::filesystem::path out;
  DType type = DType::kQ8_0;  // or kQ4_0
  std::string version;        // of this program, for the lineage
  absl::Time now;
  std::FILE* log = nullptr;  // progress; null for none
};

struct QuantizeResult {
  int quantized = 0;         // matrices that are blocks now
  int left_as_is = 0;        // matrices that are not, since no whole number of blocks fills their rows
  uint64_t bytes = 0;        // of the data files
  uint64_t model_bytes = 0;  // of the source's
};

// The tensors of a file of the model as they are once it is quantised, in the order in which they are written.
std::vector<NewTensor> QuantizedTensors(const ModelSpec& spec, std::span<const TensorInfo> tensors, DType type);

// Needs a few MiB beside the list of tensors, whatever the size of the model. NotFound: no such model. AlreadyExists:
// OUT is there. InvalidArgument: OUT inside MODEL. FailedPrecondition: quantised already, a GGUF file, or no matrix
// whose rows blocks fill. DataLoss: a damaged model, a file that is not what the model's lock says, a weight that is
// not finite or too large for a block's scale. Cancelled after RequestCancel. PermissionDenied, ResourceExhausted: OUT
// can't be written. All name the path, and none leaves anything behind.
absl::StatusOr<QuantizeResult> Quantize(const QuantizeOptions& options);

}  // namespace scion

// 'quantization_config' of config.json: which tensors of a directory are blocks of quantised weights, and of what type.
//
//   "quantization_config": {
//     "quant_method": "ggml",
//     "type": "Q4_0",
//     "tensors": {"model.embed_tokens.weight": "Q8_0", "lm_head.weight": "Q8_0"}
//   }
//
// A quantised matrix [rows, in_features] is stored as a U8 tensor [rows, row_bytes]: the blocks of each row, verbatim
// as GGML lays them out (engine/kernels/ggml_blocks.h). A U8 matrix has the type that "tensors" gives to its name, else
// "type"; "tensors" may be absent. Types are GGUF's names: Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K, Q6_K. Tensors of
// other dtypes are what they are: norms, gates, routes, and matrices whose rows no whole number of blocks fills.
#pragma once

#include <map>
#include <span>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/base/dtype.h"
#include "engine/base/json.h"

namespace scion {

struct TensorInfo;

struct QuantizationSpec {
  DType type = DType::kQ8_0;             // of every U8 matrix that is not named below
  std::map<std::string, DType> tensors;  // by name
};

// value: the member. InvalidArgument: a key that is missing, unknown or of another kind. Unimplemented: another method
// of quantisation, or a type that this engine lacks; both are named.
absl::StatusOr<QuantizationSpec> ParseQuantization(const Json& value);

// The member that ParseQuantization reads; without "tensors" if it would be empty.
Json QuantizationJson(const QuantizationSpec& spec);

// Gives the blocks among a file's tensors their type, and their shape in weights instead of bytes. DataLoss, naming
// file and tensor: a tensor that "tensors" names is no U8 matrix, or a row is no whole number of blocks.
absl::Status SetBlockTypes(const QuantizationSpec& spec, std::string_view file_name, std::span<TensorInfo> tensors);

}  // namespace scion

// From GGUF's names of tensors to those that weights are asked for by, one tensor per expert.
#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "engine/model/gguf.h"
#include "engine/model/model_spec.h"

namespace scion {

// "blk.2.attn_q.weight" becomes "model.layers.2.self_attn.q_proj.weight", and so on; "blk.2.ffn_up_exps.weight" of
// [experts, rows, row_length] becomes as many tensors inside its data, as does "blk.2.ffn_up.0.weight", its older form.
// q and k of "llama" get their interleaved_head_dim. Sorted by offset. Errors name file and tensor, by the file's name:
// Unimplemented for a tensor that this engine does not know (a bias, rope_freqs.weight), DataLoss for a layer or expert
// that the spec has not, ResourceExhausted for more than kMaxTensors.
absl::StatusOr<std::vector<TensorInfo>> NameGgufTensors(GgufHeader header, const ModelSpec& spec);

}  // namespace scion

// The weights of a model as the kernels read them: packed matrices in a few large buffers, one for the trunk and one
// per domain, so that memory follows the domains.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/base/aligned_buffer.h"
#include "engine/base/thread_pool.h"
#include "engine/kernels/kernels.h"
#include "engine/model/checkpoint.h"
#include "engine/route/route_plan.h"

namespace scion {

// gate, up [intermediate_size, hidden_size]; down [hidden_size, intermediate_size]
struct FfnWeights {
  kernels::PackedMatrix gate;
  kernels::PackedMatrix up;
  kernels::PackedMatrix down;
};

struct LayerWeights {
  std::vector<float> input_norm;      // [hidden_size]
  std::vector<float> post_attn_norm;  // [hidden_size]
  kernels::PackedMatrix qkv;          // [(num_heads + 2 * num_kv_heads) * head_dim, hidden_size]
  kernels::PackedMatrix o;            // [hidden_size, num_heads * head_dim]
  // One dense FFN, or the experts of all domains in the order of TableRouter's numbers.
  std::vector<FfnWeights> ffn;
};

struct Weights {
  // embed_tokens [vocab_size, hidden_size] as on disk but bf16 or fp32: rows are looked up, not multiplied.
  kernels::WeightType embedding_type;
  AlignedBuffer embedding;
  std::vector<LayerWeights> layers;
  std::vector<TableRouter> routers;  // one per sparse layer, in order
  std::vector<float> final_norm;
  kernels::PackedMatrix lm_head;  // [vocab_size, hidden_size]

  AlignedBuffer trunk;
  std::vector<AlignedBuffer> domains;

  uint64_t bytes() const;
};

// Reads and packs tensor by tensor with bounded staging memory. Errors name file and tensor.
absl::StatusOr<Weights> LoadWeights(const Checkpoint& checkpoint, kernels::WeightType type, ThreadPool& pool);

}  // namespace scion

// The weights of a model as the kernels read them: packed matrices in a few large blocks, one for the trunk and one
// per domain, so that memory follows the domains.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/base/thread_pool.h"
#include "engine/kernels/kernels.h"
#include "engine/model/checkpoint.h"
#include "engine/model/pack_cache.h"
#include "engine/model/weight_mode.h"
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
  std::vector<float> q_norm;          // [head_dim], empty without qk_norm
  std::vector<float> k_norm;
  // [(num_heads + 2 * num_kv_heads) * head_dim, hidden_size] in all: one matrix, or several one below the other where
  // q, k and v are of different types. All read the same form of activations.
  std::vector<kernels::PackedMatrix> qkv;
  kernels::PackedMatrix o;     // [hidden_size, num_heads * head_dim]
  kernels::PackedMatrix gate;  // kGate: [num_experts, hidden_size], fp32
  // One dense FFN, or the experts of all domains in the order of TableRouter's numbers. All experts of a layer read the
  // same form of activations.
  std::vector<FfnWeights> ffn;
};

struct Weights {
  // embed_tokens [vocab_size, hidden_size] as on disk, in the trunk's block: rows are looked up, not multiplied.
  DType embedding_type;
  std::span<const std::byte> embedding;
  std::vector<LayerWeights> layers;
  std::vector<TableRouter> routers;  // one per table-routed layer, in order
  std::vector<float> final_norm;
  kernels::PackedMatrix lm_head;  // [vocab_size, hidden_size]

  WeightMemory trunk;
  std::vector<WeightMemory> domains;

  uint64_t bytes() const;
  uint64_t shared_bytes() const;  // of those, mapped from files of the cache
};

// Bytes of packed weights, known before anything is read.
struct WeightSizes {
  uint64_t trunk = 0;             // the embedding included
  uint64_t embedding = 0;         // its rows as on disk, of which a token reads one
  std::vector<uint64_t> domains;  // the experts of each
};

// What LoadWeights will need. Errors name the tensor.
absl::StatusOr<WeightSizes> PlanWeightSizes(const Checkpoint& checkpoint, WeightMode mode,
                                            const kernels::KernelTable& kernels);

// Reads and packs tensor by tensor with bounded staging memory, or takes what the cache has. Errors name file and
// tensor. `kernels` says which matrices can share prepared activations.
absl::StatusOr<Weights> LoadWeights(const Checkpoint& checkpoint, WeightMode mode, const kernels::KernelTable& kernels,
                                    const PackCacheOptions& cache_options, ThreadPool& pool);

}  // namespace scion

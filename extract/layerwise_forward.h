// One domain of a model in fp32, a layer at a time: for tools that want what flows between the layers. No cache, no
// batching of requests; weights are read when their layer is asked for, so memory is that of a layer.
//
//   x = Embed[ids]
//   per layer:  x += Attention(layer, x);  x += Ffn(layer, ids, FfnInput(layer, x))
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/model/checkpoint.h"
#include "extract/float_matrix.h"
#include "extract/matrix_ops.h"

namespace scion {

// Token windows back to back: each begins at position 0 and is a sequence of its own.
struct TokenBatch {
  std::vector<int32_t> ids;     // [rows]
  std::vector<int> window_end;  // ascending; the last is ids.size()
};

// gate, up [intermediate_size, hidden_size]; down [hidden_size, intermediate_size]
struct FfnMatrices {
  FloatMatrix gate;
  FloatMatrix up;
  FloatMatrix down;
};

// A tensor of any float type, widened.
absl::StatusOr<FloatMatrix> ReadMatrix(const Checkpoint& checkpoint, std::string_view name);
absl::StatusOr<std::vector<float>> ReadVector(const Checkpoint& checkpoint, std::string_view name);
absl::StatusOr<FfnMatrices> ReadExpert(const Checkpoint& checkpoint, int layer, std::string_view domain, int expert);

// out = (silu(in gate^T) * (in up^T)) down^T
absl::Status ApplyFfn(const FfnMatrices& ffn, const FloatMatrix& in, MatrixOps& ops, FloatMatrix& out);

// What a domain's tokens visit in a sparse layer.
struct LayerRoute {
  std::vector<std::vector<int32_t>> experts;  // [num_experts_per_tok][vocab_size]
  std::vector<float> weights;                 // [num_experts_per_tok]
};

class LayerwiseForward {
 public:
  // Both must outlive it; the model is of Scion's or Llama's type. domain: index into spec().domains.
  LayerwiseForward(const Checkpoint& checkpoint, int domain, MatrixOps& ops)
      : checkpoint_(checkpoint), domain_(domain), ops_(ops) {}

  absl::StatusOr<FloatMatrix> Embed(const TokenBatch& batch) const;
  // Of every batch, in place. Windows are at most spec().max_position_embeddings long.
  absl::Status AddAttention(int layer, std::span<const TokenBatch> batches, std::span<FloatMatrix> x);
  // x's rows normalised as the layer's FFN takes them. `scale`, if not null: what each row was divided by, [rows].
  absl::Status FfnInput(int layer, const FloatMatrix& x, FloatMatrix& out, std::vector<float>* scale = nullptr);
  // Dense or routed.
  absl::Status AddFfn(int layer, std::span<const TokenBatch> batches, std::span<FloatMatrix> x);

  absl::StatusOr<LayerRoute> ReadRoute(int layer) const;

  // How much the model's predictions change with the residual stream that the head reads: for rows x of it, the mean
  // over rows of the Fisher information of the next token's logits, [hidden_size, hidden_size], scaled to a mean
  // diagonal of
  // 1. That a norm lies between is left out, other than its weights.
  absl::StatusOr<FloatMatrix> HeadMetric(const FloatMatrix& x);

 private:
  const ModelSpec& spec() const { return checkpoint_.spec(); }
  absl::Status AttendWindows(int layer, const TokenBatch& batch, FloatMatrix& qkv, FloatMatrix& out);

  const Checkpoint& checkpoint_;
  int domain_;
  MatrixOps& ops_;
};

}  // namespace scion

#include "extract/layerwise_forward.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "engine/base/status.h"
#include "engine/kv_cache/kv_cache.h"

namespace scion {

absl::StatusOr<FloatMatrix> ReadMatrix(const Checkpoint& checkpoint, std::string_view name) {
  SCION_ASSIGN_OR_RETURN(const TensorInfo* tensor, checkpoint.Find(name));
  SCION_ASSIGN_OR_RETURN(std::vector<float> values, checkpoint.ReadFloats(*tensor));
  return FloatMatrix(static_cast<int>(tensor->shape[0]), static_cast<int>(tensor->shape[1]), std::move(values));
}

absl::StatusOr<std::vector<float>> ReadVector(const Checkpoint& checkpoint, std::string_view name) {
  SCION_ASSIGN_OR_RETURN(const TensorInfo* tensor, checkpoint.Find(name));
  return checkpoint.ReadFloats(*tensor);
}

namespace {

absl::StatusOr<FfnMatrices> ReadDenseFfn(const Checkpoint& checkpoint, int layer) {
  FfnMatrices ffn;
  SCION_ASSIGN_OR_RETURN(ffn.gate, ReadMatrix(checkpoint, TrunkTensorName(layer, "mlp.gate_proj.weight")));
  SCION_ASSIGN_OR_RETURN(ffn.up, ReadMatrix(checkpoint, TrunkTensorName(layer, "mlp.up_proj.weight")));
  SCION_ASSIGN_OR_RETURN(ffn.down, ReadMatrix(checkpoint, TrunkTensorName(layer, "mlp.down_proj.weight")));
  return ffn;
}

void AddScaled(FloatMatrix& x, const FloatMatrix& y, float scale) {
  for (size_t i = 0; i < x.data.size(); ++i) x.data[i] += scale * y.data[i];
}

// Normalises in place.
void NormRows(FloatMatrix& x, std::span<const float> weight, float eps, MatrixOps& ops) {
  ops.ForEach(x.rows,
              [&](int i) { ops.kernels().rms_norm(x.row(i).data(), weight.data(), eps, x.cols, x.row(i).data()); });
}

}  // namespace

absl::StatusOr<FfnMatrices> ReadExpert(const Checkpoint& checkpoint, int layer, std::string_view domain, int expert) {
  FfnMatrices ffn;
  SCION_ASSIGN_OR_RETURN(ffn.gate, ReadMatrix(checkpoint, ExpertTensorName(layer, domain, expert, "gate")));
  SCION_ASSIGN_OR_RETURN(ffn.up, ReadMatrix(checkpoint, ExpertTensorName(layer, domain, expert, "up")));
  SCION_ASSIGN_OR_RETURN(ffn.down, ReadMatrix(checkpoint, ExpertTensorName(layer, domain, expert, "down")));
  return ffn;
}

absl::Status ApplyFfn(const FfnMatrices& ffn, const FloatMatrix& in, MatrixOps& ops, FloatMatrix& out) {
  FloatMatrix gate, up;
  SCION_RETURN_IF_ERROR(ops.MultiplyTransposed(in, ffn.gate, gate));
  SCION_RETURN_IF_ERROR(ops.MultiplyTransposed(in, ffn.up, up));
  ops.ForEach(gate.rows, [&](int i) {
    const std::span<float> g = gate.row(i), u = up.row(i);
    for (size_t j = 0; j < g.size(); ++j) g[j] = g[j] / (1.0f + std::exp(-g[j])) * u[j];
  });
  return ops.MultiplyTransposed(gate, ffn.down, out);
}

absl::StatusOr<FloatMatrix> LayerwiseForward::Embed(const TokenBatch& batch) const {
  SCION_ASSIGN_OR_RETURN(const FloatMatrix table, ReadMatrix(checkpoint_, "model.embed_tokens.weight"));
  FloatMatrix x(static_cast<int>(batch.ids.size()), table.cols);
  for (size_t i = 0; i < batch.ids.size(); ++i) {
    std::ranges::copy(table.row(batch.ids[i]), x.row(static_cast<int>(i)).begin());
  }
  return x;
}

absl::Status LayerwiseForward::AttendWindows(int layer, const TokenBatch& batch, FloatMatrix& qkv, FloatMatrix& out) {
  const AttentionSpec& a = spec().layers[static_cast<size_t>(layer)].attention;
  const kernels::KernelTable& k = ops_.kernels();
  const int q_width = a.num_heads * a.head_dim, kv_width = a.num_kv_heads * a.head_dim, half = a.head_dim / 2;
  int longest = 0;
  for (size_t w = 0; w < batch.window_end.size(); ++w) {
    longest = std::max(longest, batch.window_end[w] - (w == 0 ? 0 : batch.window_end[w - 1]));
  }
  // Each thread keeps keys and values of its window in blocks of its own.
  const int blocks = (longest + kernels::kKvBlockTokens - 1) / kernels::kKvBlockTokens;
  const size_t bytes_per_token = static_cast<size_t>(kv_width) * kernels::KvTypeBytes(kernels::KvType::kF32);
  SCION_ASSIGN_OR_RETURN(KvCache cache, KvCache::Create({{"k", bytes_per_token}, {"v", bytes_per_token}},
                                                        kernels::kKvBlockTokens, blocks * ops_.pool().num_threads()));
  const kernels::KvPlanes planes{.k = cache.plane(0),
                                 .v = cache.plane(1),
                                 .block_stride = cache.block_stride(),
                                 .num_kv_heads = a.num_kv_heads,
                                 .head_dim = a.head_dim,
                                 .type = kernels::KvType::kF32};
  FloatMatrix cos(longest, half), sin(longest, half);
  for (int t = 0; t < longest; ++t) {
    for (int i = 0; i < half; ++i) {
      const float frequency = 1.0f / std::pow(a.rope_theta, static_cast<float>(2 * i) / static_cast<float>(a.head_dim));
      cos.row(t)[static_cast<size_t>(i)] = std::cos(static_cast<float>(t) * frequency);
      sin.row(t)[static_cast<size_t>(i)] = std::sin(static_cast<float>(t) * frequency);
    }
  }
  const int group = a.num_heads / a.num_kv_heads;
  const float scale = 1.0f / std::sqrt(static_cast<float>(a.head_dim));
  ops_.pool().ParallelFor(static_cast<int>(batch.window_end.size()), [&](int window, int thread) {
    const size_t w = static_cast<size_t>(window);
    const int begin = w == 0 ? 0 : batch.window_end[w - 1], count = batch.window_end[w] - begin;
    std::vector<int32_t> table(static_cast<size_t>(blocks));
    std::iota(table.begin(), table.end(), thread * blocks);
    for (int t = 0; t < count; ++t) {
      float* row = qkv.row(begin + t).data();
      k.rope(row, a.num_heads, a.head_dim, cos.row(t).data(), sin.row(t).data());
      k.rope(row + q_width, a.num_kv_heads, a.head_dim, cos.row(t).data(), sin.row(t).data());
    }
    for (int t = 0; t < count; t += kernels::kKvBlockTokens) {
      const float* key = qkv.row(begin + t).data() + q_width;
      k.write_kv(planes, table[static_cast<size_t>(t / kernels::kKvBlockTokens)], 0,
                 std::min(count - t, kernels::kKvBlockTokens), key, key + kv_width, static_cast<size_t>(qkv.cols));
    }
    k.attend(planes, table.data(), 0, count, 0, a.num_kv_heads, group, qkv.row(begin).data(),
             static_cast<size_t>(qkv.cols), scale, out.row(begin).data(), static_cast<size_t>(out.cols));
  });
  return absl::OkStatus();
}

absl::Status LayerwiseForward::AddAttention(int layer, std::span<const TokenBatch> batches, std::span<FloatMatrix> x) {
  const auto name = [&](std::string_view rest) { return TrunkTensorName(layer, rest); };
  SCION_ASSIGN_OR_RETURN(const std::vector<float> norm, ReadVector(checkpoint_, name("input_layernorm.weight")));
  FloatMatrix qkv_weight;
  for (const char* projection : {"self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"}) {
    SCION_ASSIGN_OR_RETURN(const FloatMatrix part, ReadMatrix(checkpoint_, name(projection)));
    qkv_weight.rows += part.rows;
    qkv_weight.cols = part.cols;
    qkv_weight.data.insert(qkv_weight.data.end(), part.data.begin(), part.data.end());
  }
  SCION_ASSIGN_OR_RETURN(const FloatMatrix o, ReadMatrix(checkpoint_, name("self_attn.o_proj.weight")));
  FloatMatrix qkv, out;
  for (size_t b = 0; b < batches.size(); ++b) {
    FloatMatrix attended(x[b].rows, o.cols), normed = x[b];
    NormRows(normed, norm, spec().rms_norm_eps, ops_);
    SCION_RETURN_IF_ERROR(ops_.MultiplyTransposed(normed, qkv_weight, qkv));
    SCION_RETURN_IF_ERROR(AttendWindows(layer, batches[b], qkv, attended));
    SCION_RETURN_IF_ERROR(ops_.MultiplyTransposed(attended, o, out));
    AddScaled(x[b], out, 1.0f);
  }
  return absl::OkStatus();
}

absl::Status LayerwiseForward::FfnInput(int layer, const FloatMatrix& x, FloatMatrix& out, std::vector<float>* scale) {
  SCION_ASSIGN_OR_RETURN(const std::vector<float> norm,
                         ReadVector(checkpoint_, TrunkTensorName(layer, "post_attention_layernorm.weight")));
  out = x;
  NormRows(out, norm, spec().rms_norm_eps, ops_);
  if (scale == nullptr) return absl::OkStatus();
  scale->resize(static_cast<size_t>(x.rows));
  ops_.ForEach(x.rows, [&](int i) {
    double sum = 0;
    for (const float v : x.row(i)) sum += static_cast<double>(v) * static_cast<double>(v);
    (*scale)[static_cast<size_t>(i)] =
        static_cast<float>(std::sqrt(sum / x.cols + static_cast<double>(spec().rms_norm_eps)));
  });
  return absl::OkStatus();
}

absl::StatusOr<LayerRoute> LayerwiseForward::ReadRoute(int layer) const {
  const std::string& domain = spec().domains[static_cast<size_t>(domain_)].name;
  const int slots = spec().layers[static_cast<size_t>(layer)].ffn.num_experts_per_tok;
  SCION_ASSIGN_OR_RETURN(const TensorInfo* tensor, checkpoint_.Find(RouteTensorName(layer, domain)));
  SCION_ASSIGN_OR_RETURN(const std::vector<int32_t> experts, checkpoint_.ReadInt32(*tensor));
  LayerRoute route;
  for (int slot = 0; slot < slots; ++slot) {
    const auto begin = experts.begin() + static_cast<ptrdiff_t>(slot) * spec().vocab_size;
    route.experts.emplace_back(begin, begin + spec().vocab_size);
  }
  const absl::StatusOr<const TensorInfo*> weights = checkpoint_.Find(RouteWeightTensorName(layer, domain));
  if (weights.ok()) {
    SCION_ASSIGN_OR_RETURN(route.weights, checkpoint_.ReadFloats(**weights));
  } else {
    route.weights.assign(static_cast<size_t>(slots), 1.0f / static_cast<float>(slots));
  }
  return route;
}

absl::StatusOr<FloatMatrix> LayerwiseForward::HeadMetric(const FloatMatrix& x) {
  SCION_ASSIGN_OR_RETURN(const std::vector<float> norm, ReadVector(checkpoint_, "model.norm.weight"));
  SCION_ASSIGN_OR_RETURN(
      FloatMatrix head,
      ReadMatrix(checkpoint_, spec().tie_word_embeddings ? "model.embed_tokens.weight" : "lm_head.weight"));
  FloatMatrix normed = x, probability;
  NormRows(normed, norm, spec().rms_norm_eps, ops_);
  SCION_RETURN_IF_ERROR(ops_.MultiplyTransposed(normed, head, probability));
  ops_.ForEach(probability.rows, [&](int i) {
    const std::span<float> row = probability.row(i);
    const float log_sum = ops_.kernels().log_sum_exp(row.data(), static_cast<int>(row.size()));
    for (float& v : row) v = std::exp(v - log_sum);
  });
  // With rows h of the head as the stream sees them: sum of p h h^T less the same of the mean h.
  ops_.ForEach(head.rows, [&](int v) {
    for (size_t k = 0; k < norm.size(); ++k) head.row(v)[k] *= norm[k];
  });
  FloatMatrix head_transposed, mean, weighted(head.rows, head.cols), whole, of_mean;
  ops_.Transpose(head, head_transposed);
  SCION_RETURN_IF_ERROR(ops_.MultiplyTransposed(probability, head_transposed, mean));
  std::vector<float> mass(static_cast<size_t>(head.rows));
  for (int i = 0; i < probability.rows; ++i) {
    for (size_t v = 0; v < mass.size(); ++v) mass[v] += probability.row(i)[v];
  }
  ops_.ForEach(head.rows, [&](int v) {
    for (size_t k = 0; k < norm.size(); ++k) weighted.row(v)[k] = mass[static_cast<size_t>(v)] * head.row(v)[k];
  });
  FloatMatrix weighted_transposed, mean_transposed;
  ops_.Transpose(weighted, weighted_transposed);
  ops_.Transpose(mean, mean_transposed);
  SCION_RETURN_IF_ERROR(ops_.MultiplyTransposed(weighted_transposed, head_transposed, whole));
  SCION_RETURN_IF_ERROR(ops_.MultiplyTransposed(mean_transposed, mean_transposed, of_mean));
  double trace = 0;
  for (int k = 0; k < whole.rows; ++k) {
    for (size_t j = 0; j < norm.size(); ++j) whole.row(k)[j] -= of_mean.row(k)[j];
    trace += static_cast<double>(whole.row(k)[static_cast<size_t>(k)]);
  }
  if (!(trace > 0)) return absl::InternalError("the head's predictions do not depend on what it reads");
  const double scale = whole.rows / trace;
  for (float& v : whole.data) v = static_cast<float>(scale * static_cast<double>(v));
  return whole;
}

absl::Status LayerwiseForward::AddFfn(int layer, std::span<const TokenBatch> batches, std::span<FloatMatrix> x) {
  FloatMatrix in, out;
  if (spec().layers[static_cast<size_t>(layer)].ffn.router == RouterKind::kNone) {
    SCION_ASSIGN_OR_RETURN(const FfnMatrices ffn, ReadDenseFfn(checkpoint_, layer));
    for (size_t b = 0; b < batches.size(); ++b) {
      SCION_RETURN_IF_ERROR(FfnInput(layer, x[b], in));
      SCION_RETURN_IF_ERROR(ApplyFfn(ffn, in, ops_, out));
      AddScaled(x[b], out, 1.0f);
    }
    return absl::OkStatus();
  }
  SCION_ASSIGN_OR_RETURN(const LayerRoute route, ReadRoute(layer));
  const DomainSpec& domain = spec().domains[static_cast<size_t>(domain_)];
  std::vector<FfnMatrices> experts;
  for (int e = 0; e < domain.num_experts; ++e) {
    SCION_ASSIGN_OR_RETURN(FfnMatrices expert, ReadExpert(checkpoint_, layer, domain.name, e));
    experts.push_back(std::move(expert));
  }
  for (size_t b = 0; b < batches.size(); ++b) {
    SCION_RETURN_IF_ERROR(FfnInput(layer, x[b], in));
    for (size_t slot = 0; slot < route.experts.size(); ++slot) {
      for (int e = 0; e < domain.num_experts; ++e) {
        std::vector<int> rows;
        for (size_t i = 0; i < batches[b].ids.size(); ++i) {
          if (route.experts[slot][static_cast<size_t>(batches[b].ids[i])] == e) rows.push_back(static_cast<int>(i));
        }
        FloatMatrix mine(static_cast<int>(rows.size()), in.cols);
        for (size_t i = 0; i < rows.size(); ++i)
          std::ranges::copy(in.row(rows[i]), mine.row(static_cast<int>(i)).begin());
        if (rows.empty()) continue;
        SCION_RETURN_IF_ERROR(ApplyFfn(experts[static_cast<size_t>(e)], mine, ops_, out));
        for (size_t i = 0; i < rows.size(); ++i) {
          ops_.kernels().add_scaled(x[b].row(rows[i]).data(), out.row(static_cast<int>(i)).data(), route.weights[slot],
                                    in.cols);
        }
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace scion

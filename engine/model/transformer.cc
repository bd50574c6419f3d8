#include "engine/model/transformer.h"

#include <algorithm>
#include <array>
#include <cassert>
#include <cmath>
#include <cstring>
#include <functional>
#include <utility>

#include "absl/time/clock.h"
#include "engine/kernels/ggml_blocks.h"
#include "engine/route/gate_router.h"

namespace scion {
namespace {

using kernels::ActivationForm;
using kernels::PackedMatrix;
using kernels::StoreTo;

int NumExperts(const ModelSpec& spec) {
  int n = 0;
  for (const DomainSpec& d : spec.domains) n += d.num_experts;
  return n;
}

// Of a gate's fp32 input.
size_t NormRowBytes(const kernels::KernelTable& k, int hidden_size) {
  return k.activation_row_bytes(ActivationForm::kF32, hidden_size);
}

// A result of so many bytes would push out of the caches what is still needed, and be gone itself when it is read.
constexpr size_t kBytesPastCaches = size_t{4} << 20;

// Where one token's weights are more, a step finds nothing of the step before in the caches: twice the L3 of the
// machine that it was measured on.
constexpr uint64_t kMostBytesInCaches = uint64_t{64} << 20;

StoreTo WhereTo(size_t rows, size_t width) {
  return rows * width * sizeof(float) < kBytesPastCaches ? StoreTo::kCache : StoreTo::kMemory;
}

}  // namespace

kernels::KvType DefaultKvType(const Checkpoint& checkpoint, WeightMode weights) {
  if (weights == WeightMode::kF32) return kernels::KvType::kF32;
  const absl::StatusOr<const TensorInfo*> keys = checkpoint.Find(TrunkTensorName(0, "self_attn.k_proj.weight"));
  const bool fp16 = weights == WeightMode::kAsIs && keys.ok() && (*keys)->dtype == DType::kF16;
  return fp16 ? kernels::KvType::kF16 : kernels::KvType::kBF16;
}

absl::StatusOr<std::unique_ptr<Model>> Model::Load(const Checkpoint& checkpoint, const ModelOptions& options,
                                                   ThreadPool& pool) {
  const kernels::KernelTable& k = options.kernels != nullptr ? *options.kernels : kernels::GetKernels(options.tier);
  absl::StatusOr<Weights> weights = LoadWeights(checkpoint, options.weights, k, options.pack_cache, pool);
  if (!weights.ok()) return weights.status();
  return Transformer::Create(checkpoint.spec(), options, *std::move(weights), pool);
}

Transformer::Transformer(ModelSpec spec, const ModelOptions& options, Weights weights, ThreadPool& pool)
    : spec_(std::move(spec)),
      options_(options),
      k_(options.kernels != nullptr ? *options.kernels : kernels::GetKernels(options.tier)),
      weights_(std::move(weights)),
      pool_(pool),
      plan_(Routers(), options.max_step_rows),
      splitter_(pool.num_threads()) {}

std::vector<LayerRouter> Transformer::Routers() const {
  std::vector<LayerRouter> routers;
  size_t table = 0;
  for (int layer : spec_.SparseLayers()) {
    const FfnSpec& f = spec_.layers[static_cast<size_t>(layer)].ffn;
    routers.push_back({.table = f.router == RouterKind::kTable ? &weights_.routers[table++] : nullptr,
                       .num_experts = NumExperts(spec_),
                       .num_experts_per_tok = f.num_experts_per_tok});
  }
  return routers;
}

absl::StatusOr<std::unique_ptr<Transformer>> Transformer::Create(ModelSpec spec, const ModelOptions& options,
                                                                 Weights weights, ThreadPool& pool) {
  if (options.max_step_rows < 1 || options.max_logit_rows < 1) {
    return absl::InvalidArgumentError("max_step_rows and max_logit_rows must be at least 1");
  }
  auto t = std::unique_ptr<Transformer>(new Transformer(std::move(spec), options, std::move(weights), pool));
  t->ReadPastCaches();
  const ModelSpec& s = t->spec_;
  const size_t hidden = static_cast<size_t>(s.hidden_size);
  const size_t rows = static_cast<size_t>(options.max_step_rows);
  size_t half_head = 0;
  size_t visits = rows;
  int sparse = 0;
  bool gated = false;
  int widest = s.hidden_size;
  const size_t experts = static_cast<size_t>(NumExperts(s));
  size_t activation_bytes = 64, ffn_bytes = 64;
  for (size_t l = 0; l < s.layers.size(); ++l) {
    const AttentionSpec& a = s.layers[l].attention;
    const FfnSpec& f = s.layers[l].ffn;
    const LayerWeights& w = t->weights_.layers[l];
    activation_bytes =
        std::max({activation_bytes, t->RowBytes(w.qkv[0]), t->RowBytes(w.o), t->RowBytes(w.ffn[0].gate)});
    ffn_bytes = std::max(ffn_bytes, t->RowBytes(w.ffn[0].down));
    gated = gated || f.router == RouterKind::kGate;
    t->qkv_width_ = std::max(t->qkv_width_, static_cast<size_t>((a.num_heads + 2 * a.num_kv_heads) * a.head_dim));
    t->attention_width_ = std::max(t->attention_width_, static_cast<size_t>(a.num_heads * a.head_dim));
    widest = std::max(widest, a.num_heads * a.head_dim);
    widest = std::max(widest, f.intermediate_size);
    half_head = std::max(half_head, static_cast<size_t>(a.head_dim / 2));
    if (f.router == RouterKind::kNone) {
      t->sparse_index_.push_back(-1);
      continue;
    }
    visits = std::max(visits, rows * static_cast<size_t>(f.num_experts_per_tok));
    t->expert_tokens_.push_back(std::make_unique<std::atomic<uint64_t>[]>(experts));
    t->sparse_index_.push_back(sparse++);
  }
  const size_t f = sizeof(float);
  for (auto [buffer, bytes] : {std::pair{&t->x_, rows * hidden * f},
                               {&t->held_x_, rows * hidden * f},
                               {&t->activations_, visits * activation_bytes},
                               {&t->norm_rows_, gated ? rows * NormRowBytes(t->k_, s.hidden_size) : 0},
                               {&t->gate_scores_, gated ? rows * experts * f : 0},
                               {&t->norm_, static_cast<size_t>(pool.num_threads()) * AlignUp(hidden * f, 64)},
                               {&t->qkv_, rows * t->qkv_width_ * f},
                               {&t->attention_, rows * t->attention_width_ * f},
                               {&t->ffn_hidden_, visits * ffn_bytes},
                               {&t->ffn_out_, visits * hidden * f},
                               {&t->cos_, rows * half_head * f},
                               {&t->sin_, rows * half_head * f},
                               {&t->logit_activations_, rows * t->RowBytes(t->weights_.lm_head)}}) {
    absl::StatusOr<AlignedBuffer> made = AlignedBuffer::Create(bytes, "a step's activations");
    if (!made.ok()) return made.status();
    *buffer = *std::move(made);
  }
  t->row_chunk_.resize(rows);
  t->row_position_.resize(rows);
  t->row_token_.resize(rows);
  t->row_domain_.resize(rows);
  t->chosen_experts_.resize(visits);
  t->chosen_weights_.resize(visits);
  const size_t max_groups = std::max(size_t{1}, std::min(visits, experts));
  t->groups_.reserve(max_groups);
  const size_t expert_panels = static_cast<size_t>(kernels::NumPanels(widest));
  const int widest_alone = std::max({s.vocab_size, static_cast<int>(t->qkv_width_), static_cast<int>(experts)});
  const size_t alone_panels = static_cast<size_t>(kernels::NumPanels(widest_alone) + kMaxMatrices);
  const size_t few_panels = static_cast<size_t>((2 * pool.num_threads() + kMaxMatrices) * kMaxRowRanges);
  t->splitter_.Reserve(std::max({max_groups * expert_panels, alone_panels, few_panels}));
  t->matmuls_.reserve(static_cast<size_t>(kMaxMatrices * kMaxRowRanges));
  return t;
}

// But for gates, which all tokens of all domains read.
void Transformer::ReadPastCaches() {
  uint64_t least = active_weight_bytes(0);
  for (int d = 1; d < static_cast<int>(spec_.domains.size()); ++d) least = std::min(least, active_weight_bytes(d));
  if (least <= kMostBytesInCaches) return;
  weights_.lm_head.past_caches = true;
  for (LayerWeights& w : weights_.layers) {
    w.o.past_caches = true;
    for (PackedMatrix& m : w.qkv) m.past_caches = true;
    for (FfnWeights& f : w.ffn) f.gate.past_caches = f.up.past_caches = f.down.past_caches = true;
  }
}

std::vector<KvPlaneSpec> Transformer::KvPlanes() const {
  std::vector<KvPlaneSpec> planes;
  for (size_t l = 0; l < spec_.layers.size(); ++l) {
    const AttentionSpec& a = spec_.layers[l].attention;
    const size_t bytes = static_cast<size_t>(a.num_kv_heads * a.head_dim) * kernels::KvTypeBytes(options_.kv_type);
    planes.push_back({std::to_string(l) + ".k", bytes});
    planes.push_back({std::to_string(l) + ".v", bytes});
  }
  return planes;
}

uint64_t Transformer::active_weight_bytes(int domain) const {
  const size_t d = static_cast<size_t>(domain);
  uint64_t active = weights_.trunk.size() - weights_.embedding.size();
  const std::vector<int> sparse = spec_.SparseLayers();
  if (sparse.empty()) return active;
  // Every sparse layer of a domain has as many experts, and a token visits as many of them.
  const uint64_t visited = static_cast<uint64_t>(spec_.layers[static_cast<size_t>(sparse[0])].ffn.num_experts_per_tok);
  return active + weights_.domains[d].size() * visited / static_cast<uint64_t>(spec_.domains[d].num_experts);
}

uint64_t Transformer::ExpertTokens(int layer, int domain, int expert) const {
  const int sparse = sparse_index_[static_cast<size_t>(layer)];
  if (sparse < 0) return 0;
  int first = 0;
  for (int d = 0; d < domain; ++d) first += spec_.domains[static_cast<size_t>(d)].num_experts;
  return expert_tokens_[static_cast<size_t>(sparse)][static_cast<size_t>(first + expert)].load(
      std::memory_order_relaxed);
}

template <typename Fn>
void Transformer::ForRowRanges(int rows, int rows_per_task, Fn&& fn) {
  pool_.ParallelFor((rows + rows_per_task - 1) / rows_per_task, [&](int task, int thread) {
    fn(task * rows_per_task, std::min(rows, (task + 1) * rows_per_task), thread);
  });
}

template <typename Fn>
void Transformer::ForRows(int rows, Fn&& fn) {
  ForRowRanges(rows, kRowsPerTask, [&](int begin, int end, int thread) {
    for (int row = begin; row < end; ++row) fn(row, thread);
  });
}

void Transformer::MatMul(std::span<const PackedMatrix> matrices, const std::byte* activations, int rows, float* y,
                         size_t y_stride, size_t first, size_t last) {
  const size_t row_bytes = RowBytes(matrices[0]);
  // Too few panels for all threads, a gate's: shared out by rows too.
  const int num_panels = kernels::NumPanels(static_cast<int>(last - first));
  const int ranges = num_panels < 2 * pool_.num_threads() ? std::clamp(rows / kRowsPerTask, 1, kMaxRowRanges) : 1;
  matmuls_.clear();
  size_t column = 0;
  for (const PackedMatrix& w : matrices) {
    const size_t next = column + static_cast<size_t>(w.out_features);
    if (first < next && last > column) {
      const int begin = static_cast<int>(std::max(first, column) - column) / kernels::kPanelWidth;
      const int end = kernels::NumPanels(static_cast<int>(std::min(last, next) - column));
      for (int i = 0; i < ranges; ++i) {
        matmuls_.push_back({&w, rows * i / ranges, rows * (i + 1) / ranges, begin, end - begin, y + column});
      }
    }
    column = next;
  }
  const StoreTo to = WhereTo(static_cast<size_t>(rows), last - first);
  const auto group = [&](int g) {
    const MatrixRows& m = matmuls_[static_cast<size_t>(g)];
    return PanelGroup{.rows = m.end - m.begin, .num_panels = m.num_panels};
  };
  const std::span<const PanelTask> tasks = splitter_.Split(static_cast<int>(matmuls_.size()), group);
  pool_.ParallelFor(static_cast<int>(tasks.size()), [&](int task, int) {
    const PanelTask& t = tasks[static_cast<size_t>(task)];
    const MatrixRows& m = matmuls_[static_cast<size_t>(t.group)];
    const size_t begin = static_cast<size_t>(m.begin);
    k_.matmul(*m.matrix, activations + begin * row_bytes, m.end - m.begin, m.first_panel + t.panel_begin,
              m.first_panel + t.panel_end, m.y + begin * y_stride, y_stride, to);
  });
}

void Transformer::DescribeRows(const StepBatch& batch) {
  for (size_t c = 0; c < batch.chunks.size(); ++c) {
    const StepChunk& chunk = batch.chunks[c];
    for (int i = 0; i < chunk.num_rows; ++i) {
      const size_t row = static_cast<size_t>(chunk.row_begin + i);
      row_chunk_[row] = static_cast<int32_t>(c);
      row_position_[row] = chunk.position + i;
      row_token_[row] = batch.token_ids[row];
      row_domain_[row] = chunk.domain;
    }
  }
}

void Transformer::Embed(const StepBatch& batch, int rows) {
  const size_t hidden = static_cast<size_t>(spec_.hidden_size);
  ForRows(rows, [&](int row, int thread) {
    const size_t id = static_cast<size_t>(batch.token_ids[static_cast<size_t>(row)]);
    float* x = x_.as<float>() + static_cast<size_t>(row) * hidden;
    kernels::DequantizeRow(weights_.embedding_type,
                           weights_.embedding.data() + id * DTypeRowBytes(weights_.embedding_type, hidden),
                           spec_.hidden_size, x);
    PrepareAttention(row, 0, thread);
  });
}

void Transformer::Resume(const StepBatch& batch, int first_row, int layer) {
  const size_t hidden = static_cast<size_t>(spec_.hidden_size);
  ForRows(static_cast<int>(batch.token_ids.size()) - first_row, [&](int i, int thread) {
    const size_t row = static_cast<size_t>(first_row + i);
    const StepChunk& chunk = batch.chunks[static_cast<size_t>(row_chunk_[row])];
    const size_t held = static_cast<size_t>(chunk.held_row + first_row + i - chunk.row_begin);
    std::copy_n(held_x_.as<float>() + held * hidden, hidden, x_.as<float>() + row * hidden);
    PrepareAttention(first_row + i, layer, thread);
  });
}

void Transformer::Hold(int first_row, int rows) {
  const size_t hidden = static_cast<size_t>(spec_.hidden_size);
  std::copy_n(x_.as<float>() + static_cast<size_t>(first_row) * hidden, static_cast<size_t>(rows - first_row) * hidden,
              held_x_.as<float>());
}

const float* Transformer::Norm(int row, const std::vector<float>& weight, int thread) {
  const size_t hidden = static_cast<size_t>(spec_.hidden_size);
  float* norm = norm_.as<float>() + static_cast<size_t>(thread) * AlignUp(hidden, 16);
  k_.rms_norm(x_.as<float>() + static_cast<size_t>(row) * hidden, weight.data(), spec_.rms_norm_eps, spec_.hidden_size,
              norm);
  return norm;
}

void Transformer::PrepareAttention(int row, int layer, int thread) {
  const LayerWeights& w = weights_.layers[static_cast<size_t>(layer)];
  Prepare(w.qkv[0], Norm(row, w.input_norm, thread),
          activations_.data() + static_cast<size_t>(row) * RowBytes(w.qkv[0]));
}

void Transformer::PrepareFfn(int row, int layer, int thread) {
  const size_t r = static_cast<size_t>(row);
  const LayerWeights& w = weights_.layers[static_cast<size_t>(layer)];
  const float* norm = Norm(row, w.post_attn_norm, thread);
  if (spec_.layers[static_cast<size_t>(layer)].ffn.router == RouterKind::kGate) {
    Prepare(w.gate, norm, norm_rows_.data() + r * NormRowBytes(k_, spec_.hidden_size));
  } else {
    PrepareExperts(row, layer, norm);
  }
}

void Transformer::PrepareExperts(int row, int layer, const float* norm) {
  const size_t r = static_cast<size_t>(row);
  const PackedMatrix& first = weights_.layers[static_cast<size_t>(layer)].ffn[0].gate;
  const size_t bytes = RowBytes(first);
  const int sparse = sparse_index_[static_cast<size_t>(layer)];
  if (sparse < 0) return Prepare(first, norm, activations_.data() + r * bytes);
  const size_t k = static_cast<size_t>(spec_.layers[static_cast<size_t>(layer)].ffn.num_experts_per_tok);
  const std::span<const int32_t> entries = plan_.layer(sparse).entries.subspan(r * k, k);
  std::byte* prepared = activations_.data() + static_cast<size_t>(entries[0]) * bytes;
  Prepare(first, norm, prepared);
  for (int32_t entry : entries.subspan(1)) {
    std::memcpy(activations_.data() + static_cast<size_t>(entry) * bytes, prepared, bytes);
  }
}

void Transformer::KeepRows(std::span<const int32_t> kept) {
  const auto keep = [&](auto* first, size_t row_width) {
    for (size_t i = 0; i < kept.size(); ++i) {
      const size_t row = static_cast<size_t>(kept[i]);
      if (row != i) std::copy_n(first + row * row_width, row_width, first + i * row_width);
    }
  };
  const LayerSpec& last = spec_.layers.back();
  keep(row_chunk_.data(), 1);
  keep(row_position_.data(), 1);
  keep(row_token_.data(), 1);
  keep(row_domain_.data(), 1);
  keep(x_.as<float>(), static_cast<size_t>(spec_.hidden_size));
  keep(activations_.data(), RowBytes(weights_.layers.back().qkv[0]));
  for (AlignedBuffer* angles : {&cos_, &sin_}) {
    keep(angles->as<float>(), static_cast<size_t>(last.attention.head_dim / 2));
  }
  if (last.ffn.router == RouterKind::kTable) {
    plan_.BuildTable(sparse_index_.back(), std::span(row_token_).first(kept.size()),
                     std::span(row_domain_).first(kept.size()));
  }
}

int Transformer::RunOfTokens(int row, int end) const {
  const size_t first = static_cast<size_t>(row);
  size_t next = first + 1;
  while (next < static_cast<size_t>(end) && row_chunk_[next] == row_chunk_[first] &&
         row_position_[next] == row_position_[next - 1] + 1) {
    ++next;
  }
  return static_cast<int>(next - first);
}

int Transformer::Attention(const StepBatch& batch, KvCache& cache, int layer, int rows, int first_new_row) {
  const AttentionSpec& a = spec_.layers[static_cast<size_t>(layer)].attention;
  const LayerWeights& w = weights_.layers[static_cast<size_t>(layer)];
  const int hidden = spec_.hidden_size;
  const size_t q_width = static_cast<size_t>(a.num_heads * a.head_dim);
  const size_t kv_width = static_cast<size_t>(a.num_kv_heads * a.head_dim);
  const size_t width = q_width + 2 * kv_width;
  const int half = a.head_dim / 2;
  const kernels::KvPlanes planes{.k = cache.plane(2 * layer),
                                 .v = cache.plane(2 * layer + 1),
                                 .block_stride = cache.block_stride(),
                                 .num_kv_heads = a.num_kv_heads,
                                 .head_dim = a.head_dim,
                                 .type = options_.kv_type};

  const bool drops_rows =
      static_cast<size_t>(layer) + 1 == spec_.layers.size() && static_cast<int>(batch.logit_rows.size()) < rows;
  MatMul(w.qkv, activations_.data(), rows, qkv_.as<float>(), width, drops_rows ? q_width : 0, width);

  // All keys and values of the step are in the cache before any query reads it: attention sees them as rounded to the
  // cache's type, those of its own chunk too.
  const bool new_angles = layer == 0 ||
                          a.rope_theta != spec_.layers[static_cast<size_t>(layer) - 1].attention.rope_theta ||
                          a.head_dim != spec_.layers[static_cast<size_t>(layer) - 1].attention.head_dim;
  const auto make_angles = [&](int row) {
    const size_t r = static_cast<size_t>(row);
    const int position = row_position_[r];
    float* cos = cos_.as<float>() + r * static_cast<size_t>(half);
    float* sin = sin_.as<float>() + r * static_cast<size_t>(half);
    for (int i = 0; i < half; ++i) {
      const float inv_freq = 1.0f / std::pow(a.rope_theta, static_cast<float>(2 * i) / static_cast<float>(a.head_dim));
      cos[i] = std::cos(static_cast<float>(position) * inv_freq);
      sin[i] = std::sin(static_cast<float>(position) * inv_freq);
    }
  };
  const auto rotate = [&](int row, size_t column, int heads, const std::vector<float>& norm) {
    const size_t r = static_cast<size_t>(row);
    float* first = qkv_.as<float>() + r * width + column;
    for (int h = 0; a.qk_norm && h < heads; ++h) {
      float* head = first + h * a.head_dim;
      k_.rms_norm(head, norm.data(), spec_.rms_norm_eps, a.head_dim, head);
    }
    k_.rope(first, heads, a.head_dim, cos_.as<float>() + r * static_cast<size_t>(half),
            sin_.as<float>() + r * static_cast<size_t>(half));
  };
  // A cache line of keys belongs to 16 tokens: of long chunks, one thread has them all.
  ForRowRanges(rows, rows >= 64 * pool_.num_threads() ? 16 : kRowsPerTask, [&](int begin, int end, int) {
    for (int row = begin; row < end;) {
      const StepChunk& chunk = batch.chunks[static_cast<size_t>(row_chunk_[static_cast<size_t>(row)])];
      const int position = row_position_[static_cast<size_t>(row)];
      const int slot = position % kernels::kKvBlockTokens;
      const int count = RunOfTokens(row, std::min(end, row + kernels::kKvBlockTokens - slot));
      for (int r = row; r < row + count; ++r) {
        if (new_angles || r >= first_new_row) make_angles(r);
        if (!drops_rows) rotate(r, 0, a.num_heads, w.q_norm);
        rotate(r, q_width, a.num_kv_heads, w.k_norm);
      }
      const float* k = qkv_.as<float>() + static_cast<size_t>(row) * width + q_width;
      k_.write_kv(planes, chunk.blocks[static_cast<size_t>(position / kernels::kKvBlockTokens)], slot, count, k,
                  k + kv_width, width);
      row += count;
    }
  });

  if (drops_rows) {
    rows = static_cast<int>(batch.logit_rows.size());
    if (rows == 0) return 0;
    KeepRows(batch.logit_rows);
    MatMul(w.qkv, activations_.data(), rows, qkv_.as<float>(), width, 0, q_width);
    ForRows(rows, [&](int row, int) { rotate(row, 0, a.num_heads, w.q_norm); });
  }

  const int group = a.num_heads / a.num_kv_heads;
  const float scale = 1.0f / std::sqrt(static_cast<float>(a.head_dim));
  // A task reads some heads side by side, which is faster than one, of as many rows as leave each thread a few tasks.
  const int heads_per_task = std::clamp(rows * a.num_kv_heads / pool_.num_threads(), 1, kKvHeadsPerTask);
  const int head_tasks = (a.num_kv_heads + heads_per_task - 1) / heads_per_task;
  const int rows_per_task = std::clamp(rows * head_tasks / (4 * pool_.num_threads()), 1, kRowsPerTask);
  const int row_tasks = (rows + rows_per_task - 1) / rows_per_task;
  pool_.ParallelFor(row_tasks * head_tasks, [&](int task, int) {
    const int head = task % head_tasks * heads_per_task;
    const int heads = std::min(heads_per_task, a.num_kv_heads - head);
    const int begin = task / head_tasks * rows_per_task;
    const size_t head_column = static_cast<size_t>(head * group * a.head_dim);
    const int end = std::min(rows, begin + rows_per_task);
    for (int row = begin; row < end;) {
      const size_t r = static_cast<size_t>(row);
      const StepChunk& chunk = batch.chunks[static_cast<size_t>(row_chunk_[r])];
      const int count = RunOfTokens(row, end);
      k_.attend(planes, chunk.blocks.data(), row_position_[r], count, head, heads, group,
                qkv_.as<float>() + r * width + head_column, width, scale,
                attention_.as<float>() + r * q_width + head_column, q_width);
      row += count;
    }
  });

  const size_t attention_bytes = RowBytes(w.o);
  ForRows(rows, [&](int row, int) {
    Prepare(w.o, attention_.as<float>() + static_cast<size_t>(row) * q_width,
            activations_.data() + static_cast<size_t>(row) * attention_bytes);
  });
  MatMul(w.o, activations_.data(), rows, ffn_out_.as<float>());
  ForRows(rows, [&](int row, int thread) {
    const size_t at = static_cast<size_t>(row) * static_cast<size_t>(hidden);
    k_.add_scaled(x_.as<float>() + at, ffn_out_.as<float>() + at, 1.0f, hidden);
    PrepareFfn(row, layer, thread);
  });
  return rows;
}

void Transformer::RouteByGate(int rows, int layer) {
  const FfnSpec& f = spec_.layers[static_cast<size_t>(layer)].ffn;
  const LayerWeights& w = weights_.layers[static_cast<size_t>(layer)];
  const size_t experts = static_cast<size_t>(w.gate.out_features);
  MatMul(w.gate, norm_rows_.data(), rows, gate_scores_.as<float>());
  const size_t k = static_cast<size_t>(f.num_experts_per_tok);
  ForRows(rows, [&](int row, int) {
    const size_t r = static_cast<size_t>(row);
    ChooseExperts({gate_scores_.as<float>() + r * experts, experts}, f.norm_topk_prob,
                  std::span(chosen_experts_).subspan(r * k, k), std::span(chosen_weights_).subspan(r * k, k));
  });
  plan_.BuildGated(sparse_index_[static_cast<size_t>(layer)], rows, chosen_experts_, chosen_weights_);
  ForRows(rows, [&](int row, int) {
    const size_t at = static_cast<size_t>(row) * NormRowBytes(k_, spec_.hidden_size);
    PrepareExperts(row, layer, reinterpret_cast<const float*>(norm_rows_.data() + at));
  });
}

void Transformer::Ffn(int rows, int layer) {
  const FfnSpec& f = spec_.layers[static_cast<size_t>(layer)].ffn;
  const LayerWeights& w = weights_.layers[static_cast<size_t>(layer)];
  const int hidden = spec_.hidden_size;
  const int sparse = sparse_index_[static_cast<size_t>(layer)];

  if (f.router == RouterKind::kGate) RouteByGate(rows, layer);

  // A dense FFN is the case of one expert that all rows visit, in order.
  const LayerRoute* route = sparse < 0 ? nullptr : &plan_.layer(sparse);
  groups_.clear();
  if (route == nullptr) {
    groups_.push_back({&w.ffn[0], 0, rows});
  } else {
    for (const ExpertRows& e : route->experts) {
      groups_.push_back({&w.ffn[static_cast<size_t>(e.expert)], e.begin, e.end});
      expert_tokens_[static_cast<size_t>(sparse)][static_cast<size_t>(e.expert)].fetch_add(
          static_cast<uint64_t>(e.end - e.begin), std::memory_order_relaxed);
    }
  }
  const size_t in_bytes = RowBytes(w.ffn[0].gate), out_bytes = RowBytes(w.ffn[0].down);
  const auto split_experts = [&](int out_features) {
    const auto group = [&](int g) {
      const FfnGroup& expert = groups_[static_cast<size_t>(g)];
      return PanelGroup{.rows = expert.end - expert.begin, .num_panels = kernels::NumPanels(out_features)};
    };
    return splitter_.Split(static_cast<int>(groups_.size()), group);
  };
  std::span<const PanelTask> tasks = split_experts(f.intermediate_size);
  pool_.ParallelFor(static_cast<int>(tasks.size()), [&](int task, int) {
    const PanelTask& t = tasks[static_cast<size_t>(task)];
    const FfnGroup& g = groups_[static_cast<size_t>(t.group)];
    k_.matmul_swiglu(g.weights->gate, g.weights->up, activations_.data() + static_cast<size_t>(g.begin) * in_bytes,
                     g.end - g.begin, t.panel_begin, t.panel_end, FormOf(g.weights->down),
                     ffn_hidden_.data() + static_cast<size_t>(g.begin) * out_bytes);
  });

  const size_t visits = static_cast<size_t>(rows) * static_cast<size_t>(route == nullptr ? 1 : f.num_experts_per_tok);
  const StoreTo to = WhereTo(visits, static_cast<size_t>(hidden));
  tasks = split_experts(hidden);
  pool_.ParallelFor(static_cast<int>(tasks.size()), [&](int task, int) {
    const PanelTask& t = tasks[static_cast<size_t>(task)];
    const FfnGroup& g = groups_[static_cast<size_t>(t.group)];
    k_.matmul(g.weights->down, ffn_hidden_.data() + static_cast<size_t>(g.begin) * out_bytes, g.end - g.begin,
              t.panel_begin, t.panel_end,
              ffn_out_.as<float>() + static_cast<size_t>(g.begin) * static_cast<size_t>(hidden),
              static_cast<size_t>(hidden), to);
  });

  // Slot order, whatever the order of the experts.
  const bool last = static_cast<size_t>(layer) + 1 == spec_.layers.size();
  ForRows(rows, [&](int row, int thread) {
    const size_t r = static_cast<size_t>(row);
    float* x = x_.as<float>() + r * static_cast<size_t>(hidden);
    const auto add = [&](size_t entry, float weight) {
      k_.add_scaled(x, ffn_out_.as<float>() + entry * static_cast<size_t>(hidden), weight, hidden);
    };
    if (route == nullptr) {
      add(r, 1.0f);
    } else {
      const size_t k = static_cast<size_t>(f.num_experts_per_tok);
      for (size_t v = r * k; v < (r + 1) * k; ++v) add(static_cast<size_t>(route->entries[v]), route->weights[v]);
    }
    if (!last) PrepareAttention(row, layer + 1, thread);
  });
}

LayersPassed Transformer::Forward(const StepBatch& planned, KvCache& cache) {
  StepBatch batch = planned;
  const int all_rows = static_cast<int>(batch.token_ids.size());
  const int num_layers = static_cast<int>(spec_.layers.size());
  assert(all_rows <= options_.max_step_rows);
  assert(std::ranges::adjacent_find(batch.logit_rows, std::greater_equal<>()) == batch.logit_rows.end());
  // Layered chunks come last, so that the rows of a layer are always the first so many.
  const bool is_layered = batch.num_layered_rows > 0;
  if (!is_layered) batch.layers = {.begin = 0, .end = num_layers};
  const LayerRange& layered = batch.layers;
  const int whole_rows = all_rows - batch.num_layered_rows;
  const auto rows_of = [&](int layer) { return layer >= layered.begin && layer < layered.end ? all_rows : whole_rows; };
  const auto route_by_tables = [&](int first, int last) {
    for (int layer = first; layer < last; ++layer) {
      const int sparse = sparse_index_[static_cast<size_t>(layer)];
      if (sparse < 0 || spec_.layers[static_cast<size_t>(layer)].ffn.router != RouterKind::kTable) continue;
      const size_t rows = static_cast<size_t>(rows_of(layer));
      plan_.BuildTable(sparse, batch.token_ids.first(rows), std::span(row_domain_).first(rows));
    }
  };
  DescribeRows(batch);
  Embed(batch, rows_of(0));
  route_by_tables(0, num_layers);
  LayersPassed passed;
  int rows = all_rows;
  for (int layer = 0; layer < num_layers; ++layer) {
    const absl::Time begin = absl::Now();
    if (is_layered && layer > layered.begin && layer < layered.end && !batch.goes_on(layer)) {
      const auto of_whole = std::ranges::lower_bound(batch.logit_rows, whole_rows);
      batch.logit_rows = {batch.logit_rows.begin(), of_whole};
      route_by_tables(layer, std::exchange(batch.layers.end, layer));
    }
    const bool in_range = layer >= layered.begin && layer < layered.end;
    const bool resumes = layer == layered.begin && layer > 0;
    if (layer == layered.end) Hold(whole_rows, all_rows);
    rows = rows_of(layer);
    if (resumes) Resume(batch, whole_rows, layer);
    if (rows > 0) rows = Attention(batch, cache, layer, rows, resumes ? whole_rows : rows);
    if (rows > 0) Ffn(rows, layer);
    if (layer + 1 < num_layers) (in_range ? passed.layered_time : passed.others_time) += absl::Now() - begin;
  }
  passed.end = layered.end;
  const size_t bytes = RowBytes(weights_.lm_head);
  ForRows(rows, [&](int row, int thread) {
    Prepare(weights_.lm_head, Norm(row, weights_.final_norm, thread),
            logit_activations_.data() + static_cast<size_t>(row) * bytes);
  });
  return passed;
}

void Transformer::Logits(int first, int count, float* out) {
  assert(count <= options_.max_logit_rows);
  const size_t bytes = RowBytes(weights_.lm_head);
  MatMul(weights_.lm_head, logit_activations_.data() + static_cast<size_t>(first) * bytes, count, out);
}

}  // namespace scion

#include "engine/model/transformer.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <cstring>
#include <utility>

namespace scion {
namespace {

using kernels::PackedMatrix;
using kernels::WeightType;

// Rows of one task in the element-wise loops, and of one task in attention: a decode step of a few rows is one task
// and wakes nobody, a prefill makes enough tasks to even out.
constexpr int kRowsPerTask = 8;

std::vector<const TableRouter*> Pointers(const std::vector<TableRouter>& routers) {
  std::vector<const TableRouter*> out;
  for (const TableRouter& r : routers) out.push_back(&r);
  return out;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Model>> Model::Load(const Checkpoint& checkpoint, const ModelOptions& options,
                                                   ThreadPool& pool) {
  absl::StatusOr<Weights> weights = LoadWeights(checkpoint, options.weights, pool);
  if (!weights.ok()) return weights.status();
  return Transformer::Create(checkpoint.spec(), options, *std::move(weights), pool);
}

Transformer::Transformer(ModelSpec spec, const ModelOptions& options, Weights weights, ThreadPool& pool)
    : spec_(std::move(spec)),
      options_(options),
      k_(options.kernels != nullptr ? *options.kernels : kernels::GetKernels(options.tier)),
      weights_(std::move(weights)),
      pool_(pool),
      plan_(Pointers(weights_.routers), options.max_step_rows) {}

absl::StatusOr<std::unique_ptr<Transformer>> Transformer::Create(ModelSpec spec, const ModelOptions& options,
                                                                 Weights weights, ThreadPool& pool) {
  if (options.max_step_rows < 1 || options.max_logit_rows < 1) {
    return absl::InvalidArgumentError("max_step_rows and max_logit_rows must be at least 1");
  }
  auto t = std::unique_ptr<Transformer>(new Transformer(std::move(spec), options, std::move(weights), pool));
  const ModelSpec& s = t->spec_;
  const size_t hidden = static_cast<size_t>(s.hidden_size);
  const size_t rows = static_cast<size_t>(options.max_step_rows);
  size_t half_head = 0;
  size_t visits = rows;
  int sparse = 0;
  for (size_t l = 0; l < s.layers.size(); ++l) {
    const AttentionSpec& a = s.layers[l].attention;
    const FfnSpec& f = s.layers[l].ffn;
    t->qkv_width_ = std::max(t->qkv_width_, static_cast<size_t>((a.num_heads + 2 * a.num_kv_heads) * a.head_dim));
    t->attention_width_ = std::max(t->attention_width_, static_cast<size_t>(a.num_heads * a.head_dim));
    t->ffn_width_ = std::max(t->ffn_width_, static_cast<size_t>(f.intermediate_size));
    half_head = std::max(half_head, static_cast<size_t>(a.head_dim / 2));
    if (f.router == RouterKind::kNone) {
      t->sparse_index_.push_back(-1);
      continue;
    }
    visits = std::max(visits, rows * static_cast<size_t>(f.num_experts_per_tok));
    const int experts = t->weights_.routers[static_cast<size_t>(sparse)].num_experts();
    t->expert_tokens_.push_back(std::make_unique<std::atomic<uint64_t>[]>(static_cast<size_t>(experts)));
    t->sparse_index_.push_back(sparse++);
  }
  const int widest = static_cast<int>(std::max({hidden, t->attention_width_, t->ffn_width_}));
  const size_t activation_bytes = AlignUp(t->k_.activation_row_bytes(options.weights, widest), 64);
  const size_t f = sizeof(float);
  for (auto [buffer, bytes] :
       {std::pair{&t->x_, rows * hidden * f},
        {&t->activations_, visits * activation_bytes},
        {&t->norm_, static_cast<size_t>(pool.num_threads()) * AlignUp(hidden * f, 64)},
        {&t->qkv_, rows * t->qkv_width_ * f},
        {&t->attention_, rows * t->attention_width_ * f},
        {&t->ffn_hidden_, visits * t->ffn_width_ * f},
        {&t->ffn_out_, visits * hidden * f},
        {&t->cos_, rows * half_head * f},
        {&t->sin_, rows * half_head * f},
        {&t->logit_activations_, rows * AlignUp(t->k_.activation_row_bytes(options.weights, s.hidden_size), 64)}}) {
    absl::StatusOr<AlignedBuffer> made = AlignedBuffer::Create(bytes, "a step's activations");
    if (!made.ok()) return made.status();
    *buffer = *std::move(made);
  }
  t->row_chunk_.resize(rows);
  t->row_position_.resize(rows);
  t->route_chunks_.resize(rows);
  size_t max_groups = 1;
  for (const TableRouter& r : t->weights_.routers) {
    max_groups = std::max(max_groups, std::min(visits, static_cast<size_t>(r.num_experts())));
  }
  t->groups_.reserve(max_groups);
  const size_t max_panels = static_cast<size_t>(kernels::NumPanels(widest));
  t->tasks_.reserve(max_groups * max_panels);
  return t;
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

uint64_t Transformer::ExpertTokens(int layer, int domain, int expert) const {
  const int sparse = sparse_index_[static_cast<size_t>(layer)];
  if (sparse < 0) return 0;
  const int first = weights_.routers[static_cast<size_t>(sparse)].expert_offset(domain);
  return expert_tokens_[static_cast<size_t>(sparse)][static_cast<size_t>(first + expert)].load(
      std::memory_order_relaxed);
}

template <typename Fn>
void Transformer::ForRows(int rows, Fn&& fn) {
  pool_.ParallelFor((rows + kRowsPerTask - 1) / kRowsPerTask, [&](int task, int thread) {
    const int end = std::min(rows, (task + 1) * kRowsPerTask);
    for (int row = task * kRowsPerTask; row < end; ++row) fn(row, thread);
  });
}

void Transformer::MatMul(const PackedMatrix& w, const std::byte* activations, int rows, float* y, size_t y_stride) {
  const int panels = kernels::NumPanels(w.out_features);
  const int per_task = std::max(1, panels / (4 * pool_.num_threads()));
  pool_.ParallelFor((panels + per_task - 1) / per_task, [&](int task, int) {
    k_.matmul(w, activations, rows, task * per_task, std::min(panels, (task + 1) * per_task), y, y_stride);
  });
}

void Transformer::SplitGroups(int num_panels) {
  tasks_.clear();
  const int pieces = 4 * pool_.num_threads();
  const int total = num_panels * static_cast<int>(groups_.size());
  const int per_task = std::clamp(total / pieces, 1, num_panels);
  for (int g = 0; g < static_cast<int>(groups_.size()); ++g) {
    for (int p = 0; p < num_panels; p += per_task) tasks_.push_back({g, p, std::min(num_panels, p + per_task)});
  }
}

void Transformer::Embed(const StepBatch& batch) {
  const size_t hidden = static_cast<size_t>(spec_.hidden_size);
  for (size_t c = 0; c < batch.chunks.size(); ++c) {
    const StepChunk& chunk = batch.chunks[c];
    for (int i = 0; i < chunk.num_rows; ++i) {
      row_chunk_[static_cast<size_t>(chunk.row_begin + i)] = static_cast<int32_t>(c);
      row_position_[static_cast<size_t>(chunk.row_begin + i)] = chunk.position + i;
    }
    route_chunks_[c] = {chunk.domain, chunk.row_begin, chunk.num_rows};
  }
  ForRows(static_cast<int>(batch.token_ids.size()), [&](int row, int) {
    const size_t id = static_cast<size_t>(batch.token_ids[static_cast<size_t>(row)]);
    float* x = x_.as<float>() + static_cast<size_t>(row) * hidden;
    if (weights_.embedding_type == WeightType::kF32) {
      std::memcpy(x, weights_.embedding.as<float>() + id * hidden, hidden * sizeof(float));
    } else {
      const uint16_t* e = weights_.embedding.as<uint16_t>() + id * hidden;
      for (size_t i = 0; i < hidden; ++i) x[i] = Bf16ToF32(e[i]);
    }
  });
}

void Transformer::Attention(const StepBatch& batch, KvCache& cache, int layer) {
  const AttentionSpec& a = spec_.layers[static_cast<size_t>(layer)].attention;
  const LayerWeights& w = weights_.layers[static_cast<size_t>(layer)];
  const int rows = static_cast<int>(batch.token_ids.size());
  const int hidden = spec_.hidden_size;
  const size_t q_width = static_cast<size_t>(a.num_heads * a.head_dim);
  const size_t kv_width = static_cast<size_t>(a.num_kv_heads * a.head_dim);
  const size_t width = q_width + 2 * kv_width;
  const int half = a.head_dim / 2;
  const WeightType type = options_.weights;
  const kernels::KvPlanes planes{.k = cache.plane(2 * layer),
                                 .v = cache.plane(2 * layer + 1),
                                 .block_bytes = cache.block_bytes(2 * layer),
                                 .num_kv_heads = a.num_kv_heads,
                                 .head_dim = a.head_dim,
                                 .type = options_.kv_type};

  const size_t hidden_bytes = k_.activation_row_bytes(type, hidden);
  ForRows(rows, [&](int row, int thread) {
    float* norm = norm_.as<float>() + static_cast<size_t>(thread) * AlignUp(static_cast<size_t>(hidden), 16);
    k_.rms_norm(x_.as<float>() + static_cast<size_t>(row) * static_cast<size_t>(hidden), w.input_norm.data(),
                spec_.rms_norm_eps, hidden, norm);
    k_.prepare_activations(type, norm, 0, nullptr, 1, hidden,
                           activations_.data() + static_cast<size_t>(row) * hidden_bytes);
  });
  MatMul(w.qkv, activations_.data(), rows, qkv_.as<float>(), width);

  // All keys and values of the step are in the cache before any query reads it: attention sees them as rounded to the
  // cache's type, those of its own chunk too.
  const bool new_angles = layer == 0 ||
                          a.rope_theta != spec_.layers[static_cast<size_t>(layer) - 1].attention.rope_theta ||
                          a.head_dim != spec_.layers[static_cast<size_t>(layer) - 1].attention.head_dim;
  ForRows(rows, [&](int row, int) {
    const size_t r = static_cast<size_t>(row);
    const StepChunk& chunk = batch.chunks[static_cast<size_t>(row_chunk_[r])];
    const int position = row_position_[r];
    float* cos = cos_.as<float>() + r * static_cast<size_t>(half);
    float* sin = sin_.as<float>() + r * static_cast<size_t>(half);
    for (int i = 0; new_angles && i < half; ++i) {
      const float inv_freq = 1.0f / std::pow(a.rope_theta, static_cast<float>(2 * i) / static_cast<float>(a.head_dim));
      cos[i] = std::cos(static_cast<float>(position) * inv_freq);
      sin[i] = std::sin(static_cast<float>(position) * inv_freq);
    }
    float* q = qkv_.as<float>() + r * width;
    float* k = q + q_width;
    k_.rope(q, a.num_heads, a.head_dim, cos, sin);
    k_.rope(k, a.num_kv_heads, a.head_dim, cos, sin);
    k_.write_kv(planes, chunk.blocks[static_cast<size_t>(position / kernels::kKvBlockTokens)],
                position % kernels::kKvBlockTokens, k, k + kv_width);
  });

  const int group = a.num_heads / a.num_kv_heads;
  const float scale = 1.0f / std::sqrt(static_cast<float>(a.head_dim));
  const int row_tasks = (rows + kRowsPerTask - 1) / kRowsPerTask;
  pool_.ParallelFor(row_tasks * a.num_kv_heads, [&](int task, int) {
    const int head = task % a.num_kv_heads;
    const int begin = task / a.num_kv_heads * kRowsPerTask;
    const size_t column = static_cast<size_t>(head * group * a.head_dim);
    for (int row = begin; row < std::min(rows, begin + kRowsPerTask); ++row) {
      const size_t r = static_cast<size_t>(row);
      const StepChunk& chunk = batch.chunks[static_cast<size_t>(row_chunk_[r])];
      k_.attend(planes, chunk.blocks.data(), row_position_[r], head, group, qkv_.as<float>() + r * width + column,
                scale, attention_.as<float>() + r * q_width + column);
    }
  });

  const size_t attention_bytes = k_.activation_row_bytes(type, static_cast<int>(q_width));
  ForRows(rows, [&](int row, int) {
    k_.prepare_activations(type, attention_.as<float>() + static_cast<size_t>(row) * q_width, 0, nullptr, 1,
                           static_cast<int>(q_width), activations_.data() + static_cast<size_t>(row) * attention_bytes);
  });
  MatMul(w.o, activations_.data(), rows, ffn_out_.as<float>(), static_cast<size_t>(hidden));
  ForRows(rows, [&](int row, int) {
    const size_t at = static_cast<size_t>(row) * static_cast<size_t>(hidden);
    k_.add_scaled(x_.as<float>() + at, ffn_out_.as<float>() + at, 1.0f, hidden);
  });
}

void Transformer::Ffn(int rows, int layer) {
  const FfnSpec& f = spec_.layers[static_cast<size_t>(layer)].ffn;
  const LayerWeights& w = weights_.layers[static_cast<size_t>(layer)];
  const WeightType type = options_.weights;
  const int hidden = spec_.hidden_size;
  const int k = f.num_experts_per_tok;
  const int sparse = sparse_index_[static_cast<size_t>(layer)];

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
  const int visits = route == nullptr ? rows : rows * k;

  const size_t in_bytes = k_.activation_row_bytes(type, hidden);
  ForRows(rows, [&](int row, int thread) {
    const size_t r = static_cast<size_t>(row);
    float* norm = norm_.as<float>() + static_cast<size_t>(thread) * AlignUp(static_cast<size_t>(hidden), 16);
    k_.rms_norm(x_.as<float>() + r * static_cast<size_t>(hidden), w.post_attn_norm.data(), spec_.rms_norm_eps, hidden,
                norm);
    for (int slot = 0; slot < (route == nullptr ? 1 : k); ++slot) {
      const size_t entry =
          route == nullptr
              ? r
              : static_cast<size_t>(route->entries[r * static_cast<size_t>(k) + static_cast<size_t>(slot)]);
      k_.prepare_activations(type, norm, 0, nullptr, 1, hidden, activations_.data() + entry * in_bytes);
    }
  });

  const size_t width = static_cast<size_t>(f.intermediate_size);
  SplitGroups(kernels::NumPanels(f.intermediate_size));
  pool_.ParallelFor(static_cast<int>(tasks_.size()), [&](int task, int) {
    const MatMulTask& t = tasks_[static_cast<size_t>(task)];
    const FfnGroup& g = groups_[static_cast<size_t>(t.group)];
    k_.matmul_swiglu(g.weights->gate, g.weights->up, activations_.data() + static_cast<size_t>(g.begin) * in_bytes,
                     g.end - g.begin, t.panel_begin, t.panel_end,
                     ffn_hidden_.as<float>() + static_cast<size_t>(g.begin) * width, width);
  });

  const size_t out_bytes = k_.activation_row_bytes(type, f.intermediate_size);
  ForRows(visits, [&](int entry, int) {
    k_.prepare_activations(type, ffn_hidden_.as<float>() + static_cast<size_t>(entry) * width, 0, nullptr, 1,
                           f.intermediate_size, activations_.data() + static_cast<size_t>(entry) * out_bytes);
  });
  SplitGroups(kernels::NumPanels(hidden));
  pool_.ParallelFor(static_cast<int>(tasks_.size()), [&](int task, int) {
    const MatMulTask& t = tasks_[static_cast<size_t>(task)];
    const FfnGroup& g = groups_[static_cast<size_t>(t.group)];
    k_.matmul(g.weights->down, activations_.data() + static_cast<size_t>(g.begin) * out_bytes, g.end - g.begin,
              t.panel_begin, t.panel_end,
              ffn_out_.as<float>() + static_cast<size_t>(g.begin) * static_cast<size_t>(hidden),
              static_cast<size_t>(hidden));
  });

  // Slot order, whatever the order of the experts.
  ForRows(rows, [&](int row, int) {
    const size_t r = static_cast<size_t>(row);
    float* x = x_.as<float>() + r * static_cast<size_t>(hidden);
    if (route == nullptr) {
      k_.add_scaled(x, ffn_out_.as<float>() + r * static_cast<size_t>(hidden), 1.0f, hidden);
      return;
    }
    for (size_t visit = r * static_cast<size_t>(k); visit < (r + 1) * static_cast<size_t>(k); ++visit) {
      k_.add_scaled(x, ffn_out_.as<float>() + static_cast<size_t>(route->entries[visit]) * static_cast<size_t>(hidden),
                    route->weights[visit], hidden);
    }
  });
}

void Transformer::Forward(const StepBatch& batch, KvCache& cache) {
  const int rows = static_cast<int>(batch.token_ids.size());
  assert(rows <= options_.max_step_rows && batch.chunks.size() <= batch.token_ids.size());
  Embed(batch);
  plan_.Build(batch.token_ids, std::span(route_chunks_).first(batch.chunks.size()));
  for (int layer = 0; layer < static_cast<int>(spec_.layers.size()); ++layer) {
    Attention(batch, cache, layer);
    Ffn(rows, layer);
  }
  const int hidden = spec_.hidden_size;
  const size_t bytes = k_.activation_row_bytes(options_.weights, hidden);
  ForRows(static_cast<int>(batch.logit_rows.size()), [&](int i, int thread) {
    float* norm = norm_.as<float>() + static_cast<size_t>(thread) * AlignUp(static_cast<size_t>(hidden), 16);
    const size_t row = static_cast<size_t>(batch.logit_rows[static_cast<size_t>(i)]);
    k_.rms_norm(x_.as<float>() + row * static_cast<size_t>(hidden), weights_.final_norm.data(), spec_.rms_norm_eps,
                hidden, norm);
    k_.prepare_activations(options_.weights, norm, 0, nullptr, 1, hidden,
                           logit_activations_.data() + static_cast<size_t>(i) * bytes);
  });
}

void Transformer::Logits(int first, int count, float* out) {
  assert(count <= options_.max_logit_rows);
  const size_t bytes = k_.activation_row_bytes(options_.weights, spec_.hidden_size);
  MatMul(weights_.lm_head, logit_activations_.data() + static_cast<size_t>(first) * bytes, count, out,
         static_cast<size_t>(spec_.vocab_size));
}

}  // namespace scion

#include "engine/model/weights.h"

#include <algorithm>
#include <atomic>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"

namespace scion {
namespace {

using kernels::PackedMatrix;
using kernels::WeightType;

// A matrix to be packed: its output features are those of the parts, one after another. `out` is filled in with the
// place that the matrix got.
struct PackJob {
  std::vector<const TensorInfo*> parts;  // [features, in_features] each, all of one type
  WeightType type;
  PackedMatrix* out;

  int64_t out_features() const {
    int64_t n = 0;
    for (const TensorInfo* part : parts) n += part->shape[0];
    return n;
  }
  int in_features() const { return static_cast<int>(parts[0]->shape[1]); }
  size_t bytes() const { return kernels::PackedBytes(type, static_cast<int>(out_features()), in_features()); }
};

// The packed type of a matrix. A tensor of the checkpoint has a type that one of the packed types holds.
WeightType PackedType(WeightMode mode, const TensorInfo& tensor) {
  const WeightType exact = *kernels::ExactWeightType(tensor.dtype);
  const bool fills_blocks = tensor.shape[1] % 32 == 0;
  switch (mode) {
    case WeightMode::kAsIs:
      return exact;
    case WeightMode::kBF16:
      return WeightType::kBF16;
    case WeightMode::kF32:
      return WeightType::kF32;
    case WeightMode::kQ8:
      return fills_blocks ? WeightType::kQ8 : exact;
    case WeightMode::kQ4:
      return fills_blocks ? WeightType::kQ4 : exact;
  }
  return exact;
}

// Collects what one buffer will hold, so that the buffer can be made in one piece.
class BufferPlan {
 public:
  BufferPlan(const Checkpoint& checkpoint, WeightMode mode, const kernels::KernelTable& kernels)
      : checkpoint_(checkpoint), mode_(mode), kernels_(kernels) {}

  // One matrix; `mode` other than the plan's for what is never or less coarsely rounded.
  absl::Status Add(const std::string& name, std::optional<WeightMode> mode, PackedMatrix* out);
  absl::Status Add(const std::string& name, PackedMatrix* out) { return Add(name, std::nullopt, out); }
  // Matrices that multiply the same input, one below the other: as few as their types allow, of one activation form.
  absl::Status AddJoined(const std::vector<std::string>& names, std::vector<PackedMatrix>& out);
  // A pair of one packed type.
  absl::Status AddPair(const std::string& first, const std::string& second, PackedMatrix* out_first,
                       PackedMatrix* out_second);

  absl::StatusOr<AlignedBuffer> Pack(std::string_view purpose, ThreadPool& pool) const;

 private:
  absl::Status PackPanelOf(const PackJob& job, int panel, std::vector<std::byte>& staging) const;

  const Checkpoint& checkpoint_;
  const WeightMode mode_;
  const kernels::KernelTable& kernels_;
  std::vector<PackJob> jobs_;
};

absl::Status BufferPlan::Add(const std::string& name, std::optional<WeightMode> mode, PackedMatrix* out) {
  absl::StatusOr<const TensorInfo*> tensor = checkpoint_.Find(name);
  if (!tensor.ok()) return tensor.status();
  jobs_.push_back({.parts = {*tensor}, .type = PackedType(mode.value_or(mode_), **tensor), .out = out});
  return absl::OkStatus();
}

absl::Status BufferPlan::AddJoined(const std::vector<std::string>& names, std::vector<PackedMatrix>& out) {
  std::vector<PackJob> joined;
  bool one_form = true;
  for (const std::string& name : names) {
    absl::StatusOr<const TensorInfo*> tensor = checkpoint_.Find(name);
    if (!tensor.ok()) return tensor.status();
    const WeightType type = PackedType(mode_, **tensor);
    if (joined.empty() || joined.back().type != type || joined.back().parts[0]->dtype != (*tensor)->dtype) {
      joined.push_back({.parts = {}, .type = type, .out = nullptr});
      one_form = one_form && kernels_.activation_form(type) == kernels_.activation_form(joined[0].type);
    }
    joined.back().parts.push_back(*tensor);
  }
  out.resize(joined.size());
  for (size_t i = 0; i < joined.size(); ++i) {
    joined[i].out = &out[i];
    // A rare mix, such as fp32 beside blocks: fp32 holds them all.
    if (!one_form) joined[i].type = WeightType::kF32;
    jobs_.push_back(std::move(joined[i]));
  }
  return absl::OkStatus();
}

absl::Status BufferPlan::AddPair(const std::string& first, const std::string& second, PackedMatrix* out_first,
                                 PackedMatrix* out_second) {
  SCION_RETURN_IF_ERROR(Add(first, out_first));
  SCION_RETURN_IF_ERROR(Add(second, out_second));
  PackJob& a = jobs_[jobs_.size() - 2];
  PackJob& b = jobs_.back();
  if (a.type != b.type) a.type = b.type = WeightType::kF32;
  return absl::OkStatus();
}

// Row `row` of a tensor whose heads' rows are interleaved, in the file.
int64_t FileRow(const TensorInfo& tensor, int64_t row) {
  const int64_t head_dim = tensor.interleaved_head_dim;
  const int64_t in_head = row % head_dim;
  const int64_t half = head_dim / 2;
  return row - in_head + (in_head < half ? 2 * in_head : 2 * (in_head - half) + 1);
}

absl::Status BufferPlan::PackPanelOf(const PackJob& job, int panel, std::vector<std::byte>& staging) const {
  const PackedMatrix& m = *job.out;
  const DType source_type = job.parts[0]->dtype;
  const size_t row_bytes = DTypeRowBytes(source_type, static_cast<uint64_t>(m.in_features));
  const int64_t first = int64_t{panel} * kernels::kPanelWidth;
  const int64_t count = std::min<int64_t>(kernels::kPanelWidth, m.out_features - first);
  staging.resize(static_cast<size_t>(count) * row_bytes);
  int64_t part_begin = 0;
  for (const TensorInfo* part : job.parts) {
    const int64_t part_end = part_begin + part->shape[0];
    const int64_t begin = std::max(first, part_begin);
    const int64_t end = std::min(first + count, part_end);
    const int64_t step = part->interleaved_head_dim > 0 ? 1 : end - begin;
    for (int64_t row = begin; row < end; row += step) {
      const int64_t from =
          step == 1 && part->interleaved_head_dim > 0 ? FileRow(*part, row - part_begin) : row - part_begin;
      SCION_RETURN_IF_ERROR(checkpoint_.Read(*part, static_cast<uint64_t>(from) * row_bytes,
                                             std::span(staging).subspan(static_cast<size_t>(row - first) * row_bytes,
                                                                        static_cast<size_t>(step) * row_bytes)));
    }
    part_begin = part_end;
  }
  kernels::PackPanel(
      source_type, staging.data(), static_cast<int>(count), m.in_features, m.type,
      const_cast<std::byte*>(m.data) + static_cast<size_t>(panel) * kernels::PackedPanelBytes(m.type, m.in_features));
  return absl::OkStatus();
}

absl::StatusOr<AlignedBuffer> BufferPlan::Pack(std::string_view purpose, ThreadPool& pool) const {
  size_t total = 0;
  for (const PackJob& job : jobs_) total += AlignUp(job.bytes(), 64);
  absl::StatusOr<AlignedBuffer> buffer = AlignedBuffer::Create(total, purpose);
  if (!buffer.ok()) return buffer.status();

  // (job, panel) pairs, packed by all threads; the first error is kept.
  std::vector<std::pair<const PackJob*, int>> panels;
  size_t offset = 0;
  for (const PackJob& job : jobs_) {
    *job.out = {.data = buffer->data() + offset,
                .out_features = static_cast<int>(job.out_features()),
                .in_features = job.in_features(),
                .type = job.type};
    offset += AlignUp(job.bytes(), 64);
    for (int p = 0; p < kernels::NumPanels(job.out->out_features); ++p) panels.emplace_back(&job, p);
  }
  std::vector<std::vector<std::byte>> staging(static_cast<size_t>(pool.num_threads()));
  std::atomic<bool> failed{false};
  std::mutex mutex;
  absl::Status first_error;
  pool.ParallelFor(static_cast<int>(panels.size()), [&](int task, int thread) {
    if (failed.load(std::memory_order_relaxed)) return;
    const auto& [job, panel] = panels[static_cast<size_t>(task)];
    absl::Status status = PackPanelOf(*job, panel, staging[static_cast<size_t>(thread)]);
    if (status.ok()) return;
    std::lock_guard lock(mutex);
    if (!failed.exchange(true)) first_error = std::move(status);
  });
  if (failed) return first_error;
  return buffer;
}

absl::Status ReadNorm(const Checkpoint& checkpoint, const std::string& name, std::vector<float>& out) {
  absl::StatusOr<const TensorInfo*> tensor = checkpoint.Find(name);
  if (!tensor.ok()) return tensor.status();
  absl::StatusOr<std::vector<float>> values = checkpoint.ReadFloats(**tensor);
  if (!values.ok()) return values.status();
  out = *std::move(values);
  return absl::OkStatus();
}

absl::Status LoadEmbedding(const Checkpoint& checkpoint, Weights& weights) {
  SCION_ASSIGN_OR_RETURN(const TensorInfo* tensor, checkpoint.Find("model.embed_tokens.weight"));
  weights.embedding_type = tensor->dtype;
  SCION_ASSIGN_OR_RETURN(weights.embedding, AlignedBuffer::Create(tensor->bytes, "the token embedding"));
  return checkpoint.Read(*tensor, 0, {weights.embedding.data(), weights.embedding.size()});
}

absl::Status PlanFfn(const std::function<std::string(std::string_view)>& name, BufferPlan& plan, FfnWeights& ffn) {
  SCION_RETURN_IF_ERROR(plan.AddPair(name("gate"), name("up"), &ffn.gate, &ffn.up));
  return plan.Add(name("down"), &ffn.down);
}

// Everything but the experts.
absl::Status PlanTrunk(const ModelSpec& spec, WeightMode mode, BufferPlan& plan, Weights& weights) {
  for (size_t l = 0; l < spec.layers.size(); ++l) {
    const int layer = static_cast<int>(l);
    LayerWeights& w = weights.layers[l];
    SCION_RETURN_IF_ERROR(plan.AddJoined(
        {TrunkTensorName(layer, "self_attn.q_proj.weight"), TrunkTensorName(layer, "self_attn.k_proj.weight"),
         TrunkTensorName(layer, "self_attn.v_proj.weight")},
        w.qkv));
    SCION_RETURN_IF_ERROR(plan.Add(TrunkTensorName(layer, "self_attn.o_proj.weight"), &w.o));
    switch (spec.layers[l].ffn.router) {
      case RouterKind::kNone:
        w.ffn.resize(1);
        SCION_RETURN_IF_ERROR(PlanFfn(
            [&](std::string_view p) { return TrunkTensorName(layer, absl::StrCat("mlp.", ToAbsl(p), "_proj.weight")); },
            plan, w.ffn[0]));
        break;
      case RouterKind::kTable:
        break;
      case RouterKind::kGate:
        SCION_RETURN_IF_ERROR(plan.Add(GateTensorName(spec, layer), WeightMode::kF32, &w.gate));
        break;
    }
  }
  // As GGML does, the head is never rounded to 4 bits.
  const std::string head = spec.tie_word_embeddings ? "model.embed_tokens.weight" : "lm_head.weight";
  return plan.Add(head, mode == WeightMode::kQ4 ? WeightMode::kQ8 : mode, &weights.lm_head);
}

absl::Status PlanDomain(const ModelSpec& spec, int domain, BufferPlan& plan, Weights& weights) {
  const DomainSpec& d = spec.domains[static_cast<size_t>(domain)];
  size_t table = 0;
  for (int layer : spec.SparseLayers()) {
    const bool gated = spec.layers[static_cast<size_t>(layer)].ffn.router == RouterKind::kGate;
    const int first = gated ? 0 : weights.routers[table++].expert_offset(domain);
    for (int e = 0; e < d.num_experts; ++e) {
      FfnWeights& f = weights.layers[static_cast<size_t>(layer)].ffn[static_cast<size_t>(first + e)];
      SCION_RETURN_IF_ERROR(PlanFfn(
          [&](std::string_view p) {
            return gated ? GateRoutedExpertTensorName(spec, layer, e, p) : ExpertTensorName(layer, d.name, e, p);
          },
          plan, f));
    }
  }
  return absl::OkStatus();
}

// Experts of a layer, all domains, share prepared activations: where their types don't allow it, that is said.
absl::Status CheckExpertForms(const Weights& weights, const kernels::KernelTable& kernels) {
  for (size_t l = 0; l < weights.layers.size(); ++l) {
    const std::vector<FfnWeights>& experts = weights.layers[l].ffn;
    for (const FfnWeights& f : experts) {
      if (kernels.activation_form(f.gate.type) != kernels.activation_form(experts[0].gate.type) ||
          kernels.activation_form(f.down.type) != kernels.activation_form(experts[0].down.type)) {
        return absl::UnimplementedError(absl::StrCat("layer ", l, ": experts of both quantised and float weights"));
      }
    }
  }
  return absl::OkStatus();
}

absl::Status LoadRoutes(const Checkpoint& checkpoint, int layer, TableRouter& router) {
  const ModelSpec& spec = checkpoint.spec();
  for (size_t d = 0; d < spec.domains.size(); ++d) {
    absl::StatusOr<const TensorInfo*> tensor = checkpoint.Find(RouteTensorName(layer, spec.domains[d].name));
    if (!tensor.ok()) return tensor.status();
    absl::StatusOr<std::vector<int32_t>> table = checkpoint.ReadInt32(**tensor);
    if (!table.ok()) return table.status();
    // The file may have changed since Open looked at it, and these values index memory.
    for (int32_t expert : *table) {
      if (expert < 0 || expert >= spec.domains[d].num_experts) {
        return absl::DataLossError(
            absl::StrCat((*tensor)->name, ": expert ", expert, " of ", spec.domains[d].num_experts));
      }
    }
    const size_t k = static_cast<size_t>(router.num_experts_per_tok());
    std::vector<float> slot_weights(k, 1.0f / static_cast<float>(k));
    absl::StatusOr<const TensorInfo*> weight = checkpoint.Find(RouteWeightTensorName(layer, spec.domains[d].name));
    if (weight.ok()) {
      absl::StatusOr<std::vector<float>> values = checkpoint.ReadFloats(**weight);
      if (!values.ok()) return values.status();
      slot_weights = *std::move(values);
    }
    router.SetDomain(static_cast<int>(d), *std::move(table), std::move(slot_weights));
  }
  return absl::OkStatus();
}

}  // namespace

uint64_t Weights::bytes() const {
  uint64_t n = trunk.size() + embedding.size();
  for (const AlignedBuffer& d : domains) n += d.size();
  return n;
}

absl::StatusOr<Weights> LoadWeights(const Checkpoint& checkpoint, WeightMode mode, const kernels::KernelTable& kernels,
                                    ThreadPool& pool) {
  const ModelSpec& spec = checkpoint.spec();
  Weights weights;
  weights.layers.resize(spec.layers.size());
  std::vector<int> num_experts;
  int all_experts = 0;
  for (const DomainSpec& d : spec.domains) {
    num_experts.push_back(d.num_experts);
    all_experts += d.num_experts;
  }
  for (int layer : spec.SparseLayers()) {
    const FfnSpec& ffn = spec.layers[static_cast<size_t>(layer)].ffn;
    weights.layers[static_cast<size_t>(layer)].ffn.resize(static_cast<size_t>(all_experts));
    if (ffn.router != RouterKind::kTable) continue;
    weights.routers.emplace_back(spec.vocab_size, ffn.num_experts_per_tok, num_experts);
    SCION_RETURN_IF_ERROR(LoadRoutes(checkpoint, layer, weights.routers.back()));
  }
  SCION_RETURN_IF_ERROR(LoadEmbedding(checkpoint, weights));
  SCION_RETURN_IF_ERROR(ReadNorm(checkpoint, "model.norm.weight", weights.final_norm));
  for (size_t l = 0; l < spec.layers.size(); ++l) {
    const int layer = static_cast<int>(l);
    LayerWeights& w = weights.layers[l];
    SCION_RETURN_IF_ERROR(ReadNorm(checkpoint, TrunkTensorName(layer, "input_layernorm.weight"), w.input_norm));
    SCION_RETURN_IF_ERROR(
        ReadNorm(checkpoint, TrunkTensorName(layer, "post_attention_layernorm.weight"), w.post_attn_norm));
    if (!spec.layers[l].attention.qk_norm) continue;
    SCION_RETURN_IF_ERROR(ReadNorm(checkpoint, TrunkTensorName(layer, "self_attn.q_norm.weight"), w.q_norm));
    SCION_RETURN_IF_ERROR(ReadNorm(checkpoint, TrunkTensorName(layer, "self_attn.k_norm.weight"), w.k_norm));
  }

  BufferPlan trunk(checkpoint, mode, kernels);
  SCION_RETURN_IF_ERROR(PlanTrunk(spec, mode, trunk, weights));
  SCION_ASSIGN_OR_RETURN(weights.trunk, trunk.Pack("the trunk's weights", pool));
  for (size_t d = 0; d < spec.domains.size(); ++d) {
    BufferPlan domain(checkpoint, mode, kernels);
    SCION_RETURN_IF_ERROR(PlanDomain(spec, static_cast<int>(d), domain, weights));
    SCION_ASSIGN_OR_RETURN(AlignedBuffer buffer,
                           domain.Pack(absl::StrCat("the weights of domain ", spec.domains[d].name), pool));
    weights.domains.push_back(std::move(buffer));
  }
  SCION_RETURN_IF_ERROR(CheckExpertForms(weights, kernels));
  return weights;
}

}  // namespace scion

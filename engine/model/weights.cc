#include "engine/model/weights.h"

#include <algorithm>
#include <atomic>
#include <mutex>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"

namespace scion {
namespace {

using kernels::PackedMatrix;
using kernels::WeightType;

// A matrix to be packed: its output features are those of the parts, one after another. `out` is filled in with the
// place that the matrix got.
struct PackJob {
  std::vector<const TensorInfo*> parts;  // [features, in_features] each
  PackedMatrix* out;
};

size_t JobBytes(const PackJob& job, WeightType type) {
  int64_t features = 0;
  for (const TensorInfo* part : job.parts) features += part->shape[0];
  return kernels::PackedBytes(type, static_cast<int>(features), static_cast<int>(job.parts[0]->shape[1]));
}

// Collects what one buffer will hold, so that the buffer can be made in one piece.
class BufferPlan {
 public:
  explicit BufferPlan(const Checkpoint& checkpoint) : checkpoint_(checkpoint) {}

  absl::Status Add(std::vector<std::string> names, PackedMatrix* out) {
    PackJob job{.parts = {}, .out = out};
    for (const std::string& name : names) {
      absl::StatusOr<const TensorInfo*> tensor = checkpoint_.Find(name);
      if (!tensor.ok()) return tensor.status();
      job.parts.push_back(*tensor);
    }
    jobs_.push_back(std::move(job));
    return absl::OkStatus();
  }

  absl::StatusOr<AlignedBuffer> Pack(WeightType type, std::string_view purpose, ThreadPool& pool) const;

 private:
  absl::Status PackPanelOf(const PackJob& job, int panel, std::vector<std::byte>& staging) const;

  const Checkpoint& checkpoint_;
  std::vector<PackJob> jobs_;
};

absl::Status BufferPlan::PackPanelOf(const PackJob& job, int panel, std::vector<std::byte>& staging) const {
  const PackedMatrix& m = *job.out;
  const DType source_type = job.parts[0]->dtype;
  const size_t row_bytes = static_cast<size_t>(m.in_features) * DTypeBytes(source_type);
  const int64_t first = int64_t{panel} * kernels::kPanelWidth;
  const int64_t count = std::min<int64_t>(kernels::kPanelWidth, m.out_features - first);
  staging.resize(static_cast<size_t>(count) * row_bytes);
  int64_t part_begin = 0;
  for (const TensorInfo* part : job.parts) {
    const int64_t part_end = part_begin + part->shape[0];
    const int64_t begin = std::max(first, part_begin);
    const int64_t end = std::min(first + count, part_end);
    if (begin < end) {
      absl::Status status = checkpoint_.Read(*part, static_cast<uint64_t>(begin - part_begin) * row_bytes,
                                             std::span(staging).subspan(static_cast<size_t>(begin - first) * row_bytes,
                                                                        static_cast<size_t>(end - begin) * row_bytes));
      if (!status.ok()) return status;
    }
    part_begin = part_end;
  }
  kernels::PackPanel(
      source_type, staging.data(), static_cast<int>(count), m.in_features, m.type,
      const_cast<std::byte*>(m.data) + static_cast<size_t>(panel) * kernels::PackedPanelBytes(m.type, m.in_features));
  return absl::OkStatus();
}

absl::StatusOr<AlignedBuffer> BufferPlan::Pack(WeightType type, std::string_view purpose, ThreadPool& pool) const {
  size_t total = 0;
  for (const PackJob& job : jobs_) total += AlignUp(JobBytes(job, type), 64);
  absl::StatusOr<AlignedBuffer> buffer = AlignedBuffer::Create(total, purpose);
  if (!buffer.ok()) return buffer.status();

  // (job, panel) pairs, packed by all threads; the first error is kept.
  std::vector<std::pair<const PackJob*, int>> panels;
  size_t offset = 0;
  for (const PackJob& job : jobs_) {
    int64_t features = 0;
    for (const TensorInfo* part : job.parts) {
      if (part->dtype != job.parts[0]->dtype) {
        return absl::UnimplementedError(
            absl::StrCat(part->name, " is ", std::string(DTypeName(part->dtype)), " but ", job.parts[0]->name, " is ",
                         std::string(DTypeName(job.parts[0]->dtype)), ": they are packed together and must agree"));
      }
      features += part->shape[0];
    }
    *job.out = {.data = buffer->data() + offset,
                .out_features = static_cast<int>(features),
                .in_features = static_cast<int>(job.parts[0]->shape[1]),
                .type = type};
    offset += AlignUp(JobBytes(job, type), 64);
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

// Rows stay in order; F16 and BF16 sources that are not of the wanted type go through fp32.
absl::Status LoadEmbedding(const Checkpoint& checkpoint, WeightType type, Weights& weights) {
  absl::StatusOr<const TensorInfo*> found = checkpoint.Find("model.embed_tokens.weight");
  if (!found.ok()) return found.status();
  const TensorInfo& tensor = **found;
  const uint64_t elements = tensor.bytes / DTypeBytes(tensor.dtype);
  // A 16-bit type other than bf16 would lose bits as bf16.
  weights.embedding_type = type == WeightType::kBF16 && tensor.dtype == DType::kBF16 ? type : WeightType::kF32;
  const size_t element_bytes = weights.embedding_type == WeightType::kBF16 ? 2 : 4;
  absl::StatusOr<AlignedBuffer> buffer = AlignedBuffer::Create(elements * element_bytes, "the token embedding");
  if (!buffer.ok()) return buffer.status();
  weights.embedding = *std::move(buffer);
  if (weights.embedding_type == WeightType::kBF16 || tensor.dtype == DType::kF32) {
    return checkpoint.Read(tensor, 0, {weights.embedding.data(), weights.embedding.size()});
  }
  absl::StatusOr<std::vector<float>> values = checkpoint.ReadFloats(tensor);
  if (!values.ok()) return values.status();
  std::copy(values->begin(), values->end(), weights.embedding.as<float>());
  return absl::OkStatus();
}

absl::Status PlanTrunk(const ModelSpec& spec, BufferPlan& plan, Weights& weights) {
  for (size_t l = 0; l < spec.layers.size(); ++l) {
    const int layer = static_cast<int>(l);
    LayerWeights& w = weights.layers[l];
    absl::Status status =
        plan.Add({TrunkTensorName(layer, "self_attn.q_proj.weight"), TrunkTensorName(layer, "self_attn.k_proj.weight"),
                  TrunkTensorName(layer, "self_attn.v_proj.weight")},
                 &w.qkv);
    if (!status.ok()) return status;
    status = plan.Add({TrunkTensorName(layer, "self_attn.o_proj.weight")}, &w.o);
    if (!status.ok()) return status;
    if (spec.layers[l].ffn.router != RouterKind::kNone) continue;
    w.ffn.resize(1);
    for (auto [name, out] : {std::pair{"gate", &w.ffn[0].gate}, {"up", &w.ffn[0].up}, {"down", &w.ffn[0].down}}) {
      status = plan.Add({TrunkTensorName(layer, absl::StrCat("mlp.", name, "_proj.weight"))}, out);
      if (!status.ok()) return status;
    }
  }
  return plan.Add({spec.tie_word_embeddings ? "model.embed_tokens.weight" : "lm_head.weight"}, &weights.lm_head);
}

absl::Status PlanDomain(const ModelSpec& spec, int domain, BufferPlan& plan, Weights& weights) {
  const DomainSpec& d = spec.domains[static_cast<size_t>(domain)];
  size_t sparse = 0;
  for (int layer : spec.SparseLayers()) {
    const int first = weights.routers[sparse++].expert_offset(domain);
    for (int e = 0; e < d.num_experts; ++e) {
      FfnWeights& f = weights.layers[static_cast<size_t>(layer)].ffn[static_cast<size_t>(first + e)];
      for (auto [name, out] : {std::pair{"gate", &f.gate}, {"up", &f.up}, {"down", &f.down}}) {
        absl::Status status = plan.Add({ExpertTensorName(layer, d.name, e, name)}, out);
        if (!status.ok()) return status;
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

absl::StatusOr<Weights> LoadWeights(const Checkpoint& checkpoint, WeightType type, ThreadPool& pool) {
  const ModelSpec& spec = checkpoint.spec();
  Weights weights;
  weights.layers.resize(spec.layers.size());
  std::vector<int> num_experts;
  for (const DomainSpec& d : spec.domains) num_experts.push_back(d.num_experts);
  for (int layer : spec.SparseLayers()) {
    weights.routers.emplace_back(spec.vocab_size, spec.layers[static_cast<size_t>(layer)].ffn.num_experts_per_tok,
                                 num_experts);
    absl::Status status = LoadRoutes(checkpoint, layer, weights.routers.back());
    if (!status.ok()) return status;
    weights.layers[static_cast<size_t>(layer)].ffn.resize(static_cast<size_t>(weights.routers.back().num_experts()));
  }
  absl::Status status = LoadEmbedding(checkpoint, type, weights);
  if (!status.ok()) return status;
  status = ReadNorm(checkpoint, "model.norm.weight", weights.final_norm);
  if (!status.ok()) return status;
  for (size_t l = 0; l < spec.layers.size(); ++l) {
    const int layer = static_cast<int>(l);
    status = ReadNorm(checkpoint, TrunkTensorName(layer, "input_layernorm.weight"), weights.layers[l].input_norm);
    if (!status.ok()) return status;
    status = ReadNorm(checkpoint, TrunkTensorName(layer, "post_attention_layernorm.weight"),
                      weights.layers[l].post_attn_norm);
    if (!status.ok()) return status;
  }

  BufferPlan trunk(checkpoint);
  status = PlanTrunk(spec, trunk, weights);
  if (!status.ok()) return status;
  absl::StatusOr<AlignedBuffer> buffer = trunk.Pack(type, "the trunk's weights", pool);
  if (!buffer.ok()) return buffer.status();
  weights.trunk = *std::move(buffer);
  for (size_t d = 0; d < spec.domains.size(); ++d) {
    BufferPlan domain(checkpoint);
    status = PlanDomain(spec, static_cast<int>(d), domain, weights);
    if (!status.ok()) return status;
    buffer = domain.Pack(type, absl::StrCat("the weights of domain ", spec.domains[d].name), pool);
    if (!buffer.ok()) return buffer.status();
    weights.domains.push_back(*std::move(buffer));
  }
  return weights;
}

}  // namespace scion

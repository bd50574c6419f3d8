#include "engine/model/weights.h"

#include <functional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/model/pack_plan.h"

namespace scion {
namespace {

absl::Status ReadNorm(const Checkpoint& checkpoint, const std::string& name, std::vector<float>& out) {
  absl::StatusOr<const TensorInfo*> tensor = checkpoint.Find(name);
  if (!tensor.ok()) return tensor.status();
  absl::StatusOr<std::vector<float>> values = checkpoint.ReadFloats(**tensor);
  if (!values.ok()) return values.status();
  out = *std::move(values);
  return absl::OkStatus();
}

absl::Status PlanFfn(const std::function<std::string(std::string_view)>& name, PackPlan& plan, FfnWeights& ffn) {
  SCION_RETURN_IF_ERROR(plan.AddPair(name("gate"), name("up"), &ffn.gate, &ffn.up));
  return plan.Add(name("down"), &ffn.down);
}

// Everything but the experts.
absl::Status PlanTrunk(const ModelSpec& spec, PackPlan& plan, Weights& weights) {
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
  SCION_RETURN_IF_ERROR(
      plan.Add(head, plan.mode() == WeightMode::kQ4 ? WeightMode::kQ8 : plan.mode(), &weights.lm_head));
  return plan.AddRows("model.embed_tokens.weight", &weights.embedding);
}

absl::Status PlanDomain(const ModelSpec& spec, int domain, PackPlan& plan, Weights& weights) {
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

// The blocks of a model: what each holds, and where it lies.
struct PackPlans {
  PackPlan trunk;
  std::vector<PackPlan> domains;
};

// Makes room in `weights` for every matrix; it must outlive the plans.
absl::StatusOr<PackPlans> PlanBlocks(const Checkpoint& checkpoint, WeightMode mode, const kernels::KernelTable& kernels,
                                     Weights& weights) {
  const ModelSpec& spec = checkpoint.spec();
  std::vector<int> num_experts;
  int all_experts = 0;
  for (const DomainSpec& d : spec.domains) {
    num_experts.push_back(d.num_experts);
    all_experts += d.num_experts;
  }
  weights.layers.resize(spec.layers.size());
  for (int layer : spec.SparseLayers()) {
    const FfnSpec& ffn = spec.layers[static_cast<size_t>(layer)].ffn;
    weights.layers[static_cast<size_t>(layer)].ffn.resize(static_cast<size_t>(all_experts));
    if (ffn.router != RouterKind::kTable) continue;
    weights.routers.emplace_back(spec.vocab_size, ffn.num_experts_per_tok, num_experts);
  }
  PackPlans plans{.trunk = PackPlan(checkpoint, mode, kernels), .domains = {}};
  SCION_RETURN_IF_ERROR(PlanTrunk(spec, plans.trunk, weights));
  for (size_t d = 0; d < spec.domains.size(); ++d) {
    plans.domains.emplace_back(checkpoint, mode, kernels);
    SCION_RETURN_IF_ERROR(PlanDomain(spec, static_cast<int>(d), plans.domains.back(), weights));
  }
  return plans;
}

}  // namespace

uint64_t Weights::bytes() const {
  uint64_t n = trunk.size();
  for (const WeightMemory& d : domains) n += d.size();
  return n;
}

uint64_t Weights::shared_bytes() const {
  uint64_t n = trunk.is_shared() ? trunk.size() : 0;
  for (const WeightMemory& d : domains) n += d.is_shared() ? d.size() : 0;
  return n;
}

absl::StatusOr<WeightSizes> PlanWeightSizes(const Checkpoint& checkpoint, WeightMode mode,
                                            const kernels::KernelTable& kernels) {
  Weights weights;
  SCION_ASSIGN_OR_RETURN(const PackPlans plans, PlanBlocks(checkpoint, mode, kernels, weights));
  SCION_ASSIGN_OR_RETURN(const TensorInfo* embedding, checkpoint.Find("model.embed_tokens.weight"));
  WeightSizes sizes{.trunk = plans.trunk.bytes(), .embedding = embedding->bytes, .domains = {}};
  for (const PackPlan& plan : plans.domains) sizes.domains.push_back(plan.bytes());
  return sizes;
}

absl::StatusOr<Weights> LoadWeights(const Checkpoint& checkpoint, WeightMode mode, const kernels::KernelTable& kernels,
                                    const PackCacheOptions& cache_options, ThreadPool& pool) {
  const ModelSpec& spec = checkpoint.spec();
  Weights weights;
  SCION_ASSIGN_OR_RETURN(PackPlans plans, PlanBlocks(checkpoint, mode, kernels, weights));
  size_t table = 0;
  for (int layer : spec.SparseLayers()) {
    if (spec.layers[static_cast<size_t>(layer)].ffn.router != RouterKind::kTable) continue;
    SCION_RETURN_IF_ERROR(LoadRoutes(checkpoint, layer, weights.routers[table++]));
  }
  SCION_ASSIGN_OR_RETURN(const TensorInfo* embedding, checkpoint.Find("model.embed_tokens.weight"));
  weights.embedding_type = embedding->dtype;
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

  size_t total_bytes = plans.trunk.bytes();
  for (const PackPlan& plan : plans.domains) total_bytes += plan.bytes();
  PackCache cache(cache_options, total_bytes, pool);
  SCION_ASSIGN_OR_RETURN(weights.trunk, cache.Load(plans.trunk, "trunk"));
  plans.trunk.Place(weights.trunk.data());
  for (size_t d = 0; d < spec.domains.size(); ++d) {
    SCION_ASSIGN_OR_RETURN(WeightMemory domain, cache.Load(plans.domains[d], "domain-" + spec.domains[d].name));
    plans.domains[d].Place(domain.data());
    weights.domains.push_back(std::move(domain));
  }
  SCION_RETURN_IF_ERROR(CheckExpertForms(weights, kernels));
  return weights;
}

}  // namespace scion

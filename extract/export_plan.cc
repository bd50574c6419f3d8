#include "extract/export_plan.h"

#include <algorithm>
#include <map>
#include <string_view>
#include <utility>

#include "engine/base/status.h"

namespace scion {
namespace {

enum class Kind : uint8_t { kVector, kGate, kMatrix, kRotated, kHead };  // kRotated: q and k; kHead: or the embedding

// Behind "model.layers.{l}." and "blk.{l}.".
struct LayerTensor {
  std::string_view ours, gguf;
  Kind kind;
};
constexpr LayerTensor kAttention[] = {
    {"input_layernorm.weight", "attn_norm.weight", Kind::kVector},
    {"self_attn.q_proj.weight", "attn_q.weight", Kind::kRotated},
    {"self_attn.k_proj.weight", "attn_k.weight", Kind::kRotated},
    {"self_attn.v_proj.weight", "attn_v.weight", Kind::kMatrix},
    {"self_attn.o_proj.weight", "attn_output.weight", Kind::kMatrix},
    {"post_attention_layernorm.weight", "ffn_norm.weight", Kind::kVector},
};
constexpr LayerTensor kQkNorms[] = {
    {"self_attn.q_norm.weight", "attn_q_norm.weight", Kind::kVector},
    {"self_attn.k_norm.weight", "attn_k_norm.weight", Kind::kVector},
};
constexpr std::string_view kProjections[] = {"gate", "up", "down"};

ExportFamily FamilyOf(const ModelSpec& spec) {
  if (spec.model_type == "qwen3_moe") return ExportFamily::kQwen3Moe;
  const bool has_gates =
      std::ranges::any_of(spec.layers, [](const LayerSpec& layer) { return layer.ffn.router == RouterKind::kGate; });
  return has_gates ? ExportFamily::kMixtral : ExportFamily::kLlama;
}

class Planner {
 public:
  Planner(const Checkpoint& checkpoint, ExportFormat format, std::optional<DType> type)
      : checkpoint_(checkpoint), spec_(checkpoint.spec()), format_(format), type_(type), exported_spec_(spec_) {}

  absl::StatusOr<ExportPlan> Plan() {
    plan_.family = FamilyOf(spec_);
    const bool is_mixtral = plan_.family == ExportFamily::kMixtral;
    exported_spec_.expert_names = is_mixtral ? ExpertNames::kBlockSparse : ExpertNames::kMlp;
    SCION_RETURN_IF_ERROR(RefuseModel());
    if (!TableStatus().ok()) return PlanScion();
    SCION_RETURN_IF_ERROR(AddOne("model.embed_tokens.weight", "token_embd.weight", Kind::kHead));
    SCION_RETURN_IF_ERROR(AddOne("model.norm.weight", "output_norm.weight", Kind::kVector));
    if (!spec_.tie_word_embeddings) SCION_RETURN_IF_ERROR(AddOne("lm_head.weight", "output.weight", Kind::kHead));
    for (int layer = 0; layer < static_cast<int>(spec_.layers.size()); ++layer) {
      for (const LayerTensor& t : kAttention) SCION_RETURN_IF_ERROR(AddLayerTensor(layer, t));
      const LayerSpec& layer_spec = spec_.layers[static_cast<size_t>(layer)];
      if (layer_spec.attention.qk_norm) {
        for (const LayerTensor& t : kQkNorms) SCION_RETURN_IF_ERROR(AddLayerTensor(layer, t));
      }
      SCION_RETURN_IF_ERROR(layer_spec.ffn.router == RouterKind::kGate ? AddExperts(layer) : AddFfn(layer));
    }
    return std::move(plan_);
  }

 private:
  std::string Name() const { return checkpoint_.directory().string(); }
  bool is_gguf() const { return format_ == ExportFormat::kGguf; }

  absl::Status RefuseModel() const {
    if (!is_gguf() && type_.has_value() && IsQuantized(*type_)) {
      return absl::InvalidArgumentError(
          "a Hugging Face directory has no blocks of GGML: export it as f32, f16 or bf16, or as gguf");
    }
    if (is_gguf()) SCION_RETURN_IF_ERROR(TableStatus());
    for (size_t l = 0; l < spec_.layers.size(); ++l) {
      const FfnSpec& ffn = spec_.layers[l].ffn;
      if (!is_gguf() || plan_.family != ExportFamily::kQwen3Moe) continue;
      if (ffn.router == RouterKind::kNone) {
        return absl::UnimplementedError(
            absl::StrCat(Name(), ": layer ", l, " has no experts, but in GGUF every layer of a qwen3moe has"));
      }
      if (!ffn.norm_topk_prob) {
        return absl::UnimplementedError(
            absl::StrCat(Name(), ": 'norm_topk_prob' is false, but in GGUF the weights of a qwen3moe are normalised"));
      }
    }
    return absl::OkStatus();
  }

  absl::Status TableStatus() const {
    for (size_t l = 0; l < spec_.layers.size(); ++l) {
      if (spec_.layers[l].ffn.router == RouterKind::kTable) SCION_RETURN_IF_ERROR(RefuseTable(static_cast<int>(l)));
    }
    return absl::OkStatus();
  }

  // Experts that a table routes to, unless there is one: then it is an ordinary FFN, if it is as wide as the others.
  absl::Status RefuseTable(int layer) const {
    const FfnSpec& ffn = spec_.layers[static_cast<size_t>(layer)].ffn;
    constexpr std::string_view kAdvice =
        ": fold a domain into a dense model with `moe-extract densify`, and export that; or --format hf, which brings "
        "its own code";
    if (spec_.domains.size() > 1 || spec_.domains[0].num_experts > 1 || ffn.num_experts_per_tok > 1) {
      return absl::FailedPreconditionError(
          absl::StrCat(Name(), ": layer ", layer,
                       " chooses experts by a table of token ids, which no other program knows", ToAbsl(kAdvice)));
    }
    if (checkpoint_.Find(RouteWeightTensorName(layer, spec_.domains[0].name)).ok()) {
      return absl::FailedPreconditionError(absl::StrCat(
          Name(), ": layer ", layer, " weights its expert's output, which no other program knows", ToAbsl(kAdvice)));
    }
    const int other = spec_.layers[0].ffn.intermediate_size;
    if (ffn.intermediate_size == other) return absl::OkStatus();
    return absl::FailedPreconditionError(absl::StrCat(Name(), ": layer 0 has an FFN of ", other, ", layer ", layer,
                                                      " one of ", ffn.intermediate_size,
                                                      ", but a Llama's are all alike", ToAbsl(kAdvice)));
  }

  // All tensors as they are called, in the source's order.
  ExportPlan PlanScion() const {
    ExportPlan plan{.family = ExportFamily::kScion, .tensors = {}};
    for (const TensorInfo& tensor : checkpoint_.tensors()) {
      const bool is_route = tensor.dtype == DType::kI32 || tensor.name.ends_with(".route_weight");
      const DType type = is_route                    ? tensor.dtype
                         : type_.has_value()         ? *type_
                         : IsQuantized(tensor.dtype) ? DType::kF32
                                                     : tensor.dtype;
      plan.tensors.push_back({.name = tensor.name, .shape = tensor.shape, .type = type, .parts = {&tensor}});
    }
    return plan;
  }

  absl::Status AddOne(const std::string& ours, const std::string& gguf, Kind kind, int head_dim = 0) {
    return Add(is_gguf() ? gguf : ours, {ours}, kind, head_dim);
  }

  absl::Status AddLayerTensor(int layer, const LayerTensor& tensor) {
    const int head_dim = spec_.layers[static_cast<size_t>(layer)].attention.head_dim;
    return AddOne(TrunkTensorName(layer, tensor.ours), absl::StrCat("blk.", layer, ".", ToAbsl(tensor.gguf)),
                  tensor.kind, head_dim);
  }

  absl::Status AddFfn(int layer) {
    for (std::string_view p : kProjections) {
      const std::string plain = TrunkTensorName(layer, absl::StrCat("mlp.", ToAbsl(p), "_proj.weight"));
      const std::string source = spec_.layers[static_cast<size_t>(layer)].ffn.router == RouterKind::kTable
                                     ? ExpertTensorName(layer, spec_.domains[0].name, 0, p)
                                     : plain;
      SCION_RETURN_IF_ERROR(
          Add(is_gguf() ? absl::StrCat("blk.", layer, ".ffn_", ToAbsl(p), ".weight") : plain, {source}, Kind::kMatrix));
    }
    return absl::OkStatus();
  }

  absl::Status AddExperts(int layer) {
    const int num_experts = spec_.domains[0].num_experts;
    const std::string prefix = absl::StrCat("blk.", layer, ".ffn_");
    SCION_RETURN_IF_ERROR(Add(is_gguf() ? prefix + "gate_inp.weight" : GateTensorName(exported_spec_, layer),
                              {GateTensorName(spec_, layer)}, Kind::kGate));
    for (std::string_view p : kProjections) {
      std::vector<std::string> experts;
      for (int e = 0; e < num_experts; ++e) {
        experts.push_back(GateRoutedExpertTensorName(spec_, layer, e, p));
        if (is_gguf()) continue;
        SCION_RETURN_IF_ERROR(
            Add(GateRoutedExpertTensorName(exported_spec_, layer, e, p), {experts.back()}, Kind::kMatrix));
      }
      if (!is_gguf()) continue;
      SCION_RETURN_IF_ERROR(Add(absl::StrCat(prefix, ToAbsl(p), "_exps.weight"), experts, Kind::kMatrix));
      std::vector<int64_t>& shape = plan_.tensors.back().shape;
      shape.insert(shape.begin(), num_experts);
    }
    return absl::OkStatus();
  }

  absl::Status Add(std::string name, const std::vector<std::string>& sources, Kind kind, int head_dim = 0) {
    ExportTensor tensor{.name = std::move(name), .shape = {}, .type = DType::kF32, .parts = {}};
    for (const std::string& source : sources) {
      SCION_ASSIGN_OR_RETURN(const TensorInfo* part, checkpoint_.Find(source));
      tensor.parts.push_back(part);
      SCION_ASSIGN_OR_RETURN(const DType type, TypeOf(*part, kind));
      if (tensor.parts.size() == 1) {
        tensor.shape = part->shape;
        tensor.type = type;
      }
      if (part->dtype == tensor.parts[0]->dtype) continue;
      return absl::FailedPreconditionError(absl::StrCat(
          Name(), ": tensor ", Quoted(source), " is ", ToAbsl(DTypeName(part->dtype)), ", but ", Quoted(sources[0]),
          ", with which it would share a tensor, is ", ToAbsl(DTypeName(tensor.parts[0]->dtype))));
    }
    const bool is_paired = is_gguf() && plan_.family != ExportFamily::kQwen3Moe;
    if (kind == Kind::kRotated && is_paired) tensor.interleaved_head_dim = head_dim;
    plan_.tensors.push_back(std::move(tensor));
    return absl::OkStatus();
  }

  absl::StatusOr<DType> TypeOf(const TensorInfo& source, Kind kind) const {
    if (!is_gguf()) {
      if (type_.has_value()) return *type_;
      return IsQuantized(source.dtype) ? DType::kF32 : source.dtype;
    }
    if (kind == Kind::kVector || kind == Kind::kGate) return DType::kF32;
    if (!type_.has_value()) return source.dtype;
    const DType type = *type_ == DType::kQ4_0 && kind == Kind::kHead ? DType::kQ8_0 : *type_;
    if (!IsQuantized(type) || type == source.dtype) return type;
    if (IsQuantized(source.dtype)) {
      return absl::FailedPreconditionError(absl::StrCat(Name(), ": tensor ", Quoted(source.name),
                                                        " is quantised already, to ", ToAbsl(DTypeName(source.dtype)),
                                                        ": rounding it again would lose more"));
    }
    return source.shape.back() % DTypeBlockElements(type) == 0 ? type : source.dtype;
  }

  const Checkpoint& checkpoint_;
  const ModelSpec& spec_;
  const ExportFormat format_;
  const std::optional<DType> type_;
  ModelSpec exported_spec_;  // for the names of experts
  ExportPlan plan_;
};

}  // namespace

uint64_t ExportTensor::rows() const {
  uint64_t rows = 1;
  for (size_t d = 0; d + 1 < shape.size(); ++d) rows *= static_cast<uint64_t>(shape[d]);
  return rows;
}

uint64_t ExportPlan::bytes() const {
  uint64_t bytes = 0;
  for (const ExportTensor& tensor : tensors) bytes += tensor.bytes();
  return bytes;
}

DType ExportPlan::main_type() const {
  std::map<DType, uint64_t> weights;
  for (const ExportTensor& tensor : tensors) weights[tensor.type] += tensor.rows() * tensor.row_length();
  return std::ranges::max_element(weights, {}, [](const auto& entry) { return entry.second; })->first;
}

absl::StatusOr<ExportPlan> PlanExport(const Checkpoint& checkpoint, ExportFormat format, std::optional<DType> type) {
  return Planner(checkpoint, format, type).Plan();
}

}  // namespace scion

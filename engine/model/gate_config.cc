#include "engine/model/gate_config.h"

#include <algorithm>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "engine/base/status.h"
#include "engine/model/config_value.h"

namespace scion {
namespace {

// Keys of relatives of these models, which would change what the forward pass computes; off when absent, null, false
// or 0.
constexpr std::string_view kForeignFeatures[] = {
    "shared_expert_intermediate_size", "n_shared_experts",      "num_shared_experts", "n_group",        "topk_group",
    "routed_scaling_factor",           "first_k_dense_replace", "clip_qkv",           "add_router_bias"};

absl::Status RefuseForeignFeatures(const Json& config) {
  for (std::string_view key : kForeignFeatures) {
    const Json* value = FindMember(config, key);
    if (value != nullptr && value->is_number() && *value == 0) continue;
    SCION_RETURN_IF_ERROR(RefuseFeature(config, key));
  }
  return absl::OkStatus();
}

// Transformers 5 writes Qwen3-MoE's 'num_experts' as 'num_local_experts', which is Mixtral's name; both are read.
absl::StatusOr<int> ParseNumExperts(const Json& config, std::string_view key, std::string_view other_key) {
  if (FindMember(config, key) == nullptr && FindMember(config, other_key) != nullptr) std::swap(key, other_key);
  SCION_ASSIGN_OR_RETURN(const int num_experts, GetSize(config, key, kMaxExpertsPerDomain));
  SCION_ASSIGN_OR_RETURN(const int other, GetSizeOr(config, other_key, kMaxExpertsPerDomain, num_experts));
  if (num_experts == other) return num_experts;
  return absl::InvalidArgumentError(
      absl::StrCat(Quoted(key), " is ", num_experts, ", but ", Quoted(other_key), " is ", other));
}

// Layers with one FFN instead of experts, as Qwen3-MoE names them: 'mlp_only_layers', and all but each
// 'decoder_sparse_step'-th.
absl::StatusOr<std::vector<bool>> ParseDenseLayers(const Json& config, int num_layers) {
  std::vector<bool> dense(static_cast<size_t>(num_layers));
  SCION_ASSIGN_OR_RETURN(const int step, GetSizeOr(config, "decoder_sparse_step", kMaxLayers, 1));
  for (int layer = 0; layer < num_layers; ++layer) dense[static_cast<size_t>(layer)] = (layer + 1) % step != 0;
  if (FindMember(config, "mlp_only_layers") == nullptr) return dense;
  SCION_ASSIGN_OR_RETURN(const Json* list, GetArray(config, "mlp_only_layers"));
  for (const Json& item : *list) {
    SCION_ASSIGN_OR_RETURN(const int64_t layer, AsInt(item, "mlp_only_layers", 0, num_layers - 1));
    dense[static_cast<size_t>(layer)] = true;
  }
  return dense;
}

absl::Status ParseQwen3Moe(const Json& config, ModelSpec& spec) {
  FfnSpec sparse{.router = RouterKind::kGate};
  SCION_ASSIGN_OR_RETURN(const int num_experts, ParseNumExperts(config, "num_experts", "num_local_experts"));
  SCION_ASSIGN_OR_RETURN(sparse.num_experts_per_tok,
                         GetSize(config, "num_experts_per_tok", std::min(kMaxExpertsPerToken, num_experts)));
  SCION_ASSIGN_OR_RETURN(sparse.intermediate_size, GetSize(config, "moe_intermediate_size", kMaxIntermediateSize));
  SCION_ASSIGN_OR_RETURN(const std::optional<bool> normalised, GetOptionalBool(config, "norm_topk_prob"));
  sparse.norm_topk_prob = normalised.value_or(false);
  SCION_ASSIGN_OR_RETURN(const std::vector<bool> dense, ParseDenseLayers(config, static_cast<int>(spec.layers.size())));
  FfnSpec plain;
  if (std::ranges::find(dense, true) != dense.end()) {
    SCION_ASSIGN_OR_RETURN(plain.intermediate_size, GetSize(config, "intermediate_size", kMaxIntermediateSize));
  }
  for (size_t layer = 0; layer < dense.size(); ++layer) {
    spec.layers[layer].attention.qk_norm = true;
    spec.layers[layer].ffn = dense[layer] ? plain : sparse;
  }
  const bool has_experts = std::ranges::find(dense, false) != dense.end();
  spec.domains = {DomainSpec{"default", has_experts ? num_experts : 0}};
  return absl::OkStatus();
}

absl::Status ParseMixtral(const Json& config, ModelSpec& spec) {
  FfnSpec sparse{.router = RouterKind::kGate, .norm_topk_prob = true};
  SCION_ASSIGN_OR_RETURN(const int num_experts, ParseNumExperts(config, "num_local_experts", "num_experts"));
  SCION_ASSIGN_OR_RETURN(sparse.num_experts_per_tok,
                         GetSize(config, "num_experts_per_tok", std::min(kMaxExpertsPerToken, num_experts)));
  SCION_ASSIGN_OR_RETURN(sparse.intermediate_size, GetSize(config, "intermediate_size", kMaxIntermediateSize));
  for (LayerSpec& layer : spec.layers) layer.ffn = sparse;
  spec.domains = {DomainSpec{"default", num_experts}};
  spec.expert_names = ExpertNames::kBlockSparse;
  return absl::OkStatus();
}

}  // namespace

bool IsGateRouted(std::string_view model_type) { return model_type == "qwen3_moe" || model_type == "mixtral"; }

absl::Status ParseGateRouted(const Json& config, ModelSpec& spec) {
  SCION_RETURN_IF_ERROR(RefuseForeignFeatures(config));
  return spec.model_type == "mixtral" ? ParseMixtral(config, spec) : ParseQwen3Moe(config, spec);
}

absl::Status RefuseSlidingWindow(const Json& config, std::string_view model_type) {
  SCION_RETURN_IF_ERROR(RefuseFeature(config, "use_sliding_window"));
  if (model_type != "qwen3_moe") SCION_RETURN_IF_ERROR(RefuseFeature(config, "sliding_window"));
  if (FindMember(config, "layer_types") == nullptr) return absl::OkStatus();
  SCION_ASSIGN_OR_RETURN(const Json* types, GetArray(config, "layer_types"));
  for (const Json& type : *types) {
    if (type.is_string() && type.get_ref<const std::string&>() == "full_attention") continue;
    return absl::UnimplementedError(
        "'layer_types' has other layers than 'full_attention', which is all that this "
        "engine supports");
  }
  return absl::OkStatus();
}

}  // namespace scion

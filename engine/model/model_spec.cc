#include "engine/model/model_spec.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <string>

#include "absl/container/flat_hash_set.h"
#include "engine/base/json.h"
#include "engine/base/status.h"
#include "engine/model/config_value.h"
#include "engine/model/gate_config.h"

namespace scion {
namespace {

absl::Status Invalid(std::string message) { return absl::InvalidArgumentError(message); }
absl::Status Unsupported(std::string message) { return absl::UnimplementedError(message); }

struct ModelType {
  std::string_view name, architecture;
};
constexpr ModelType kModelTypes[] = {{"scion", "ScionForCausalLM"},
                                     {"llama", "LlamaForCausalLM"},
                                     {"qwen3_moe", "Qwen3MoeForCausalLM"},
                                     {"mixtral", "MixtralForCausalLM"}};

absl::StatusOr<std::string> ParseModelType(const Json& config) {
  SCION_ASSIGN_OR_RETURN(std::string model_type, GetString(config, "model_type"));
  const auto type = std::ranges::find(kModelTypes, model_type, &ModelType::name);
  if (type == std::end(kModelTypes)) {
    std::string known;
    for (const ModelType& t : kModelTypes) absl::StrAppend(&known, known.empty() ? "" : ", ", Quoted(t.name));
    return Unsupported(absl::StrCat("'model_type' is ", Quoted(model_type), "; this build knows ", known));
  }
  if (FindMember(config, "architectures") != nullptr) {
    SCION_ASSIGN_OR_RETURN(const Json* list, GetArray(config, "architectures"));
    const bool found = std::any_of(list->begin(), list->end(), [&](const Json& name) {
      return name.is_string() && name.get_ref<const std::string&>() == type->architecture;
    });
    if (!found) {
      return Unsupported(absl::StrCat("'architectures' does not contain ", Quoted(type->architecture),
                                      ", which 'model_type' ", Quoted(model_type), " needs"));
    }
  }
  return model_type;
}

// Only plain RoPE, under either of the names that Hugging Face has given to its parameters.
absl::Status RefuseRopeScaling(const Json& config, std::string_view key) {
  if (FindMember(config, key) == nullptr) return absl::OkStatus();
  SCION_ASSIGN_OR_RETURN(const Json* rope, GetObject(config, key));
  for (std::string_view type_key : {"rope_type", "type"}) {
    if (absl::Status s = AllowOnly(*rope, type_key, "default"); !s.ok()) return Annotate(s, key);
  }
  for (const Json* place : {rope, &config}) {
    SCION_ASSIGN_OR_RETURN(const std::optional<double> partial, GetOptionalNumber(*place, "partial_rotary_factor"));
    if (partial.value_or(1.0) != 1.0) return Unsupported("'partial_rotary_factor' other than 1 is not supported");
  }
  return absl::OkStatus();
}

absl::StatusOr<float> ParseRopeTheta(const Json& config, double otherwise) {
  SCION_RETURN_IF_ERROR(RefuseRopeScaling(config, "rope_scaling"));
  SCION_RETURN_IF_ERROR(RefuseRopeScaling(config, "rope_parameters"));
  SCION_ASSIGN_OR_RETURN(const std::optional<double> theta, GetOptionalNumber(config, "rope_theta"));
  std::optional<double> nested;
  if (const Json* rope = FindMember(config, "rope_parameters")) {
    SCION_ASSIGN_OR_RETURN(nested, GetOptionalNumber(*rope, "rope_theta"));
  }
  if (theta.has_value() && nested.has_value() && *theta != *nested) {
    return Invalid(absl::StrCat("'rope_theta' is ", *theta, ", but 'rope_parameters' says ", *nested));
  }
  const double value = theta.value_or(nested.value_or(otherwise));
  if (!(value >= 1.0 && value <= 1e12)) return Invalid(absl::StrCat("'rope_theta' is ", value, ", outside [1, 1e12]"));
  return static_cast<float>(value);
}

absl::StatusOr<DType> ParseModelDType(const Json& config) {
  const bool has_both = FindMember(config, "torch_dtype") != nullptr && FindMember(config, "dtype") != nullptr;
  SCION_ASSIGN_OR_RETURN(const std::string old_name, GetStringOr(config, "torch_dtype", "float32"));
  SCION_ASSIGN_OR_RETURN(const std::string name, GetStringOr(config, "dtype", old_name));
  if (has_both && old_name != name) {
    return Invalid(absl::StrCat("'torch_dtype' is ", Quoted(old_name), ", but 'dtype' is ", Quoted(name)));
  }
  if (name == "bfloat16") return DType::kBF16;
  if (name == "float16") return DType::kF16;
  if (name == "float32") return DType::kF32;
  return Unsupported(absl::StrCat("'dtype' is ", Quoted(name), "; bfloat16, float16 and float32 are supported"));
}

absl::StatusOr<AttentionSpec> ParseAttention(const Json& config, std::string_view model_type, int hidden_size) {
  AttentionSpec attention;
  SCION_ASSIGN_OR_RETURN(attention.num_heads, GetSize(config, "num_attention_heads", kMaxHiddenSize));
  SCION_ASSIGN_OR_RETURN(attention.num_kv_heads,
                         GetSizeOr(config, "num_key_value_heads", kMaxHiddenSize, attention.num_heads));
  if (FindMember(config, "head_dim") == nullptr && hidden_size % attention.num_heads != 0) {
    return Invalid(absl::StrCat("'hidden_size' ", hidden_size, " is not a multiple of 'num_attention_heads' ",
                                attention.num_heads, ", and there is no 'head_dim'"));
  }
  SCION_ASSIGN_OR_RETURN(attention.head_dim,
                         GetSizeOr(config, "head_dim", kMaxHiddenSize, hidden_size / attention.num_heads));
  if (attention.head_dim % 16 != 0 || attention.head_dim > kMaxHeadDim) {
    return Unsupported(
        absl::StrCat("'head_dim' is ", attention.head_dim, "; multiples of 16 up to ", kMaxHeadDim, " are supported"));
  }
  if (attention.num_heads % attention.num_kv_heads != 0) {
    return Unsupported(absl::StrCat("'num_attention_heads' ", attention.num_heads,
                                    " is not a multiple of 'num_key_value_heads' ", attention.num_kv_heads));
  }
  if (int64_t{attention.num_heads} * attention.head_dim > kMaxHiddenSize) {
    return Invalid(absl::StrCat("'num_attention_heads' ", attention.num_heads, " times 'head_dim' ", attention.head_dim,
                                " is more than ", kMaxHiddenSize));
  }
  SCION_ASSIGN_OR_RETURN(attention.rope_theta, ParseRopeTheta(config, model_type == "mixtral" ? 1e6 : 1e4));
  return attention;
}

absl::StatusOr<std::vector<int>> ParseSparseLayers(const Json& config, int num_layers) {
  std::vector<int> sparse_layers;
  if (FindMember(config, "sparse_layers") == nullptr) return sparse_layers;
  SCION_ASSIGN_OR_RETURN(const Json* list, GetArray(config, "sparse_layers"));
  for (const Json& item : *list) {
    SCION_ASSIGN_OR_RETURN(const int64_t layer, AsInt(item, "sparse_layers", 0, num_layers - 1));
    if (!sparse_layers.empty() && layer <= sparse_layers.back()) {
      return Invalid(absl::StrCat("'sparse_layers' must ascend, but ", layer, " follows ", sparse_layers.back()));
    }
    sparse_layers.push_back(static_cast<int>(layer));
  }
  return sparse_layers;
}

absl::StatusOr<std::vector<DomainSpec>> ParseDomains(const Json& config) {
  SCION_ASSIGN_OR_RETURN(const Json* list, GetArray(config, "domains"));
  if (list->empty() || list->size() > kMaxDomains) {
    return Invalid(absl::StrCat("'domains' has ", list->size(), " entries, outside [1, ", kMaxDomains, "]"));
  }
  std::vector<DomainSpec> domains;
  absl::flat_hash_set<std::string> names;
  for (const Json& item : *list) {
    const std::string where = absl::StrCat("'domains'[", domains.size(), "]");
    if (!item.is_object()) return Invalid(absl::StrCat(where, " must be an object"));
    DomainSpec domain;
    absl::StatusOr<std::string> name = GetString(item, "name");
    if (!name.ok()) return Annotate(name.status(), where);
    domain.name = *std::move(name);
    if (!IsValidDomainName(domain.name)) {
      return Invalid(absl::StrCat(where, ": ", Quoted(domain.name),
                                  " is not a domain's name: [a-z][a-z0-9_-]{0,62}, not auto or all"));
    }
    absl::StatusOr<int64_t> num_experts = GetInt(item, "num_experts", 1, kMaxExpertsPerDomain);
    if (!num_experts.ok()) return Annotate(num_experts.status(), where);
    domain.num_experts = static_cast<int>(*num_experts);
    if (!names.insert(domain.name).second)
      return Invalid(absl::StrCat("'domains' has ", Quoted(domain.name), " twice"));
    domains.push_back(std::move(domain));
  }
  return domains;
}

absl::Status ParseLayers(const Json& config, ModelSpec& spec) {
  SCION_ASSIGN_OR_RETURN(const int num_layers, GetSize(config, "num_hidden_layers", kMaxLayers));
  SCION_ASSIGN_OR_RETURN(const AttentionSpec attention, ParseAttention(config, spec.model_type, spec.hidden_size));
  if (IsGateRouted(spec.model_type)) {
    spec.layers.assign(static_cast<size_t>(num_layers), LayerSpec{attention, FfnSpec{}});
    return ParseGateRouted(config, spec);
  }
  std::vector<int> sparse_layers;
  if (spec.model_type == "scion") {
    SCION_ASSIGN_OR_RETURN(sparse_layers, ParseSparseLayers(config, num_layers));
  }
  spec.layers.assign(static_cast<size_t>(num_layers), LayerSpec{attention, FfnSpec{}});
  if (static_cast<int>(sparse_layers.size()) < num_layers) {
    SCION_ASSIGN_OR_RETURN(const int intermediate_size, GetSize(config, "intermediate_size", kMaxIntermediateSize));
    for (LayerSpec& layer : spec.layers) layer.ffn.intermediate_size = intermediate_size;
  }
  if (sparse_layers.empty()) {
    if (spec.model_type == "scion" && FindMember(config, "domains") != nullptr) {
      return Invalid("'domains' without 'sparse_layers': a domain has experts only in sparse layers");
    }
    spec.domains = {DomainSpec{"default", 0}};
    return absl::OkStatus();
  }
  FfnSpec sparse{.router = RouterKind::kTable};
  SCION_ASSIGN_OR_RETURN(sparse.intermediate_size, GetSize(config, "moe_intermediate_size", kMaxIntermediateSize));
  SCION_ASSIGN_OR_RETURN(sparse.num_experts_per_tok, GetSizeOr(config, "num_experts_per_tok", kMaxExpertsPerToken, 1));
  for (int layer : sparse_layers) spec.layers[static_cast<size_t>(layer)].ffn = sparse;
  SCION_ASSIGN_OR_RETURN(spec.domains, ParseDomains(config));

  SCION_ASSIGN_OR_RETURN(const std::string default_domain, GetStringOr(config, "default_domain", spec.domains[0].name));
  const std::optional<int> index = spec.FindDomain(default_domain);
  if (!index.has_value()) {
    return Invalid(absl::StrCat("'default_domain' ", Quoted(default_domain), " is not in 'domains'"));
  }
  spec.default_domain = *index;
  return absl::OkStatus();
}

// bos_token_id: an id; eos_token_id: an id or a list of ids. What is present replaces what is in `spec`.
absl::Status ParseSpecialTokens(const Json& config, ModelSpec& spec) {
  constexpr int kMaxEosTokens = 64;
  SCION_ASSIGN_OR_RETURN(const std::optional<int64_t> bos,
                         GetOptionalInt(config, "bos_token_id", 0, spec.vocab_size - 1));
  if (bos.has_value()) spec.bos_token_id = static_cast<int>(*bos);
  const Json* eos = FindMember(config, "eos_token_id");
  if (eos == nullptr) return absl::OkStatus();
  const bool is_list = eos->is_array();
  if (is_list && eos->size() > kMaxEosTokens) {
    return Invalid(absl::StrCat("'eos_token_id' has ", eos->size(), " entries, more than ", kMaxEosTokens));
  }
  spec.eos_token_ids.clear();
  for (size_t i = 0; i < (is_list ? eos->size() : 1); ++i) {
    SCION_ASSIGN_OR_RETURN(const int64_t id, AsInt(is_list ? (*eos)[i] : *eos, "eos_token_id", 0, spec.vocab_size - 1));
    spec.eos_token_ids.push_back(static_cast<int>(id));
  }
  return absl::OkStatus();
}

absl::StatusOr<ModelSpec> ParseConfig(const Json& config) {
  if (!config.is_object()) return Invalid("must be an object");
  ModelSpec spec;
  SCION_ASSIGN_OR_RETURN(spec.model_type, ParseModelType(config));
  for (std::string_view key : {"attention_bias", "mlp_bias"}) SCION_RETURN_IF_ERROR(RefuseFeature(config, key));
  SCION_RETURN_IF_ERROR(RefuseSlidingWindow(config, spec.model_type));
  SCION_RETURN_IF_ERROR(AllowOnly(config, "hidden_act", "silu"));
  SCION_ASSIGN_OR_RETURN(spec.vocab_size, GetSize(config, "vocab_size", kMaxVocabSize));
  SCION_ASSIGN_OR_RETURN(spec.hidden_size, GetSize(config, "hidden_size", kMaxHiddenSize));
  SCION_ASSIGN_OR_RETURN(spec.max_position_embeddings, GetSize(config, "max_position_embeddings", kMaxPositions));
  SCION_ASSIGN_OR_RETURN(const double eps, GetNumber(config, "rms_norm_eps"));
  if (!(eps >= 1e-12 && eps < 1.0)) return Invalid(absl::StrCat("'rms_norm_eps' is ", eps, ", outside [1e-12, 1)"));
  spec.rms_norm_eps = static_cast<float>(eps);
  SCION_ASSIGN_OR_RETURN(const std::optional<bool> tied, GetOptionalBool(config, "tie_word_embeddings"));
  spec.tie_word_embeddings = tied.value_or(false);
  SCION_ASSIGN_OR_RETURN(spec.dtype, ParseModelDType(config));
  SCION_RETURN_IF_ERROR(ParseLayers(config, spec));
  SCION_RETURN_IF_ERROR(ParseSpecialTokens(config, spec));
  if (const Json* quantization = FindMember(config, "quantization_config")) {
    absl::StatusOr<QuantizationSpec> parsed = ParseQuantization(*quantization);
    if (!parsed.ok()) return Annotate(parsed.status(), "'quantization_config'");
    spec.quantization = *std::move(parsed);
  }
  return spec;
}

}  // namespace

absl::StatusOr<ModelSpec> ParseModelSpec(std::string_view config_json, std::string_view generation_config_json) {
  constexpr JsonLimits kLimits = {.max_bytes = 4 << 20, .max_depth = 64, .max_values = 1 << 16};
  SCION_ASSIGN_OR_RETURN(const Json config, ParseJson(config_json, "config.json", kLimits));
  absl::StatusOr<ModelSpec> spec = ParseConfig(config);
  if (!spec.ok()) return Annotate(spec.status(), "config.json");
  if (!generation_config_json.empty()) {
    constexpr std::string_view kName = "generation_config.json";
    SCION_ASSIGN_OR_RETURN(const Json generation, ParseJson(generation_config_json, kName, kLimits));
    if (!generation.is_object()) return Invalid(absl::StrCat(ToAbsl(kName), ": must be an object"));
    if (absl::Status s = ParseSpecialTokens(generation, *spec); !s.ok()) return Annotate(s, kName);
  }
  return spec;
}

std::optional<int> ModelSpec::FindDomain(std::string_view name) const {
  for (size_t d = 0; d < domains.size(); ++d) {
    if (domains[d].name == name) return static_cast<int>(d);
  }
  return std::nullopt;
}

std::vector<int> ModelSpec::SparseLayers() const {
  std::vector<int> sparse_layers;
  for (size_t l = 0; l < layers.size(); ++l) {
    if (layers[l].ffn.router != RouterKind::kNone) sparse_layers.push_back(static_cast<int>(l));
  }
  return sparse_layers;
}

bool ModelSpec::HasDomainFiles() const {
  return std::ranges::any_of(layers, [](const LayerSpec& layer) { return layer.ffn.router == RouterKind::kTable; });
}

bool IsValidDomainName(std::string_view name) {
  const auto is_lower = [](char c) { return c >= 'a' && c <= 'z'; };
  const auto is_rest = [&](char c) { return is_lower(c) || (c >= '0' && c <= '9') || c == '_' || c == '-'; };
  return !name.empty() && name.size() <= 63 && is_lower(name[0]) && std::all_of(name.begin(), name.end(), is_rest) &&
         name != "auto" && name != "all";
}

}  // namespace scion

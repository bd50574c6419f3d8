#include "engine/model/gguf_spec.h"

#include <algorithm>
#include <string>
#include <utility>

#include "engine/base/status.h"

namespace scion {
namespace {

// The offs of a feature's switch.
struct Feature {
  std::string_view key;  // behind "{architecture}."
  double off = 0;        // besides absent and 0
};

// Numbers that would change what the forward pass computes.
constexpr Feature kForeignFeatures[] = {
    {"attention.sliding_window"},    {"attention.max_alibi_bias"},
    {"attention.clamp_kqv"},         {"attention.scale"},
    {"attention.temperature_scale"}, {"attention.temperature_length"},
    {"attention.q_lora_rank"},       {"attention.kv_lora_rank"},
    {"attn_logit_softcapping"},      {"final_logit_softcapping"},
    {"router_logit_softcapping"},    {"logit_scale", 1},
    {"residual_scale", 1},           {"embedding_scale", 1},
    {"leading_dense_block_count"},   {"interleave_moe_layer_step", 1},
    {"moe_every_n_layers", 1},       {"nextn_predict_layers"},
    {"expert_shared_count"},         {"expert_shared_feed_forward_length"},
    {"expert_group_count", 1},       {"expert_group_used_count", 1},
    {"expert_weights_scale", 1},     {"expert_gating_func", 1},  // softmax
};

class SpecParser {
 public:
  explicit SpecParser(const GgufHeader& header) : header_(header), metadata_(header.metadata) {}

  absl::StatusOr<ModelSpec> Parse() {
    SCION_RETURN_IF_ERROR(ParseArchitecture());
    SCION_RETURN_IF_ERROR(RefuseForeignFeatures());
    SCION_RETURN_IF_ERROR(ParseVocabSize());
    SCION_ASSIGN_OR_RETURN(spec_.hidden_size, GetSize("embedding_length", kMaxHiddenSize));
    SCION_ASSIGN_OR_RETURN(spec_.max_position_embeddings, GetSize("context_length", kMaxPositions));
    const std::string eps_key = Key("attention.layer_norm_rms_epsilon");
    SCION_ASSIGN_OR_RETURN(const std::optional<double> eps, metadata_.GetOptionalNumber(eps_key));
    if (!eps.has_value()) return Invalid(eps_key, "is missing");
    if (!(*eps >= 1e-12 && *eps < 1.0)) return Invalid(eps_key, absl::StrCat("is ", *eps, ", outside [1e-12, 1)"));
    spec_.rms_norm_eps = static_cast<float>(*eps);
    spec_.tie_word_embeddings = FindTensor("output.weight") == nullptr;
    SCION_RETURN_IF_ERROR(ParseLayers());
    SCION_RETURN_IF_ERROR(ParseSpecialTokens());
    return std::move(spec_);
  }

 private:
  std::string Key(std::string_view rest) const { return absl::StrCat(architecture_, ".", ToAbsl(rest)); }

  absl::Status Invalid(std::string_view key, std::string_view message) const {
    return absl::InvalidArgumentError(metadata_.Message(key, message));
  }
  absl::Status Unsupported(std::string_view key, std::string_view message) const {
    return absl::UnimplementedError(metadata_.Message(key, message));
  }

  // A number per layer is refused as what it is.
  absl::Status RefuseArray(const std::string& key) const {
    const GgufValue* value = metadata_.Find(key);
    if (value == nullptr || !std::holds_alternative<GgufArray>(*value)) return absl::OkStatus();
    return Unsupported(key, "is an array: layers of different sizes are not supported");
  }

  absl::StatusOr<int> GetSize(std::string_view rest, int max) const {
    const std::string key = Key(rest);
    SCION_RETURN_IF_ERROR(RefuseArray(key));
    SCION_ASSIGN_OR_RETURN(const int64_t value, metadata_.GetInt(key, 1, max));
    return static_cast<int>(value);
  }
  absl::StatusOr<int> GetSizeOr(std::string_view rest, int max, int otherwise) const {
    const std::string key = Key(rest);
    SCION_RETURN_IF_ERROR(RefuseArray(key));
    SCION_ASSIGN_OR_RETURN(const std::optional<int64_t> value, metadata_.GetOptionalInt(key, 1, max));
    return static_cast<int>(value.value_or(otherwise));
  }

  const TensorInfo* FindTensor(std::string_view name) const {
    const auto it = std::find_if(header_.tensors.begin(), header_.tensors.end(),
                                 [&](const TensorInfo& tensor) { return tensor.name == name; });
    return it == header_.tensors.end() ? nullptr : &*it;
  }

  absl::Status ParseArchitecture() {
    constexpr std::string_view kKey = "general.architecture";
    SCION_ASSIGN_OR_RETURN(architecture_, metadata_.GetString(kKey));
    if (architecture_ == "llama") {
      spec_.model_type = "llama";
    } else if (architecture_ == "qwen3moe") {
      spec_.model_type = "qwen3_moe";
    } else {
      return Unsupported(kKey, absl::StrCat("is ", Quoted(architecture_), "; this build knows 'llama' and 'qwen3moe'"));
    }
    SCION_ASSIGN_OR_RETURN(const std::optional<std::string> type, metadata_.GetOptionalString("general.type"));
    if (type.value_or("model") != "model") {
      return Unsupported("general.type", absl::StrCat("is ", Quoted(*type), "; only 'model' is supported"));
    }
    SCION_ASSIGN_OR_RETURN(const std::optional<int64_t> split, metadata_.GetOptionalInt("split.count", 0, 65535));
    if (split.value_or(0) > 1) {
      return Unsupported("split.count", absl::StrCat("is ", *split, ": a model in several files is not supported"));
    }
    return absl::OkStatus();
  }

  absl::Status RefuseForeignFeatures() const {
    for (const Feature& feature : kForeignFeatures) {
      const std::string key = Key(feature.key);
      SCION_RETURN_IF_ERROR(RefuseArray(key));
      SCION_ASSIGN_OR_RETURN(const std::optional<double> value, metadata_.GetOptionalNumber(key));
      if (value.value_or(0) == 0 || *value == feature.off) continue;
      return Unsupported(key, absl::StrCat("is ", *value, ", which this engine does not support"));
    }
    SCION_RETURN_IF_ERROR(AllowOnly("attention.causal", true));
    SCION_RETURN_IF_ERROR(AllowOnly("expert_weights_norm", true));
    return AllowOnly("use_parallel_residual", false);
  }

  absl::Status AllowOnly(std::string_view rest, bool supported) const {
    const std::string key = Key(rest);
    SCION_ASSIGN_OR_RETURN(const std::optional<bool> value, metadata_.GetOptionalBool(key));
    if (value.value_or(supported) == supported) return absl::OkStatus();
    return Unsupported(key, absl::StrCat("is ", *value ? "true" : "false", ", which this engine does not support"));
  }

  absl::Status ParseVocabSize() {
    const TensorInfo* embedding = FindTensor("token_embd.weight");
    const auto damaged = [&](std::string_view message) {
      return absl::DataLossError(
          absl::StrCat(metadata_.file_name(), ": tensor 'token_embd.weight': ", ToAbsl(message)));
    };
    if (embedding == nullptr) return damaged("is missing");
    if (embedding->shape.size() != 2) {
      return damaged(absl::StrCat(embedding->shape.size(), " dimensions, but 2 are needed"));
    }
    if (embedding->shape[0] > kMaxVocabSize) {
      return damaged(absl::StrCat(embedding->shape[0], " rows, more than the limit of ", kMaxVocabSize));
    }
    spec_.vocab_size = static_cast<int>(embedding->shape[0]);
    spec_.dtype = IsQuantized(embedding->dtype) ? DType::kBF16 : embedding->dtype;

    const std::string size_key = Key("vocab_size");
    SCION_ASSIGN_OR_RETURN(const std::optional<int64_t> size, metadata_.GetOptionalInt(size_key, 1, kMaxVocabSize));
    if (size.has_value() && *size != spec_.vocab_size) return VocabDiffers(size_key, *size);
    constexpr std::string_view kTokens = "tokenizer.ggml.tokens";
    SCION_ASSIGN_OR_RETURN(const std::optional<GgufArray> tokens, metadata_.GetOptionalArray(kTokens));
    if (tokens.has_value() && tokens->count != static_cast<uint64_t>(spec_.vocab_size)) {
      return VocabDiffers(kTokens, tokens->count);
    }
    return absl::OkStatus();
  }

  absl::Status VocabDiffers(std::string_view key, uint64_t count) const {
    return absl::DataLossError(metadata_.Message(
        key,
        absl::StrCat("a vocabulary of ", count, ", but tensor 'token_embd.weight' has ", spec_.vocab_size, " rows")));
  }

  absl::Status ParseLayers() {
    SCION_ASSIGN_OR_RETURN(const int num_layers, GetSize("block_count", kMaxLayers));
    LayerSpec layer;
    SCION_RETURN_IF_ERROR(ParseAttention(layer.attention));
    DomainSpec domain{"default", 0};
    const std::string count_key = Key("expert_count");
    SCION_RETURN_IF_ERROR(RefuseArray(count_key));
    SCION_ASSIGN_OR_RETURN(const std::optional<int64_t> num_experts,
                           metadata_.GetOptionalInt(count_key, 0, kMaxExpertsPerDomain));
    const bool is_qwen = spec_.model_type == "qwen3_moe";
    if (num_experts.value_or(0) > 0) {
      domain.num_experts = static_cast<int>(*num_experts);
      layer.ffn.router = RouterKind::kGate;
      layer.ffn.norm_topk_prob = true;
      SCION_ASSIGN_OR_RETURN(layer.ffn.num_experts_per_tok,
                             GetSize("expert_used_count", std::min(kMaxExpertsPerToken, domain.num_experts)));
    } else if (is_qwen) {
      return Invalid(count_key, num_experts.has_value() ? "is 0" : "is missing");
    }
    SCION_ASSIGN_OR_RETURN(
        layer.ffn.intermediate_size,
        GetSize(is_qwen ? "expert_feed_forward_length" : "feed_forward_length", kMaxIntermediateSize));
    spec_.layers.assign(static_cast<size_t>(num_layers), layer);
    spec_.domains = {domain};
    return absl::OkStatus();
  }

  absl::Status ParseAttention(AttentionSpec& attention) const {
    SCION_ASSIGN_OR_RETURN(attention.num_heads, GetSize("attention.head_count", kMaxHiddenSize));
    SCION_ASSIGN_OR_RETURN(attention.num_kv_heads,
                           GetSizeOr("attention.head_count_kv", kMaxHiddenSize, attention.num_heads));
    if (attention.num_heads % attention.num_kv_heads != 0) {
      return Unsupported(Key("attention.head_count"),
                         absl::StrCat("is ", attention.num_heads, ", not a multiple of ",
                                      Quoted(Key("attention.head_count_kv")), " ", attention.num_kv_heads));
    }
    const std::string key_length = Key("attention.key_length");
    if (metadata_.Find(key_length) == nullptr && spec_.hidden_size % attention.num_heads != 0) {
      return Invalid(Key("embedding_length"),
                     absl::StrCat("is ", spec_.hidden_size, ", not a multiple of ", Quoted(Key("attention.head_count")),
                                  " ", attention.num_heads, ", and there is no ", Quoted(key_length)));
    }
    const int default_head_dim = spec_.hidden_size / attention.num_heads;
    SCION_ASSIGN_OR_RETURN(attention.head_dim, GetSizeOr("attention.key_length", kMaxHiddenSize, default_head_dim));
    if (attention.head_dim % 16 != 0 || attention.head_dim > kMaxHeadDim) {
      return Unsupported(key_length, absl::StrCat("heads of ", attention.head_dim, "; multiples of 16 up to ",
                                                  kMaxHeadDim, " are supported"));
    }
    if (int64_t{attention.num_heads} * attention.head_dim > kMaxHiddenSize) {
      return Invalid(Key("attention.head_count"), absl::StrCat(attention.num_heads, " heads of ", attention.head_dim,
                                                               " are more than ", kMaxHiddenSize));
    }
    // Absent, values have the default and not key_length.
    SCION_ASSIGN_OR_RETURN(const int value_length,
                           GetSizeOr("attention.value_length", kMaxHiddenSize, default_head_dim));
    if (value_length != attention.head_dim) {
      return Unsupported(Key("attention.value_length"), absl::StrCat("values of ", value_length, " beside keys of ",
                                                                     attention.head_dim, " are not supported"));
    }
    attention.qk_norm = spec_.model_type == "qwen3_moe";
    return ParseRope(attention);
  }

  absl::Status ParseRope(AttentionSpec& attention) const {
    const std::string dim_key = Key("rope.dimension_count");
    SCION_ASSIGN_OR_RETURN(const int dim, GetSizeOr("rope.dimension_count", kMaxHiddenSize, attention.head_dim));
    if (dim != attention.head_dim) {
      return Unsupported(dim_key,
                         absl::StrCat("is ", dim, "; only the whole head, ", attention.head_dim, ", is supported"));
    }
    const std::string type_key = Key("rope.scaling.type");
    SCION_ASSIGN_OR_RETURN(const std::optional<std::string> type, metadata_.GetOptionalString(type_key));
    if (type.value_or("none") != "none") {
      return Unsupported(type_key, absl::StrCat("is ", Quoted(*type), "; only 'none' is supported"));
    }
    for (std::string_view rest : {"rope.scaling.factor", "rope.scale_linear"}) {
      const std::string key = Key(rest);
      SCION_ASSIGN_OR_RETURN(const std::optional<double> factor, metadata_.GetOptionalNumber(key));
      // Without a type, a factor means linear scaling.
      if (!type.has_value() && factor.value_or(0) != 0 && *factor != 1) {
        return Unsupported(key, absl::StrCat("is ", *factor, ", which this engine does not support"));
      }
    }
    const std::string base_key = Key("rope.freq_base");
    SCION_ASSIGN_OR_RETURN(const std::optional<double> base, metadata_.GetOptionalNumber(base_key));
    const double value = base.value_or(10000.0);
    if (!(value >= 1.0 && value <= 1e12)) return Invalid(base_key, absl::StrCat("is ", value, ", outside [1, 1e12]"));
    attention.rope_theta = static_cast<float>(value);
    return absl::OkStatus();
  }

  absl::Status ParseSpecialTokens() {
    const int64_t last = spec_.vocab_size - 1;
    SCION_ASSIGN_OR_RETURN(const std::optional<int64_t> bos,
                           metadata_.GetOptionalInt("tokenizer.ggml.bos_token_id", 0, last));
    if (bos.has_value()) spec_.bos_token_id = static_cast<int>(*bos);
    for (std::string_view key :
         {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"}) {
      SCION_ASSIGN_OR_RETURN(const std::optional<int64_t> id, metadata_.GetOptionalInt(key, 0, last));
      std::vector<int>& ids = spec_.eos_token_ids;
      if (id.has_value() && std::find(ids.begin(), ids.end(), *id) == ids.end()) ids.push_back(static_cast<int>(*id));
    }
    return absl::OkStatus();
  }

  const GgufHeader& header_;
  const GgufMetadata& metadata_;
  std::string architecture_;
  ModelSpec spec_;
};

}  // namespace

absl::StatusOr<ModelSpec> ParseGgufSpec(const GgufHeader& header) { return SpecParser(header).Parse(); }

}  // namespace scion

// What a model is, apart from its weights: one LayerSpec per layer, so that the forward pass has no branch on a
// model's name. Made from config.json, of which nothing is believed unchecked.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/base/dtype.h"
#include "engine/model/quantization_spec.h"

namespace scion {

// Limits on what a config may ask for: far above any real model, low enough that sizes never overflow int or int64.
inline constexpr int kMaxHiddenSize = 1 << 17;
inline constexpr int kMaxIntermediateSize = 1 << 19;
inline constexpr int kMaxHeadDim = 256;  // and a multiple of 16, for the kernels
inline constexpr int kMaxExpertsPerToken = 64;
inline constexpr int kMaxLayers = 1024;
inline constexpr int kMaxVocabSize = 1 << 22;
inline constexpr int kMaxExpertsPerDomain = 4096;
inline constexpr int kMaxDomains = 1024;
inline constexpr int kMaxPositions = 1 << 22;

enum class RouterKind : uint8_t {
  kNone,   // one dense FFN, part of the trunk
  kTable,  // token id -> expert, a table per domain
  kGate,   // hidden state -> experts: softmax over a learned gate's scores, the best num_experts_per_tok
};

struct AttentionSpec {
  int num_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  float rope_theta = 10000.0f;
  bool qk_norm = false;  // RMS norm of every head of q and k before RoPE, as in Qwen3
};

struct FfnSpec {
  RouterKind router = RouterKind::kNone;
  int intermediate_size = 0;    // of the dense FFN, or of each expert
  int num_experts_per_tok = 1;  // rows of the route table; 1 for kNone
  bool norm_topk_prob = false;  // kGate: the chosen experts' weights are divided by their sum
};

struct LayerSpec {
  AttentionSpec attention;
  FfnSpec ffn;
};

struct DomainSpec {
  std::string name;
  int num_experts = 0;  // per sparse layer
};

// What a checkpoint calls the tensors of a gate-routed layer.
enum class ExpertNames : uint8_t {
  kMlp,          // "mlp.gate.weight", "mlp.experts.{e}.{gate,up,down}_proj.weight", as Qwen3-MoE
  kBlockSparse,  // "block_sparse_moe.gate.weight", "block_sparse_moe.experts.{e}.{w1,w3,w2}.weight", as Mixtral
};

struct ModelSpec {
  std::string model_type;  // "scion", "llama", "qwen3_moe" or "mixtral"
  int vocab_size = 0;
  int hidden_size = 0;
  int max_position_embeddings = 0;
  float rms_norm_eps = 0;
  bool tie_word_embeddings = false;
  std::vector<LayerSpec> layers;
  // Never empty: a model without sparse layers has the single domain "default" with 0 experts, a gate-routed model the
  // single domain "default" with all experts.
  std::vector<DomainSpec> domains;
  int default_domain = 0;           // index into domains
  std::optional<int> bos_token_id;  // config.json's, overridden by generation_config.json's
  std::vector<int> eos_token_ids;   // likewise
  DType dtype = DType::kBF16;
  ExpertNames expert_names = ExpertNames::kMlp;
  std::optional<QuantizationSpec> quantization;  // of a directory; nothing if no tensor is of blocks

  // Index into domains.
  std::optional<int> FindDomain(std::string_view name) const;
  std::vector<int> SparseLayers() const;
  // Whether the experts of every domain lie in a file of their own: routed by tables, as in Scion's directories.
  bool HasDomainFiles() const;
};

// config_json: the text of config.json; generation_config_json: of generation_config.json, or empty. Errors are
// InvalidArgument and name the key; an architecture or feature that the engine lacks is Unimplemented and named.
absl::StatusOr<ModelSpec> ParseModelSpec(std::string_view config_json, std::string_view generation_config_json);

// [a-z][a-z0-9_-]{0,62}, and not "auto" or "all".
bool IsValidDomainName(std::string_view name);

}  // namespace scion

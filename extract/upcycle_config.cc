#include "extract/upcycle_config.h"

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <map>

#include "engine/base/status.h"
#include "extract/lock_builder.h"

namespace scion {
namespace {

using OrderedJson = nlohmann::ordered_json;

// The shortest decimal that is this float: 1e-05, not 9.999999747378752e-06.
double ShortestDouble(float value) {
  char text[32];
  *std::to_chars(text, text + sizeof(text) - 1, value).ptr = '\0';
  return std::strtod(text, nullptr);
}

std::string_view TorchName(DType dtype) {
  return dtype == DType::kF32 ? "float32" : dtype == DType::kF16 ? "float16" : "bfloat16";
}

// config.json as Transformers would have it.
OrderedJson ConfigOfSpec(const ModelSpec& spec) {
  const AttentionSpec& attention = spec.layers[0].attention;
  const double theta = ShortestDouble(attention.rope_theta);
  OrderedJson config = {{"model_type", "llama"},
                        {"architectures", OrderedJson::array({"LlamaForCausalLM"})},
                        {"vocab_size", spec.vocab_size},
                        {"hidden_size", spec.hidden_size},
                        {"intermediate_size", spec.layers[0].ffn.intermediate_size},
                        {"num_hidden_layers", spec.layers.size()},
                        {"num_attention_heads", attention.num_heads},
                        {"num_key_value_heads", attention.num_kv_heads},
                        {"head_dim", attention.head_dim},
                        {"hidden_act", "silu"},
                        {"rms_norm_eps", ShortestDouble(spec.rms_norm_eps)},
                        {"max_position_embeddings", spec.max_position_embeddings},
                        {"tie_word_embeddings", spec.tie_word_embeddings},
                        {"rope_theta", theta},
                        {"rope_parameters", {{"rope_type", "default"}, {"rope_theta", theta}}},
                        {"torch_dtype", TorchName(spec.dtype)},
                        {"dtype", TorchName(spec.dtype)}};
  if (spec.bos_token_id.has_value()) config["bos_token_id"] = *spec.bos_token_id;
  if (spec.eos_token_ids.size() == 1) {
    config["eos_token_id"] = spec.eos_token_ids[0];
  } else if (!spec.eos_token_ids.empty()) {
    config["eos_token_id"] = spec.eos_token_ids;
  }
  return config;
}

// The type that most of the quantised tensors have is said once.
OrderedJson Quantization(const std::vector<NewTensor>& tensors) {
  std::map<DType, int> count;
  for (const NewTensor& tensor : tensors) count[tensor.dtype] += IsQuantized(tensor.dtype);
  const DType most = std::ranges::max_element(count, {}, [](const auto& entry) { return entry.second; })->first;
  if (count[most] == 0) return nullptr;
  OrderedJson quantization = {{"quant_method", "ggml"}, {"type", DTypeName(most)}};
  for (const NewTensor& tensor : tensors) {
    if (IsQuantized(tensor.dtype) && tensor.dtype != most) {
      quantization["tensors"][tensor.name] = DTypeName(tensor.dtype);
    }
  }
  return quantization;
}

}  // namespace

absl::StatusOr<std::string> UpcycledConfig(const Checkpoint& dense, const UpcycledShape& shape,
                                           const std::vector<NewTensor>& tensors) {
  OrderedJson config;
  if (dense.is_gguf()) {
    config = ConfigOfSpec(dense.spec());
  } else {
    SCION_ASSIGN_OR_RETURN(const std::string text, ReadTextInside(dense.directory(), "config.json"));
    config = OrderedJson::parse(text, nullptr, /*allow_exceptions=*/false);
    if (!config.is_object()) return absl::DataLossError("config.json has changed while it was read");
  }
  config["model_type"] = "scion";
  config["architectures"] = OrderedJson::array({"ScionForCausalLM"});
  config["moe_intermediate_size"] = dense.spec().layers.back().ffn.intermediate_size;
  config["sparse_layers"] = shape.sparse_layers;
  config["num_experts_per_tok"] = 1;
  config["domains"] = OrderedJson::array();
  for (const DomainSpec& domain : shape.domains) {
    config["domains"].push_back({{"name", domain.name}, {"num_experts", domain.num_experts}});
  }
  config["default_domain"] = shape.default_domain;
  config["routes"] = shape.routes;
  config.erase("auto_map");  // of the parent's architecture
  config.erase("quantization_config");
  if (OrderedJson quantization = Quantization(tensors); !quantization.is_null()) {
    config["quantization_config"] = std::move(quantization);
  }
  return config.dump(2) + "\n";
}

}  // namespace scion

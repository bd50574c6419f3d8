#include "extract/upcycle_config.h"

#include <algorithm>
#include <map>

#include "engine/base/status.h"
#include "extract/export_hugging_face.h"

namespace scion {
namespace {

using OrderedJson = nlohmann::ordered_json;

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
  OrderedJson config = dense.is_gguf() ? HuggingFaceConfig(dense.spec(), ExportFamily::kLlama, dense.spec().dtype)
                                       : OrderedJson::parse(dense.config(), nullptr, /*allow_exceptions=*/false);
  if (!config.is_object()) return absl::DataLossError("config.json is not an object");
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

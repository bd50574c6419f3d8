#include "extract/domain_config.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "engine/base/status.h"
#include "engine/model/checkpoint.h"

namespace scion {
namespace {

using OrderedJson = nlohmann::ordered_json;

void SetBlockTypes(OrderedJson& config, const DomainConfig& domain) {
  if (!config.contains("quantization_config")) {
    if (domain.block_types.empty()) return;
    config["quantization_config"] = {{"quant_method", "ggml"}, {"type", DTypeName(domain.block_types.begin()->second)}};
  }
  OrderedJson& quantization = config["quantization_config"];
  OrderedJson types = OrderedJson::object();
  if (quantization.contains("tensors")) {
    for (const auto& [tensor, type] : quantization["tensors"].items()) {
      if (DomainOfTensor(tensor) != domain.name) types[tensor] = type;
    }
  }
  for (const auto& [tensor, type] : domain.block_types) {
    if (quantization["type"] != DTypeName(type)) types[tensor] = DTypeName(type);
  }
  if (quantization.contains("tensors") || !types.empty()) quantization["tensors"] = std::move(types);
}

}  // namespace

absl::StatusOr<std::string> WithDomain(std::string_view config_json, const DomainConfig& domain) {
  OrderedJson config = OrderedJson::parse(config_json, nullptr, /*allow_exceptions=*/false);
  if (!config.is_object() || !config.contains("domains") || !config["domains"].is_array()) {
    return absl::FailedPreconditionError("config.json: 'domains' is missing: the model has no domains");
  }
  OrderedJson& domains = config["domains"];
  const OrderedJson entry = {{"name", domain.name}, {"num_experts", domain.num_experts}};
  const auto place = std::find_if(domains.begin(), domains.end(), [&](const OrderedJson& d) {
    return d.is_object() && d.contains("name") && d["name"] == domain.name;
  });
  if (place == domains.end()) {
    domains.push_back(entry);
  } else {
    *place = entry;
  }
  SetBlockTypes(config, domain);
  return config.dump(2) + "\n";
}

}  // namespace scion

#include "extract/cut_config.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "engine/base/json.h"
#include "engine/base/status.h"
#include "engine/model/checkpoint.h"

namespace scion {

namespace {

constexpr uint64_t kMaxConfigBytes = uint64_t{4} << 20;

// quantization_config keeps the types of tensors that are there.
void DropTypes(nlohmann::ordered_json& config, std::span<const std::string> kept) {
  const nlohmann::ordered_json::json_pointer place("/quantization_config/tensors");
  if (!config.contains(place) || !config[place].is_object()) return;
  nlohmann::ordered_json types = nlohmann::ordered_json::object();
  for (const auto& [tensor, type] : config[place].items()) {
    const std::optional<std::string_view> domain = DomainOfTensor(tensor);
    if (!domain.has_value() || std::ranges::find(kept, *domain) != kept.end()) types[tensor] = type;
  }
  config[place] = std::move(types);
}

}  // namespace

absl::StatusOr<std::string> CutConfig(std::string_view config_json, std::span<const std::string> kept) {
  // Parsed twice: once with the bounds on what comes from outside, once to keep the keys' order.
  SCION_ASSIGN_OR_RETURN(const Json checked, ParseJson(config_json, "config.json", {.max_bytes = kMaxConfigBytes}));
  if (!checked.is_object()) return absl::InvalidArgumentError("config.json: not an object");
  if (FindMember(checked, "domains") == nullptr) {
    return absl::FailedPreconditionError("config.json: 'domains' is missing: the model has no domains to cut");
  }
  SCION_RETURN_IF_ERROR(Annotate(GetArray(checked, "domains").status(), "config.json"));
  auto config = nlohmann::ordered_json::parse(config_json, nullptr, /*allow_exceptions=*/false);
  nlohmann::ordered_json domains = nlohmann::ordered_json::array();
  std::string known;
  std::vector<std::string> found;
  for (const auto& domain : config["domains"]) {
    if (!domain.is_object() || !domain.contains("name") || !domain["name"].is_string()) {
      return absl::InvalidArgumentError("config.json: 'domains' must list objects with a 'name'");
    }
    const std::string name = domain["name"];
    absl::StrAppend(&known, known.empty() ? "" : ", ", name);
    if (std::find(kept.begin(), kept.end(), name) == kept.end()) continue;
    domains.push_back(domain);
    found.push_back(name);
  }
  for (const std::string& name : kept) {
    if (std::find(found.begin(), found.end(), name) == found.end()) {
      return absl::NotFoundError(absl::StrCat("no domain ", Quoted(name), "; the model has: ", known));
    }
  }
  config["domains"] = std::move(domains);
  DropTypes(config, found);
  const bool default_kept =
      config.contains("default_domain") && config["default_domain"].is_string() &&
      std::find(found.begin(), found.end(), config["default_domain"].get_ref<const std::string&>()) != found.end();
  if (!default_kept && !found.empty()) config["default_domain"] = found.front();
  return config.dump(2) + "\n";
}

}  // namespace scion

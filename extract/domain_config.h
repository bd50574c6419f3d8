// What config.json says when a domain is added or replaced. (cut_config: when one is dropped.)
#pragma once

#include <map>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "engine/base/dtype.h"

namespace scion {

struct DomainConfig {
  std::string name;
  int num_experts = 0;
  std::map<std::string, DType> block_types;  // of its tensors that are blocks, by name
};

// A domain that was there keeps its place, a new one comes last. quantization_config gets the types of its tensors
// where they are not the model's, and is added if the model is not quantised and the domain is. Every other key keeps
// its value and its place. FailedPrecondition if config_json lists no domains.
absl::StatusOr<std::string> WithDomain(std::string_view config_json, const DomainConfig& domain);

}  // namespace scion

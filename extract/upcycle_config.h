// config.json of an upcycled model, made from what its dense parent says of itself.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/base/json.h"
#include "engine/model/checkpoint.h"
#include "extract/safetensors_writer.h"

namespace scion {

struct UpcycledShape {
  std::vector<int> sparse_layers;
  std::vector<DomainSpec> domains;
  std::string default_domain;
  // How the routes were made; nothing else depends on it: {"seed": 1, "balanced_by": "token_mass"}.
  Json routes;
};

// The parent's config.json, every key in its place, or what a GGUF file's metadata say under the same keys; then the
// keys of a Scion model. tensors: all of the new model, for quantization_config.
absl::StatusOr<std::string> UpcycledConfig(const Checkpoint& dense, const UpcycledShape& shape,
                                           const std::vector<NewTensor>& tensors);

}  // namespace scion

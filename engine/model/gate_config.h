// config.json of ordinary gate-routed models, Qwen3-MoE and Mixtral: which layers have experts, and how a gate chooses
// among them.
#pragma once

#include <string_view>

#include "absl/status/status.h"
#include "engine/base/json.h"
#include "engine/model/model_spec.h"

namespace scion {

// Of 'model_type'.
bool IsGateRouted(std::string_view model_type);

// Fills in the FFN and what belongs to the model type of every layer of spec.layers, whose attention is set, and the
// single domain "default". InvalidArgument or Unimplemented, as ParseModelSpec.
absl::Status ParseGateRouted(const Json& config, ModelSpec& spec);

// Attention to all earlier tokens, and nothing else. Qwen3-MoE writes a window down that it does not use.
absl::Status RefuseSlidingWindow(const Json& config, std::string_view model_type);

}  // namespace scion

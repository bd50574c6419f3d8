// What config.json of a cut says, made from the whole model's: the domains that were kept, in their old order, and a
// default domain among them. quantization_config loses the types of tensors that are gone. Every other key keeps its
// value and its place.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace scion {

// InvalidArgument if config_json is not a config; FailedPrecondition if it lists no domains; NotFound, with the domains
// that there are, if one of `kept` is not among them.
absl::StatusOr<std::string> CutConfig(std::string_view config_json, std::span<const std::string> kept);

}  // namespace scion

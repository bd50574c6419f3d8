// Values of config.json, beyond what JSON's own getters check: sizes, and features that this engine has or lacks.
#pragma once

#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/base/json.h"

namespace scion {

// An integer in [1, max]. InvalidArgument names the key.
absl::StatusOr<int> GetSize(const Json& config, std::string_view key, int max);
absl::StatusOr<int> GetSizeOr(const Json& config, std::string_view key, int max, int otherwise);

// A feature that is off when absent, null or false; Unimplemented, naming it, when it is on.
absl::Status RefuseFeature(const Json& config, std::string_view key);

// A choice of which this engine has one, the default; Unimplemented names what was chosen.
absl::Status AllowOnly(const Json& object, std::string_view key, std::string_view supported);

}  // namespace scion

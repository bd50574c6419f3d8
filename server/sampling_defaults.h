// What the model's generation_config.json says about sampling, for requests that leave it open.
#pragma once

#include <filesystem>
#include <string_view>

#include "absl/status/statusor.h"

namespace scion {

struct SamplingDefaults {
  float temperature = 1;
  int top_k = 0;
  float top_p = 1;
};

// Reads do_sample, temperature, top_k and top_p. `do_sample: false` is temperature 0 (greedy), whatever else is there.
// InvalidArgument names a value that is of another type or out of range.
absl::StatusOr<SamplingDefaults> ParseSamplingDefaults(std::string_view generation_config_json);

// As above, of the file in a model directory; a directory without that file has the plain defaults.
absl::StatusOr<SamplingDefaults> LoadSamplingDefaults(const std::filesystem::path& model_directory);

}  // namespace scion

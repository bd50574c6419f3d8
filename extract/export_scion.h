// A table-routed model, whole or cut, as a Hugging Face directory: Scion's own form with the code of the model class
// beside it, so that `AutoModelForCausalLM.from_pretrained(DIR, trust_remote_code=True)` runs it.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "extract/export_plan.h"
#include "extract/progress.h"

namespace scion {

// The text of client/python/scion/{configuration,modeling}_scion.py, as it was when this program was built.
extern const std::string_view kConfigurationPython, kModelingPython;

// What config.json of such a directory says: the source's, with `auto_map`, the weights' type, and without
// `quantization_config`, since the model class reads floats.
std::string ScionExportConfig(std::string_view config_json, DType type);

// Writes `out`, which must not exist, with the data files that the source has, and a lock. plan: of family kScion.
// The errors of Export.
absl::Status ExportScion(const Checkpoint& checkpoint, const ExportPlan& plan, const std::filesystem::path& out,
                         std::string version, absl::Time now, Progress& progress);

}  // namespace scion

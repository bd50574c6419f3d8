// An export as one GGUF file, with the keys that llama.cpp reads.
#pragma once

#include <filesystem>
#include <string>

#include "absl/status/status.h"
#include "extract/export.h"
#include "extract/export_plan.h"
#include "extract/progress.h"

namespace scion {

// Writes `out`, which must not exist. The errors of Export; fills in result.pre_tokenizer.
absl::Status ExportGguf(const Checkpoint& checkpoint, const ExportPlan& plan, const std::filesystem::path& out,
                        Progress& progress, ExportResult& result);

}  // namespace scion

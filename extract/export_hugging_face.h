// An export as a plain Hugging Face directory, as Transformers reads it without any code of ours.
#pragma once

#include <cstdint>
#include <filesystem>

#include "absl/status/status.h"
#include "engine/base/json.h"
#include "extract/export_plan.h"
#include "extract/progress.h"

namespace scion {

// "float32", "float16" or "bfloat16".
const char* TorchDTypeName(DType type);

// What config.json of such a directory says, whatever the source is. type: of the weights that are floats.
nlohmann::ordered_json HuggingFaceConfig(const ModelSpec& spec, ExportFamily family, DType type);

// Writes `out`, which must not exist: config.json, generation_config.json, the tokenizer's files, and the weights in
// model.safetensors, or in several files and an index if they are more than max_shard_bytes. The errors of Export.
absl::Status ExportHuggingFace(const Checkpoint& checkpoint, const ExportPlan& plan, const std::filesystem::path& out,
                               uint64_t max_shard_bytes, Progress& progress);

}  // namespace scion

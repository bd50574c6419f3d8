// What a model directory holds, as a table for people or as JSON.
#pragma once

#include <cstdio>
#include <filesystem>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/base/json.h"
#include "engine/model/checkpoint.h"
#include "extract/difference.h"

namespace scion {

// Opens the directory (so every extent and route has been checked) and describes it:
//   {"directory", "model_type", "dtype", "vocab_size", "hidden_size", "max_position_embeddings", "num_hidden_layers",
//    "sparse_layers", "num_experts_per_tok", "default_domain", "parameters", "bytes", "types": {"Q4_0": bytes of data,
//    ...}, "tokenizer": bool, "parts": [{"name", "experts" (per sparse layer, absent for the trunk), "parameters",
//    "bytes", "types", "files":
//               [{"path", "bytes", "generation"}]}],
//    "lock": null or {"lock_sha256", "lineage": [...]}}
absl::StatusOr<Json> Inspect(const std::filesystem::path& directory);

// The same of a model that is open.
Json Describe(const Checkpoint& checkpoint);

// The same for people; ends with a newline.
std::string InspectTable(const Json& inspection);

// Every file against the lock. FailedPrecondition if there is no lock; empty if all is as it says.
absl::StatusOr<std::vector<Difference>> CheckHashes(const std::filesystem::path& directory, std::FILE* log);

}  // namespace scion

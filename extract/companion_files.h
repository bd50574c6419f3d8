// The small files beside the weights without which a model directory can't be used: tokenizer, generation settings,
// chat template, modeling code, licence. A cut takes them along unchanged, and the lock covers them. Whatever else lies
// in a model directory (a model card, caches, notes) belongs to that directory, not to the model.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace scion {

// Names, sorted, of those that the directory holds. InvalidArgument, naming it, if one is not a regular file or is a
// link that leads out of the directory.
absl::StatusOr<std::vector<std::string>> ListCompanionFiles(const std::filesystem::path& directory);

}  // namespace scion

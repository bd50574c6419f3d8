// Which files a model directory consists of, and the only door through which they are opened: no path, and no link,
// leads outside the directory.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/base/file.h"
#include "engine/model/lock_file.h"
#include "engine/model/model_spec.h"

namespace scion {

inline constexpr std::string_view kIndexFileName = "model.safetensors.index.json";
// Where a writer keeps what its change of the directory needs, until it is done: among it, under their sha256 as name,
// the texts of config.json and index before and after.
inline constexpr std::string_view kTransactionDirectoryName = ".scion-transaction";

struct DataFileName {
  std::string path;           // relative to the directory
  std::optional<int> domain;  // index into ModelSpec::domains; nothing for the trunk
  uint64_t generation = 1;
};

struct ModelFiles {
  ModelSpec spec;
  std::string config;  // the text of config.json
  std::optional<LockFile> lock;
  std::map<std::string, std::string> weight_map;  // of the index, where it decided; else empty
  std::vector<DataFileName> data;                 // the trunk's by path, then one per domain in the spec's order
};

// Resolves `directory` (which may itself be a link). NotFound, or InvalidArgument if it is not a directory.
absl::StatusOr<std::filesystem::path> ResolveDirectory(const std::filesystem::path& directory);

// Opens a file of the directory, `root` being resolved. InvalidArgument if the path or a link leads outside, or if it
// is not a regular file. Messages name the relative path.
absl::StatusOr<ReadOnlyFile> OpenInside(const std::filesystem::path& root, std::string_view relative_path);

// Reads config.json, generation_config.json and the lock, or else the index, and decides which data files are meant.
// While a writer renames one file after another (or was killed at that), config.json may belong to another state of the
// directory than the lock: then the text that the lock means is taken from where the writer keeps it. A config.json
// that was edited by hand is read as it is.
absl::StatusOr<ModelFiles> FindModelFiles(const std::filesystem::path& root);

// Whether the directory has another sound lock by now than the one that was read.
bool LockHasChanged(const std::filesystem::path& root, const LockFile& lock);

}  // namespace scion

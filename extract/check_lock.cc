#include "extract/check_lock.h"

#include <map>
#include <string>
#include <system_error>

#include "engine/base/file.h"
#include "engine/base/status.h"
#include "engine/model/model_files.h"
#include "engine/model/safetensors.h"
#include "extract/digest_file.h"

namespace scion {
namespace {

namespace fs = std::filesystem;

Difference FromStatus(std::string file, const absl::Status& status) {
  return {.file = std::move(file), .tensor = {}, .what = std::string(status.message())};
}

void CheckFile(const fs::path& root, const std::string& path, const LockFile::File& locked, Progress& progress,
               std::vector<Difference>& differences) {
  const absl::StatusOr<ReadOnlyFile> file = OpenInside(root, path);
  if (!file.ok()) return differences.push_back(FromStatus(path, file.status()));
  if (file->size() != locked.size) {
    const std::string what = absl::StrCat("has ", file->size(), " bytes, the lock says ", locked.size);
    return differences.push_back({.file = path, .tensor = {}, .what = what});
  }
  std::vector<TensorInfo> tensors;
  if (locked.is_data) {
    // A header that is damaged leaves no tensors to tell apart: the file's own hash then says that it differs.
    if (auto header = ReadSafetensorsHeader(*file, path); header.ok()) tensors = *std::move(header);
  }
  const absl::StatusOr<FileDigest> digest = DigestFile(*file, tensors, nullptr, progress);
  if (!digest.ok()) return differences.push_back(FromStatus(path, digest.status()));
  const size_t before = differences.size();
  for (const auto& [name, sha256] : digest->tensor_sha256) {
    const auto entry = locked.tensors.find(name);
    if (entry == locked.tensors.end()) {
      differences.push_back({.file = path, .tensor = name, .what = "the lock has no such tensor"});
    } else if (entry->second != sha256) {
      differences.push_back({.file = path, .tensor = name, .what = "sha256 differs from the lock's"});
    }
  }
  if (differences.size() == before && digest->sha256 != locked.sha256) {
    const char* where =
        locked.is_data ? "sha256 of the file differs from the lock's, in its header" : "sha256 differs from the lock's";
    differences.push_back({.file = path, .tensor = {}, .what = where});
  }
}

}  // namespace

std::vector<Difference> CheckAgainstLock(const fs::path& directory, const LockFile& lock, Progress& progress) {
  std::vector<Difference> differences;
  const absl::StatusOr<fs::path> root = ResolveDirectory(directory);
  if (!root.ok()) return {FromStatus("", root.status())};
  std::map<std::string, LockFile::File> files = lock.files;
  for (const auto& [domain, generations] : lock.earlier) {
    for (const LockFile::Generation& g : generations) {
      files[g.file] = {.size = g.size, .sha256 = g.sha256, .is_data = false, .tensors = {}};
    }
  }
  for (const auto& [path, locked] : files) CheckFile(*root, path, locked, progress, differences);
  std::error_code error;
  for (fs::recursive_directory_iterator it(*root, error), end; !error && it != end; it.increment(error)) {
    const std::string path = it->path().lexically_relative(*root).generic_string();
    if (it->path().extension() == ".safetensors" && !files.contains(path)) {
      differences.push_back({.file = path, .tensor = {}, .what = "holds weights that the lock does not list"});
    }
  }
  if (error) differences.push_back({.file = {}, .tensor = {}, .what = directory.string() + ": " + error.message()});
  if (fs::exists(*root / kTransactionDirectoryName, error)) {
    const char* what = "a writer is at work or was killed; the next verb that writes, gc for one, repairs what it left";
    differences.push_back({.file = std::string(kTransactionDirectoryName), .tensor = {}, .what = what});
  }
  return differences;
}

uint64_t LockedBytes(const LockFile& lock) {
  uint64_t bytes = 0;
  for (const auto& [path, file] : lock.files) bytes += file.size;
  for (const auto& [domain, generations] : lock.earlier) {
    for (const LockFile::Generation& g : generations) bytes += g.size;
  }
  return bytes;
}

}  // namespace scion

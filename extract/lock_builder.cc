#include "extract/lock_builder.h"

#include <algorithm>
#include <system_error>

#include "engine/base/file.h"
#include "engine/base/sha256.h"
#include "engine/base/status.h"
#include "engine/model/model_files.h"

namespace scion {

namespace fs = std::filesystem;

namespace {

LockFile::File DataEntry(const FileDigest& digest) {
  LockFile::File entry{.size = digest.bytes, .sha256 = digest.sha256, .is_data = true, .tensors = {}};
  entry.tensors.insert(digest.tensor_sha256.begin(), digest.tensor_sha256.end());
  return entry;
}

}  // namespace

absl::StatusOr<std::string> ReadTextInside(const fs::path& directory, std::string_view name) {
  constexpr uint64_t kMaxTextBytes = uint64_t{64} << 20;
  SCION_ASSIGN_OR_RETURN(const fs::path root, ResolveDirectory(directory));
  absl::StatusOr<ReadOnlyFile> file = OpenInside(root, name);
  if (!file.ok()) return Annotate(file.status(), directory.string());
  if (file->size() > kMaxTextBytes) {
    return absl::ResourceExhaustedError(absl::StrCat((directory / name).string(), ": ", file->size(),
                                                     " bytes, more than the limit of ", kMaxTextBytes));
  }
  std::string text(file->size(), '\0');
  SCION_RETURN_IF_ERROR(file->Read(0, std::as_writable_bytes(std::span(text))));
  return text;
}

absl::StatusOr<std::optional<LockFile>> ReadLock(const fs::path& directory) {
  std::error_code error;
  if (fs::symlink_status(directory / kLockFileName, error).type() == fs::file_type::not_found) return std::nullopt;
  SCION_ASSIGN_OR_RETURN(const std::string text, ReadTextInside(directory, kLockFileName));
  SCION_ASSIGN_OR_RETURN(LockFile lock, ParseLockFile(text));
  return lock;
}

std::string PartName(const Checkpoint& checkpoint, const CheckpointFile& file) {
  if (!file.domain.has_value()) return std::string(kTrunkPart);
  return checkpoint.spec().domains[static_cast<size_t>(*file.domain)].name;
}

std::span<const TensorInfo> TensorsOf(const Checkpoint& checkpoint, int file) {
  const auto tensors = checkpoint.tensors();
  const auto [begin, end] = std::ranges::equal_range(tensors, file, {}, &TensorInfo::file);
  return {begin, end};
}

void AddDataFile(LockFile& lock, const Checkpoint& checkpoint, const CheckpointFile& file, const FileDigest& digest) {
  if (file.domain.has_value()) {
    AddDomainFile(lock, PartName(checkpoint, file), file.path, file.generation, digest);
  } else {
    lock.files[file.path] = DataEntry(digest);
  }
}

void AddDomainFile(LockFile& lock, const std::string& domain, const std::string& path, uint64_t generation,
                   const FileDigest& digest) {
  lock.files[path] = DataEntry(digest);
  lock.domains[domain] = {.file = path, .generation = generation};
}

void AddPlainFile(LockFile& lock, const std::string& path, const FileDigest& digest) {
  lock.files[path] = {.size = digest.bytes, .sha256 = digest.sha256, .is_data = false, .tensors = {}};
}

void AddTextFile(LockFile& lock, const std::string& path, std::string_view text) {
  lock.files[path] = {.size = text.size(), .sha256 = Sha256Hex(text), .is_data = false, .tensors = {}};
}

std::string IndexText(const std::map<std::string, std::string>& weight_map, uint64_t total_size) {
  const Json index = {{"metadata", {{"total_size", total_size}}}, {"weight_map", weight_map}};
  return index.dump(1, ' ', false, Json::error_handler_t::replace) + "\n";
}

Json LineageJson(const LockFile& lock) {
  Json lineage = Json::array();
  for (const LockFile::LineageEntry& entry : lock.lineage) {
    lineage.push_back({{"verb", entry.verb},
                       {"time", entry.time},
                       {"version", entry.version},
                       {"source", entry.source},
                       {"source_lock_sha256", entry.source_lock_sha256},
                       {"domains", entry.domains}});
  }
  return lineage;
}

std::string FormatUtc(absl::Time time) { return absl::FormatTime("%Y-%m-%dT%H:%M:%SZ", time, absl::UTCTimeZone()); }

std::string ModelName(const fs::path& directory) {
  std::error_code error;
  const fs::path real = fs::canonical(directory, error);
  return (error ? directory : real).filename().string();
}

}  // namespace scion

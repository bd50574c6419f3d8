// Gathers the entries of a lock file as the files of a directory are read or written.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "engine/base/json.h"
#include "engine/model/checkpoint.h"
#include "engine/model/lock_file.h"
#include "extract/digest_file.h"

namespace scion {

// A text file of the directory; no link leads out. Errors name the directory and the file.
absl::StatusOr<std::string> ReadTextInside(const std::filesystem::path& directory, std::string_view name);

// Nothing if the directory has no lock. Errors as ParseLockFile's, or that it can't be read.
absl::StatusOr<std::optional<LockFile>> ReadLock(const std::filesystem::path& directory);

// What no domain can be called.
inline constexpr std::string_view kTrunkPart = "(trunk)";

// kTrunkPart, or the domain's name.
std::string PartName(const Checkpoint& checkpoint, const CheckpointFile& file);

// The tensors of files()[file], by offset.
std::span<const TensorInfo> TensorsOf(const Checkpoint& checkpoint, int file);

void AddDataFile(LockFile& lock, const Checkpoint& checkpoint, const CheckpointFile& file, const FileDigest& digest);
void AddPlainFile(LockFile& lock, const std::string& path, const FileDigest& digest);
// A file whose whole text is at hand.
void AddTextFile(LockFile& lock, const std::string& path, std::string_view text);

// The file of a domain.
void AddDomainFile(LockFile& lock, const std::string& domain, const std::string& path, uint64_t generation,
                   const FileDigest& digest);

// The text of model.safetensors.index.json. weight_map: tensor -> path; total_size: bytes of all tensors' data.
std::string IndexText(const std::map<std::string, std::string>& weight_map, uint64_t total_size);

// The lineage as the lock has it, for people and programs to read.
Json LineageJson(const LockFile& lock);

// How lineage and certificates write a time: "2026-11-23T21:00:00Z".
std::string FormatUtc(absl::Time time);

// What people call a model: the directory's own name.
std::string ModelName(const std::filesystem::path& directory);

}  // namespace scion

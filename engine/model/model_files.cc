#include "engine/model/model_files.h"

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <set>
#include <system_error>
#include <utility>

#include "engine/base/json.h"
#include "engine/base/sha256.h"
#include "engine/base/status.h"
#include "engine/model/safetensors.h"

namespace scion {
namespace fs = std::filesystem;
namespace {

constexpr uint64_t kMaxConfigBytes = 4 << 20;
// Room for kMaxTensors names and paths.
constexpr uint64_t kMaxIndexBytes = 32 << 20;
constexpr int64_t kMaxIndexValues = kMaxTensors + 4096;

bool Contains(const fs::path& root, const fs::path& path) {
  return std::mismatch(root.begin(), root.end(), path.begin(), path.end()).first == root.end();
}

absl::StatusOr<std::string> ReadText(const fs::path& root, std::string_view name, uint64_t max_bytes) {
  SCION_ASSIGN_OR_RETURN(const ReadOnlyFile file, OpenInside(root, name));
  if (file.size() > max_bytes) {
    return absl::ResourceExhaustedError(
        absl::StrCat(ToAbsl(name), ": ", file.size(), " bytes, more than the limit of ", max_bytes));
  }
  std::string text(file.size(), '\0');
  SCION_RETURN_IF_ERROR(Annotate(file.Read(0, std::as_writable_bytes(std::span(text))), name));
  return text;
}

// Whether there is something of that name: a dangling link counts, so that it is reported and not overlooked.
bool Exists(const fs::path& root, std::string_view name) {
  std::error_code error;
  return fs::symlink_status(root / name, error).type() != fs::file_type::not_found;
}

struct DomainPath {
  std::string_view domain;
  uint64_t generation = 1;
};

// "domains/code.safetensors", "domains/code.g2.safetensors"
std::optional<DomainPath> ParseDomainPath(std::string_view path) {
  constexpr std::string_view kPrefix = "domains/", kSuffix = ".safetensors";
  if (!path.starts_with(kPrefix) || !path.ends_with(kSuffix)) return std::nullopt;
  path.remove_prefix(kPrefix.size());
  path.remove_suffix(std::min(path.size(), kSuffix.size()));
  const size_t dot = path.find('.');
  DomainPath result{.domain = path.substr(0, dot)};
  if (dot != path.npos) {
    const std::string_view rest = path.substr(dot + 1);
    if (rest.size() < 2 || rest[0] != 'g') return std::nullopt;
    const char* end = rest.data() + rest.size();
    const auto [parsed_to, error] = std::from_chars(rest.data() + 1, end, result.generation);
    if (error != std::errc() || parsed_to != end || result.generation == 0) return std::nullopt;
  }
  if (!IsValidDomainName(result.domain)) return std::nullopt;
  return result;
}

// The lock, if there is one, and the config.json that belongs to it.
absl::Status ReadLockAndConfig(const fs::path& root, ModelFiles& files) {
  constexpr int kMaxAttempts = 16;
  std::string lock_text, config;
  for (int attempt = 0; attempt < kMaxAttempts; ++attempt) {
    std::string new_lock_text;
    files.lock.reset();
    if (Exists(root, kLockFileName)) {
      SCION_ASSIGN_OR_RETURN(new_lock_text, ReadText(root, kLockFileName, kMaxLockFileBytes));
      SCION_ASSIGN_OR_RETURN(files.lock, ParseLockFile(new_lock_text));
    }
    SCION_ASSIGN_OR_RETURN(files.config, ReadText(root, "config.json", kMaxConfigBytes));
    if (!files.lock.has_value()) return absl::OkStatus();
    const auto entry = files.lock->files.find("config.json");
    if (entry == files.lock->files.end()) return absl::OkStatus();
    const std::string& sha256 = entry->second.sha256;
    if (Sha256Hex(files.config) == sha256) return absl::OkStatus();
    const absl::StatusOr<std::string> kept =
        ReadText(root, absl::StrCat(ToAbsl(kTransactionDirectoryName), "/", sha256), kMaxConfigBytes);
    if (kept.ok() && Sha256Hex(*kept) == sha256) {
      files.config = *kept;
      return absl::OkStatus();
    }
    // Nothing has moved since the attempt before: no writer is at work, a hand has edited config.json.
    if (attempt > 0 && new_lock_text == lock_text && files.config == config) return absl::OkStatus();
    lock_text = std::move(new_lock_text);
    config = files.config;
  }
  return absl::UnavailableError("the directory changes again and again while it is read");
}

absl::StatusOr<std::map<std::string, std::string>> ReadIndex(const fs::path& root) {
  SCION_ASSIGN_OR_RETURN(const std::string text, ReadText(root, kIndexFileName, kMaxIndexBytes));
  const auto damaged = [](std::string_view message) {
    return absl::DataLossError(absl::StrCat(ToAbsl(kIndexFileName), ": ", ToAbsl(message)));
  };
  absl::StatusOr<Json> json =
      ParseJson(text, kIndexFileName, {.max_bytes = kMaxIndexBytes, .max_depth = 8, .max_values = kMaxIndexValues});
  if (absl::IsResourceExhausted(json.status())) return json.status();
  if (!json.ok()) return absl::DataLossError(json.status().message());
  if (!json->is_object()) return damaged("must be an object");
  absl::StatusOr<const Json*> weight_map = GetObject(*json, "weight_map");
  if (!weight_map.ok()) return damaged(std::string(weight_map.status().message()));
  std::map<std::string, std::string> result;
  for (const auto& [tensor, file] : (*weight_map)->items()) {
    if (!file.is_string()) return damaged(absl::StrCat("weight_map: tensor ", Quoted(tensor), " must name a file"));
    const std::string& path = file.get_ref<const std::string&>();
    if (!IsSafeRelativePath(path)) {
      return absl::InvalidArgumentError(absl::StrCat(ToAbsl(kIndexFileName), ": weight_map: tensor ", Quoted(tensor),
                                                     ": ", Quoted(path), " is not a path inside the directory"));
    }
    result.emplace(tensor, path);
  }
  if (result.empty()) return damaged("weight_map is empty");
  return result;
}

absl::Status NoFileForDomain(std::string_view source, std::string_view domain) {
  return absl::DataLossError(
      absl::StrCat(ToAbsl(source), ": no file for domain ", Quoted(domain), ", which config.json lists"));
}

absl::StatusOr<std::vector<DataFileName>> FilesOfLock(const LockFile& lock, const ModelSpec& spec) {
  const bool has_domains = spec.HasDomainFiles();
  std::set<std::string_view> owned;
  std::vector<DataFileName> domains;
  for (size_t d = 0; has_domains && d < spec.domains.size(); ++d) {
    const auto it = lock.domains.find(spec.domains[d].name);
    if (it == lock.domains.end()) return NoFileForDomain(kLockFileName, spec.domains[d].name);
    owned.insert(it->second.file);
    domains.push_back({it->second.file, static_cast<int>(d), it->second.generation});
  }
  for (const auto& [name, domain] : lock.domains) {
    if (!owned.contains(domain.file)) {
      return absl::DataLossError(
          absl::StrCat(ToAbsl(kLockFileName), ": domain ", Quoted(name), " is not in config.json"));
    }
  }
  std::vector<DataFileName> files;
  for (const auto& [path, file] : lock.files) {
    if (file.is_data && !owned.contains(path)) files.push_back({path, std::nullopt, 1});
  }
  if (files.empty()) return absl::DataLossError(absl::StrCat(ToAbsl(kLockFileName), ": no file of the trunk"));
  std::move(domains.begin(), domains.end(), std::back_inserter(files));
  return files;
}

// Sorts plain paths into trunk and domains, by their names. `source` says where the paths are from.
absl::StatusOr<std::vector<DataFileName>> FilesOfPaths(const std::set<std::string>& paths, const ModelSpec& spec,
                                                       std::string_view source) {
  const bool has_domains = spec.HasDomainFiles();
  std::vector<DataFileName> files;
  std::vector<std::optional<DataFileName>> domains(has_domains ? spec.domains.size() : 0);
  for (const std::string& path : paths) {
    const std::optional<DomainPath> parsed = has_domains ? ParseDomainPath(path) : std::nullopt;
    if (!parsed.has_value()) {
      files.push_back({path, std::nullopt, 1});
      continue;
    }
    const std::optional<int> index = spec.FindDomain(parsed->domain);
    if (!index.has_value()) {
      return absl::DataLossError(
          absl::StrCat(Quoted(path), ": its domain ", Quoted(parsed->domain), " is not in config.json"));
    }
    std::optional<DataFileName>& slot = domains[static_cast<size_t>(*index)];
    if (slot.has_value()) {
      return absl::DataLossError(absl::StrCat(ToAbsl(source), ": domain ", Quoted(parsed->domain), " has two files, ",
                                              Quoted(slot->path), " and ", Quoted(path),
                                              ", and no lock says which is meant"));
    }
    slot = DataFileName{path, *index, parsed->generation};
  }
  if (files.empty()) return absl::DataLossError(absl::StrCat(ToAbsl(source), ": no file of the trunk"));
  for (size_t d = 0; d < domains.size(); ++d) {
    if (!domains[d].has_value()) return NoFileForDomain(source, spec.domains[d].name);
    files.push_back(*std::move(domains[d]));
  }
  return files;
}

// Without lock and index: trunk.safetensors or model.safetensors, and whatever lies in domains/.
absl::StatusOr<std::vector<DataFileName>> FilesOfDirectory(const fs::path& root, const ModelSpec& spec) {
  std::set<std::string> paths = {Exists(root, "trunk.safetensors") ? "trunk.safetensors" : "model.safetensors"};
  if (spec.HasDomainFiles()) {
    std::error_code error;
    fs::directory_iterator entries(root / "domains", error);
    if (error) return ErrnoStatus(error.value(), "list", "domains");
    for (; entries != fs::directory_iterator(); entries.increment(error)) {
      const std::string name = entries->path().filename().string();
      if (name.ends_with(".safetensors")) paths.insert("domains/" + name);
      if (paths.size() > kMaxDomains + 1) {
        return absl::ResourceExhaustedError(absl::StrCat("domains: more than ", kMaxDomains, " files"));
      }
    }
    if (error) return ErrnoStatus(error.value(), "list", "domains");
  }
  return FilesOfPaths(paths, spec, "domains/");
}

}  // namespace

absl::StatusOr<fs::path> ResolveDirectory(const fs::path& directory) {
  std::error_code error;
  fs::path root = fs::canonical(directory, error);
  if (error) return ErrnoStatus(error.value(), "open", directory);
  if (!fs::is_directory(root, error)) {
    return absl::InvalidArgumentError(absl::StrCat("open: ", directory.string(), ": not a directory"));
  }
  return root;
}

absl::StatusOr<ReadOnlyFile> OpenInside(const fs::path& root, std::string_view relative_path) {
  if (!IsSafeRelativePath(relative_path)) {
    return absl::InvalidArgumentError(absl::StrCat(Quoted(relative_path), ": not a path inside the model directory"));
  }
  std::error_code error;
  const fs::path target = fs::canonical(root / relative_path, error);
  if (error.value() == ELOOP) {
    return absl::InvalidArgumentError(absl::StrCat(ToAbsl(relative_path), ": a link that leads to itself"));
  }
  if (error) return ErrnoStatus(error.value(), "open", fs::path(relative_path));
  if (!Contains(root, target)) {
    return absl::InvalidArgumentError(
        absl::StrCat(ToAbsl(relative_path), ": a link that leads outside the model directory"));
  }
  absl::StatusOr<ReadOnlyFile> file = ReadOnlyFile::Open(target);
  if (!file.ok()) return Annotate(file.status(), relative_path);
  return file;
}

absl::StatusOr<ModelFiles> FindModelFiles(const fs::path& root) {
  ModelFiles files;
  SCION_RETURN_IF_ERROR(ReadLockAndConfig(root, files));
  std::string generation_config;
  if (Exists(root, "generation_config.json")) {
    SCION_ASSIGN_OR_RETURN(generation_config, ReadText(root, "generation_config.json", kMaxConfigBytes));
  }
  SCION_ASSIGN_OR_RETURN(files.spec, ParseModelSpec(files.config, generation_config));

  if (files.lock.has_value()) {
    SCION_ASSIGN_OR_RETURN(files.data, FilesOfLock(*files.lock, files.spec));
  } else if (Exists(root, kIndexFileName)) {
    SCION_ASSIGN_OR_RETURN(files.weight_map, ReadIndex(root));
    std::set<std::string> paths;
    for (const auto& [tensor, path] : files.weight_map) paths.insert(path);
    SCION_ASSIGN_OR_RETURN(files.data, FilesOfPaths(paths, files.spec, kIndexFileName));
  } else {
    SCION_ASSIGN_OR_RETURN(files.data, FilesOfDirectory(root, files.spec));
  }
  return files;
}

bool LockHasChanged(const fs::path& root, const LockFile& lock) {
  const absl::StatusOr<std::string> text = ReadText(root, kLockFileName, kMaxLockFileBytes);
  if (!text.ok()) return false;
  const absl::StatusOr<LockFile> now = ParseLockFile(*text);
  return now.ok() && LockSha256(*now) != LockSha256(lock);
}

}  // namespace scion

#include "engine/model/lock_file.h"

#include <algorithm>
#include <limits>
#include <set>
#include <utility>

#include "engine/base/json.h"
#include "engine/base/sha256.h"
#include "engine/base/status.h"
#include "engine/model/model_spec.h"
#include "engine/model/safetensors.h"

namespace scion {
namespace {

constexpr JsonLimits kLimits = {.max_bytes = kMaxLockFileBytes, .max_depth = 8, .max_values = kMaxTensors + (1 << 14)};
constexpr int64_t kMaxInt = std::numeric_limits<int64_t>::max();

absl::Status Damaged(const absl::Status& status, std::string_view where) {
  return absl::DataLossError(
      absl::StrCat(ToAbsl(kLockFileName), ": ", ToAbsl(where), where.empty() ? "" : ": ", status.message()));
}

absl::Status Damaged(std::string_view message) {
  return absl::DataLossError(absl::StrCat(ToAbsl(kLockFileName), ": ", ToAbsl(message)));
}

Json ToJson(const LockFile& lock) {
  Json json = {{"format", 1}, {"domains", Json::object()}, {"files", Json::object()}, {"lineage", Json::array()}};
  for (const auto& [name, domain] : lock.domains) {
    json["domains"][name] = {{"file", domain.file}, {"generation", domain.generation}};
  }
  for (const auto& [path, file] : lock.files) {
    Json& entry = json["files"][path];
    entry = {{"size", file.size}, {"sha256", file.sha256}};
    if (file.is_data) entry["tensors"] = file.tensors;
  }
  for (const auto& [name, generations] : lock.earlier) {
    for (const LockFile::Generation& g : generations) {
      json["earlier"][name].push_back({{"file", g.file},
                                       {"generation", g.generation},
                                       {"num_experts", g.num_experts},
                                       {"size", g.size},
                                       {"sha256", g.sha256}});
      if (g.quantization.has_value()) {
        json["earlier"][name].back()["quantization_config"] = QuantizationJson(*g.quantization);
      }
    }
  }
  for (const LockFile::LineageEntry& entry : lock.lineage) {
    json["lineage"].push_back({{"verb", entry.verb},
                               {"time", entry.time},
                               {"version", entry.version},
                               {"source", entry.source},
                               {"source_lock_sha256", entry.source_lock_sha256},
                               {"domains", entry.domains}});
  }
  return json;
}

// Strings come from our own callers or were parsed as UTF-8; `replace` keeps even a bad one from throwing.
std::string Dump(const Json& json) { return json.dump(1, ' ', false, Json::error_handler_t::replace) + "\n"; }

absl::Status RefuseUnknownKeys(const Json& object, std::initializer_list<std::string_view> known) {
  for (const auto& [key, value] : object.items()) {
    if (std::find(known.begin(), known.end(), key) == known.end()) {
      return absl::InvalidArgumentError(absl::StrCat("unknown key ", Quoted(key)));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> GetSha256(const Json& object, std::string_view key) {
  SCION_ASSIGN_OR_RETURN(std::string text, GetString(object, key));
  if (!IsSha256Hex(text))
    return absl::InvalidArgumentError(absl::StrCat(Quoted(key), " is not a sha256 in lower-case hex"));
  return text;
}

absl::StatusOr<LockFile::Domain> ParseDomain(const Json& json) {
  if (!json.is_object()) return absl::InvalidArgumentError("must be an object");
  SCION_RETURN_IF_ERROR(RefuseUnknownKeys(json, {"file", "generation"}));
  LockFile::Domain domain;
  SCION_ASSIGN_OR_RETURN(domain.file, GetString(json, "file"));
  SCION_ASSIGN_OR_RETURN(const int64_t generation, GetInt(json, "generation", 1, kMaxInt));
  domain.generation = static_cast<uint64_t>(generation);
  return domain;
}

absl::StatusOr<LockFile::File> ParseFile(const Json& json) {
  if (!json.is_object()) return absl::InvalidArgumentError("must be an object");
  SCION_RETURN_IF_ERROR(RefuseUnknownKeys(json, {"size", "sha256", "tensors"}));
  LockFile::File file;
  SCION_ASSIGN_OR_RETURN(const int64_t size, GetInt(json, "size", 0, kMaxInt));
  file.size = static_cast<uint64_t>(size);
  SCION_ASSIGN_OR_RETURN(file.sha256, GetSha256(json, "sha256"));
  if (FindMember(json, "tensors") == nullptr) return file;
  SCION_ASSIGN_OR_RETURN(const Json* tensors, GetObject(json, "tensors"));
  file.is_data = true;
  for (const auto& [name, hash] : tensors->items()) {
    SCION_ASSIGN_OR_RETURN(file.tensors[name], GetSha256(*tensors, name));
  }
  return file;
}

absl::StatusOr<LockFile::Generation> ParseGeneration(const Json& json) {
  if (!json.is_object()) return absl::InvalidArgumentError("must be an object");
  SCION_RETURN_IF_ERROR(
      RefuseUnknownKeys(json, {"file", "generation", "num_experts", "size", "sha256", "quantization_config"}));
  LockFile::Generation result;
  SCION_ASSIGN_OR_RETURN(result.file, GetString(json, "file"));
  if (!IsSafeRelativePath(result.file)) {
    return absl::InvalidArgumentError(absl::StrCat(Quoted(result.file), " is not a path inside the directory"));
  }
  SCION_ASSIGN_OR_RETURN(const int64_t generation, GetInt(json, "generation", 1, kMaxInt));
  result.generation = static_cast<uint64_t>(generation);
  SCION_ASSIGN_OR_RETURN(const int64_t num_experts, GetInt(json, "num_experts", 1, kMaxExpertsPerDomain));
  result.num_experts = static_cast<int>(num_experts);
  SCION_ASSIGN_OR_RETURN(const int64_t size, GetInt(json, "size", 0, kMaxInt));
  result.size = static_cast<uint64_t>(size);
  SCION_ASSIGN_OR_RETURN(result.sha256, GetSha256(json, "sha256"));
  if (const Json* quantization = FindMember(json, "quantization_config"); quantization != nullptr) {
    SCION_ASSIGN_OR_RETURN(result.quantization, ParseQuantization(*quantization));
  }
  return result;
}

// files: what the lock's other members name.
absl::Status ParseEarlier(const Json& json, std::set<std::string> files, LockFile& lock) {
  if (FindMember(json, "earlier") == nullptr) return absl::OkStatus();
  SCION_ASSIGN_OR_RETURN(const Json* earlier, GetObject(json, "earlier"));
  for (const auto& [name, list] : earlier->items()) {
    const std::string where = absl::StrCat("earlier: ", Quoted(name));
    if (!IsValidDomainName(name)) return absl::InvalidArgumentError(absl::StrCat(where, " is not a domain's name"));
    if (!list.is_array() || list.empty()) return absl::InvalidArgumentError(absl::StrCat(where, " must be a list"));
    std::vector<LockFile::Generation>& generations = lock.earlier[name];
    for (const Json& entry : list) {
      absl::StatusOr<LockFile::Generation> generation = ParseGeneration(entry);
      if (!generation.ok()) return Annotate(generation.status(), where);
      const auto current = lock.domains.find(name);
      if ((current != lock.domains.end() && current->second.generation == generation->generation) ||
          (!generations.empty() && generations.back().generation >= generation->generation)) {
        return absl::InvalidArgumentError(
            absl::StrCat(where, ": generation ", generation->generation, " comes twice or not in order"));
      }
      if (!files.insert(generation->file).second) {
        return absl::InvalidArgumentError(absl::StrCat(where, ": ", Quoted(generation->file), " comes twice"));
      }
      generations.push_back(*std::move(generation));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<LockFile::LineageEntry> ParseLineageEntry(const Json& json) {
  if (!json.is_object()) return absl::InvalidArgumentError("must be an object");
  SCION_RETURN_IF_ERROR(
      RefuseUnknownKeys(json, {"verb", "time", "version", "source", "source_lock_sha256", "domains"}));
  LockFile::LineageEntry entry;
  SCION_ASSIGN_OR_RETURN(entry.verb, GetString(json, "verb"));
  SCION_ASSIGN_OR_RETURN(entry.time, GetString(json, "time"));
  SCION_ASSIGN_OR_RETURN(entry.version, GetString(json, "version"));
  SCION_ASSIGN_OR_RETURN(entry.source, GetString(json, "source"));
  SCION_ASSIGN_OR_RETURN(entry.source_lock_sha256, GetString(json, "source_lock_sha256"));
  SCION_ASSIGN_OR_RETURN(const Json* domains, GetArray(json, "domains"));
  for (const Json& name : *domains) {
    if (!name.is_string()) return absl::InvalidArgumentError("'domains' must be a list of strings");
    entry.domains.push_back(name.get_ref<const std::string&>());
  }
  return entry;
}

absl::StatusOr<LockFile> ParseMembers(const Json& json) {
  LockFile lock;
  SCION_ASSIGN_OR_RETURN(const Json* files, GetObject(json, "files"));
  for (const auto& [path, entry] : files->items()) {
    if (!IsSafeRelativePath(path))
      return absl::InvalidArgumentError(absl::StrCat("files: ", Quoted(path), " is not a path inside the directory"));
    absl::StatusOr<LockFile::File> file = ParseFile(entry);
    if (!file.ok()) return Annotate(file.status(), absl::StrCat("files: ", Quoted(path)));
    lock.files.emplace(path, *std::move(file));
  }
  SCION_ASSIGN_OR_RETURN(const Json* domains, GetObject(json, "domains"));
  std::map<std::string, std::string> owners;
  for (const auto& [name, entry] : domains->items()) {
    const std::string where = absl::StrCat("domains: ", Quoted(name));
    if (!IsValidDomainName(name)) return absl::InvalidArgumentError(absl::StrCat(where, " is not a domain's name"));
    absl::StatusOr<LockFile::Domain> domain = ParseDomain(entry);
    if (!domain.ok()) return Annotate(domain.status(), where);
    const auto file = lock.files.find(domain->file);
    if (file == lock.files.end() || !file->second.is_data) {
      return absl::InvalidArgumentError(
          absl::StrCat(where, ": ", Quoted(domain->file), " is not a data file in 'files'"));
    }
    if (const auto [owner, is_new] = owners.emplace(domain->file, name); !is_new) {
      return absl::InvalidArgumentError(
          absl::StrCat(where, ": ", Quoted(domain->file), " belongs to ", Quoted(owner->second), " too"));
    }
    lock.domains.emplace(name, *std::move(domain));
  }
  std::set<std::string> paths;
  for (const auto& [path, file] : lock.files) paths.insert(path);
  SCION_RETURN_IF_ERROR(ParseEarlier(json, std::move(paths), lock));
  SCION_ASSIGN_OR_RETURN(const Json* lineage, GetArray(json, "lineage"));
  for (const Json& item : *lineage) {
    absl::StatusOr<LockFile::LineageEntry> entry = ParseLineageEntry(item);
    if (!entry.ok()) return Annotate(entry.status(), absl::StrCat("lineage[", lock.lineage.size(), "]"));
    lock.lineage.push_back(*std::move(entry));
  }
  return lock;
}

}  // namespace

absl::StatusOr<LockFile> ParseLockFile(std::string_view text) {
  absl::StatusOr<Json> parsed = ParseJson(text, kLockFileName, kLimits);
  if (absl::IsResourceExhausted(parsed.status())) return parsed.status();
  if (!parsed.ok()) return absl::DataLossError(parsed.status().message());
  Json json = *std::move(parsed);
  if (!json.is_object()) return Damaged("must be an object");
  if (absl::StatusOr<int64_t> format = GetInt(json, "format", 1, 1); !format.ok()) {
    const Json* found = FindMember(json, "format");
    if (found != nullptr && found->is_number_integer()) {
      return absl::UnimplementedError(
          absl::StrCat(ToAbsl(kLockFileName), ": 'format' ", found->dump(), "; this build reads format 1"));
    }
    return Damaged(format.status(), "");
  }
  absl::Status unknown = RefuseUnknownKeys(json, {"format", "domains", "files", "earlier", "lineage", "lock_sha256"});
  if (!unknown.ok()) return Damaged(unknown, "");
  absl::StatusOr<std::string> claimed = GetSha256(json, "lock_sha256");
  if (!claimed.ok()) return Damaged(claimed.status(), "");

  const bool canonical = Dump(json) == text;
  json.erase("lock_sha256");
  if (Sha256Hex(Dump(json)) != *claimed)
    return Damaged("lock_sha256 does not match: the lock has been changed or damaged");
  if (!canonical) return Damaged("not in canonical form: the lock has been changed or damaged");
  absl::StatusOr<LockFile> lock = ParseMembers(json);
  if (!lock.ok()) return Damaged(lock.status(), "");
  return lock;
}

std::string LockSha256(const LockFile& lock) { return Sha256Hex(Dump(ToJson(lock))); }

std::string SerializeLockFile(const LockFile& lock) {
  Json json = ToJson(lock);
  json["lock_sha256"] = LockSha256(lock);
  return Dump(json);
}

bool IsSafeRelativePath(std::string_view path) {
  constexpr size_t kMaxPathBytes = 1024;
  if (path.empty() || path.size() > kMaxPathBytes) return false;
  if (std::any_of(path.begin(), path.end(), [](unsigned char c) { return c < 0x20 || c == 0x7f || c == '\\'; }))
    return false;
  for (;;) {
    const size_t slash = path.find('/');
    const std::string_view part = path.substr(0, slash);
    if (part.empty() || part == "." || part == "..") return false;
    if (slash == path.npos) return true;
    path.remove_prefix(slash + 1);
  }
}

}  // namespace scion

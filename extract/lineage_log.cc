#include "extract/lineage_log.h"

#include <map>
#include <optional>
#include <utility>

#include "absl/strings/str_format.h"
#include "engine/base/status.h"
#include "extract/lock_builder.h"

namespace scion {
namespace {

Json GenerationJson(uint64_t generation, const std::string& file, uint64_t bytes, bool in_use) {
  return {{"generation", generation}, {"file", file}, {"bytes", bytes}, {"in_use", in_use}};
}

}  // namespace

Json GenerationsJson(const LockFile& lock) {
  std::map<std::string, std::map<uint64_t, Json>> generations;
  for (const auto& [name, domain] : lock.domains) {
    generations[name][domain.generation] =
        GenerationJson(domain.generation, domain.file, lock.files.at(domain.file).size, true);
  }
  for (const auto& [name, earlier] : lock.earlier) {
    for (const LockFile::Generation& g : earlier) {
      generations[name][g.generation] = GenerationJson(g.generation, g.file, g.size, false);
    }
  }
  Json domains = Json::array();
  for (auto& [name, of_domain] : generations) {
    Json list = Json::array();
    for (auto& [generation, json] : of_domain) list.push_back(std::move(json));
    domains.push_back({{"name", name}, {"generations", std::move(list)}});
  }
  return domains;
}

absl::StatusOr<Json> LineageLog(const std::filesystem::path& model) {
  const absl::StatusOr<std::optional<LockFile>> lock = ReadLock(model);
  if (!lock.ok()) return Annotate(lock.status(), model.string());
  if (!lock->has_value()) {
    return absl::FailedPreconditionError(
        absl::StrCat(model.string(), " has no ", ToAbsl(kLockFileName), ", and so no lineage"));
  }
  return Json{{"directory", model.string()},
              {"lock_sha256", LockSha256(**lock)},
              {"lineage", LineageJson(**lock)},
              {"domains", GenerationsJson(**lock)}};
}

std::string LineageLogText(const Json& log) {
  std::string text;
  for (const Json& entry : log["lineage"]) {
    std::string domains;
    for (const Json& name : entry["domains"]) {
      absl::StrAppend(&domains, domains.empty() ? "" : ",", name.get<std::string>());
    }
    const std::string sha256 = entry["source_lock_sha256"].get<std::string>();
    absl::StrAppendFormat(&text, "%s  %-8s %-24s from %s%s, version %s\n", entry["time"].get<std::string>(),
                          entry["verb"].get<std::string>(), domains, entry["source"].get<std::string>(),
                          sha256.empty() ? "" : " (lock " + sha256.substr(0, 12) + ")",
                          entry["version"].get<std::string>());
  }
  for (const Json& domain : log["domains"]) {
    for (const Json& g : domain["generations"]) {
      absl::StrAppendFormat(&text, "%s generation %d%s: %s, %d bytes\n", domain["name"].get<std::string>(),
                            g["generation"].get<uint64_t>(), g["in_use"].get<bool>() ? " (in use)" : "",
                            g["file"].get<std::string>(), g["bytes"].get<uint64_t>());
    }
  }
  return text;
}

}  // namespace scion

#include "engine/model/domain_generations.h"

#include <algorithm>
#include <memory>

#include "engine/base/status.h"

namespace scion {

std::vector<DomainGeneration> DomainGenerations(const Checkpoint& checkpoint) {
  std::vector<DomainGeneration> result;
  for (const DomainSpec& domain : checkpoint.spec().domains) result.push_back({domain.name, 1, {}, {}});
  for (const CheckpointFile& file : checkpoint.files()) {
    if (!file.domain.has_value()) continue;
    DomainGeneration& entry = result[static_cast<size_t>(*file.domain)];
    entry.generation = file.generation;
    entry.file = file.path;
    if (const LockFile* lock = checkpoint.lock(); lock != nullptr) entry.sha256 = lock->files.at(file.path).sha256;
  }
  return result;
}

absl::StatusOr<std::vector<DomainGeneration>> ReadDomainGenerations(const std::filesystem::path& model) {
  const absl::StatusOr<std::unique_ptr<Checkpoint>> checkpoint = Checkpoint::Open(model);
  if (!checkpoint.ok()) return Annotate(checkpoint.status(), model.string());
  return DomainGenerations(**checkpoint);
}

std::string ToString(const DomainGeneration& generation) {
  std::string text = absl::StrCat("generation ", generation.generation);
  if (generation.file.empty()) return text;
  absl::StrAppend(&text, " (", generation.file);
  if (!generation.sha256.empty()) absl::StrAppend(&text, ", sha256 ", generation.sha256.substr(0, 12));
  return text + ")";
}

std::vector<std::string> DifferentGenerations(const std::vector<DomainGeneration>& served,
                                              const std::vector<DomainGeneration>& on_disk) {
  std::vector<std::string> lines;
  for (const DomainGeneration& s : served) {
    const auto disk = std::ranges::find(on_disk, s.domain, &DomainGeneration::domain);
    if (disk != on_disk.end() && *disk == s) continue;
    lines.push_back(absl::StrCat("domain ", Quoted(s.domain), ": serving ", ToString(s), ", on disk ",
                                 disk == on_disk.end() ? "no longer there" : ToString(*disk)));
  }
  for (const DomainGeneration& d : on_disk) {
    if (std::ranges::find(served, d.domain, &DomainGeneration::domain) != served.end()) continue;
    lines.push_back(absl::StrCat("domain ", Quoted(d.domain), ": not served, on disk ", ToString(d)));
  }
  return lines;
}

}  // namespace scion

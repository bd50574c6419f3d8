#include "extract/slice.h"

#include <algorithm>
#include <memory>
#include <set>

#include "engine/base/status.h"
#include "engine/model/checkpoint.h"
#include "extract/cut_config.h"
#include "extract/lock_builder.h"
#include "extract/new_model.h"

namespace scion {

absl::StatusOr<SliceResult> Slice(const SliceOptions& options) {
  if (std::set<std::string>(options.domains.begin(), options.domains.end()).size() != options.domains.size()) {
    return absl::InvalidArgumentError("a domain is named twice");
  }
  const absl::StatusOr<std::unique_ptr<Checkpoint>> opened = Checkpoint::Open(options.model);
  if (!opened.ok()) return Annotate(opened.status(), options.model.string());
  const Checkpoint& checkpoint = **opened;
  if (checkpoint.is_gguf()) {
    return absl::FailedPreconditionError(absl::StrCat(options.model.string(), ": a GGUF file has no domains to cut"));
  }
  SCION_ASSIGN_OR_RETURN(const std::string cut_config, CutConfig(checkpoint.config(), options.domains));

  SliceResult result;
  for (const DomainSpec& domain : checkpoint.spec().domains) {
    const bool kept = std::find(options.domains.begin(), options.domains.end(), domain.name) != options.domains.end();
    if (kept) result.domains.push_back(domain.name);
  }
  std::set<int> kept_files;
  for (size_t i = 0; i < checkpoint.files().size(); ++i) {
    const CheckpointFile& file = checkpoint.files()[i];
    result.model_bytes += file.file.size();
    const std::string part = PartName(checkpoint, file);
    if (file.domain.has_value() &&
        std::find(result.domains.begin(), result.domains.end(), part) == result.domains.end())
      continue;
    kept_files.insert(static_cast<int>(i));
    result.cut_bytes += file.file.size();
  }

  SCION_ASSIGN_OR_RETURN(NewModel cut, NewModel::Create(checkpoint, options.out));
  {
    Progress progress(options.log, "copying", result.cut_bytes, Progress::Unit::kBytes);
    for (const int i : kept_files) {
      const CheckpointFile& file = checkpoint.files()[static_cast<size_t>(i)];
      if (!options.link) {
        SCION_RETURN_IF_ERROR(cut.CopyDataFile(file, TensorsOf(checkpoint, i), progress));
        continue;
      }
      SCION_ASSIGN_OR_RETURN(const LinkKind kind, cut.LinkDataFile(file, TensorsOf(checkpoint, i)));
      ++(kind == LinkKind::kReflink ? result.reflinks : result.hard_links);
    }
    SCION_RETURN_IF_ERROR(cut.CopyCompanions(progress));
  }
  SCION_RETURN_IF_ERROR(cut.Commit(
      cut_config, {.verb = "slice", .version = options.version, .now = options.now, .domains = result.domains}));
  return result;
}

}  // namespace scion

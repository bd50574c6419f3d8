#include "extract/rollback.h"

#include <map>
#include <utility>
#include <vector>

#include "engine/base/status.h"
#include "engine/model/model_files.h"
#include "engine/model/safetensors.h"
#include "extract/digest_file.h"
#include "extract/domain_config.h"
#include "extract/generations.h"
#include "extract/lock_builder.h"
#include "extract/model_transaction.h"

namespace scion {
namespace {

// The generation to go back to; says which there are if there is no such.
absl::StatusOr<LockFile::Generation> Choose(const RollbackOptions& options, const LockFile& lock,
                                            std::optional<uint64_t> current) {
  const LockFile::Generation* chosen = nullptr;
  std::string known;
  if (const auto earlier = lock.earlier.find(options.domain); earlier != lock.earlier.end()) {
    for (const LockFile::Generation& generation : earlier->second) {
      absl::StrAppend(&known, known.empty() ? "" : ", ", generation.generation);
      const bool fits = options.to.has_value() ? generation.generation == *options.to
                                               : !current.has_value() || generation.generation < *current;
      if (fits) chosen = &generation;
    }
  }
  if (chosen != nullptr) return *chosen;
  const std::string where = absl::StrCat(options.model.string(), ": domain ", Quoted(options.domain));
  if (!known.empty()) {
    return absl::NotFoundError(
        absl::StrCat(where, " has no such generation to go back to; others on the disk: ", known));
  }
  if (!current.has_value()) return absl::NotFoundError(where + " is not in the model, nor remembered by it");
  return absl::NotFoundError(
      absl::StrCat(where, " has no generation but ", *current, ", which is in use; gc removes the others"));
}

// The file's tensors by offset, blocks as such.
absl::StatusOr<std::vector<TensorInfo>> ReadTensors(const ReadOnlyFile& file, const LockFile::Generation& generation) {
  SCION_ASSIGN_OR_RETURN(std::vector<TensorInfo> tensors, ReadSafetensorsHeader(file, generation.file));
  if (generation.quantization.has_value()) {
    SCION_RETURN_IF_ERROR(SetBlockTypes(*generation.quantization, generation.file, tensors));
  }
  return tensors;
}

}  // namespace

absl::StatusOr<RollbackResult> Rollback(const RollbackOptions& options) {
  SCION_ASSIGN_OR_RETURN(ModelTransaction transaction, ModelTransaction::Begin(options.model));
  const Checkpoint& model = transaction.before();
  SCION_RETURN_IF_ERROR(NeedsDomainFiles(model));
  RollbackResult result;
  if (const auto current = model.lock()->domains.find(options.domain); current != model.lock()->domains.end()) {
    result.from = current->second.generation;
  }
  SCION_ASSIGN_OR_RETURN(const LockFile::Generation chosen, Choose(options, *model.lock(), result.from));
  result.to = chosen.generation;
  result.file = chosen.file;

  SCION_ASSIGN_OR_RETURN(const std::filesystem::path root, ResolveDirectory(options.model));
  const absl::StatusOr<ReadOnlyFile> file = OpenInside(root, chosen.file);
  if (!file.ok()) return Annotate(file.status(), options.model.string());
  const absl::StatusOr<std::vector<TensorInfo>> tensors = ReadTensors(*file, chosen);
  if (!tensors.ok()) return Annotate(tensors.status(), options.model.string());
  Progress progress(options.log, "hashing", file->size(), Progress::Unit::kBytes);
  SCION_ASSIGN_OR_RETURN(const FileDigest digest, DigestFile(*file, *tensors, nullptr, progress));
  if (digest.sha256 != chosen.sha256) {
    return absl::DataLossError(absl::StrCat((options.model / chosen.file).string(),
                                            " is not what the lock says (sha256 differs): nothing was changed"));
  }
  DomainConfig domain{options.domain, chosen.num_experts, {}};
  for (const TensorInfo& tensor : *tensors) {
    if (IsQuantized(tensor.dtype)) domain.block_types[tensor.name] = tensor.dtype;
  }
  SCION_ASSIGN_OR_RETURN(const std::string config, WithDomain(model.config(), domain));
  LockFile& lock = transaction.lock();
  if (result.from.has_value()) RetireDomain(model, options.domain, lock);
  std::vector<LockFile::Generation>& earlier = lock.earlier[options.domain];
  std::erase_if(earlier, [&](const LockFile::Generation& g) { return g.generation == chosen.generation; });
  if (earlier.empty()) lock.earlier.erase(options.domain);
  AddDomainFile(lock, options.domain, chosen.file, chosen.generation, digest);
  SCION_RETURN_IF_ERROR(transaction.Commit(config, ModelTransaction::Order::kLockLast,
                                           {.verb = "rollback",
                                            .time = FormatUtc(options.now),
                                            .version = options.version,
                                            .source = ModelName(options.model),
                                            .source_lock_sha256 = LockSha256(*model.lock()),
                                            .domains = {options.domain}}));
  return result;
}

}  // namespace scion

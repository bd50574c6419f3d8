#include "extract/verify.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <system_error>

#include "engine/base/sha256.h"
#include "engine/base/status.h"
#include "engine/base/thread_pool.h"
#include "engine/model/checkpoint.h"
#include "engine/model/model.h"
#include "extract/check_lock.h"
#include "extract/companion_files.h"
#include "extract/compare_bytes.h"
#include "extract/compare_domain.h"
#include "extract/compare_upcycled.h"
#include "extract/lock_builder.h"
#include "extract/verify_graft.h"

namespace scion {

namespace fs = std::filesystem;

void CheckCutLock(const VerifyOptions& options, VerifyReport& report) {
  const absl::StatusOr<std::optional<LockFile>> lock = ReadLock(options.cut);
  const std::string name(kLockFileName);
  if (!lock.ok()) return report.differences.push_back({name, "", std::string(lock.status().message())});
  if (!lock->has_value()) return report.differences.push_back({name, "", "is missing; every cut is written with one"});
  report.cut_lock_sha256 = LockSha256(**lock);
  for (const auto& [path, file] : (*lock)->files) report.cut_files[path] = file.sha256;
  Progress progress(options.log, "hashing the cut", LockedBytes(**lock), Progress::Unit::kBytes);
  std::vector<Difference> found = CheckAgainstLock(options.cut, **lock, progress);
  report.differences.insert(report.differences.end(), found.begin(), found.end());
}

absl::Status HashSource(const Checkpoint& source, const std::vector<std::string>& domains, std::FILE* log,
                        std::map<std::string, std::string>& hashes) {
  uint64_t total = 0;
  std::vector<const CheckpointFile*> files;
  for (const CheckpointFile& file : source.files()) {
    if (file.domain.has_value() && std::ranges::find(domains, PartName(source, file)) == domains.end()) continue;
    files.push_back(&file);
    total += file.file.size();
  }
  Progress progress(log, "hashing the source", total, Progress::Unit::kBytes);
  for (const CheckpointFile* file : files) {
    SCION_ASSIGN_OR_RETURN(const FileDigest digest, DigestFile(file->file, {}, nullptr, progress));
    hashes[file->path] = digest.sha256;
  }
  if (source.is_gguf()) return absl::OkStatus();
  hashes["config.json"] = Sha256Hex(source.config());
  SCION_ASSIGN_OR_RETURN(const std::vector<std::string> companions, ListCompanionFiles(source.directory()));
  for (const std::string& name : companions) {
    SCION_ASSIGN_OR_RETURN(const std::string text, ReadTextInside(source.directory(), name));
    hashes[name] = Sha256Hex(text);
  }
  return absl::OkStatus();
}

namespace {

absl::Status CompareAllBytes(const VerifyOptions& options, const Checkpoint& whole, const Checkpoint& cut,
                             VerifyReport& report) {
  uint64_t total = 0;
  for (const TensorInfo& tensor : cut.tensors()) total += tensor.bytes;
  {
    Progress progress(options.log, "comparing bytes", total, Progress::Unit::kBytes);
    SCION_ASSIGN_OR_RETURN(ByteComparison bytes, report.upcycled ? CompareWithParent(whole, cut, progress)
                                                                 : CompareTensors(whole, cut, progress));
    report.tensors = bytes.tensors;
    report.tensor_bytes = bytes.bytes;
    report.differences.insert(report.differences.end(), bytes.differences.begin(), bytes.differences.end());
  }
  SCION_ASSIGN_OR_RETURN(const std::vector<Difference> companions,
                         report.upcycled ? CompareParentCompanions(whole, cut) : CompareCompanions(whole, cut));
  report.differences.insert(report.differences.end(), companions.begin(), companions.end());
  return HashSource(whole, report.domains, options.log, report.model_files);
}

absl::Status CompareAllLogits(const VerifyOptions& options, const Checkpoint& whole_files, const Checkpoint& cut_files,
                              VerifyReport& report) {
  ThreadPool pool(options.num_threads);
  ModelOptions model_options;
  model_options.tier = options.tier;
  model_options.weights = options.weights;
  absl::StatusOr<std::unique_ptr<Model>> whole = Model::Load(whole_files, model_options, pool);
  if (!whole.ok()) return Annotate(whole.status(), options.model.string());
  absl::StatusOr<std::unique_ptr<Model>> cut = Model::Load(cut_files, model_options, pool);
  if (!cut.ok()) return Annotate(cut.status(), options.cut.string());
  for (const std::string& name : report.domains) {
    const std::string& source_name = report.upcycled ? (*whole)->spec().domains[0].name : name;
    SCION_RETURN_IF_ERROR(
        CompareDomain({whole->get(), source_name}, "the source", cut_files, {cut->get(), name}, options.log, report));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<VerifyReport> Verify(const VerifyOptions& options) {
  std::error_code error;
  if (!fs::is_directory(options.cut, error)) {
    return absl::NotFoundError(absl::StrCat(options.cut.string(), ": there is no such directory"));
  }
  if (options.graft.has_value()) return VerifyGraft(options);
  const absl::StatusOr<std::unique_ptr<Checkpoint>> whole = Checkpoint::Open(options.model);
  if (!whole.ok()) return Annotate(whole.status(), "the source, " + options.model.string());
  VerifyReport report;
  if (const LockFile* lock = (*whole)->lock()) report.model_lock_sha256 = LockSha256(*lock);

  CheckCutLock(options, report);
  const absl::StatusOr<std::unique_ptr<Checkpoint>> cut = Checkpoint::Open(options.cut);
  if (!cut.ok()) {
    report.differences.push_back({"", "", "the cut does not open: " + std::string(cut.status().message())});
    return report;
  }
  report.upcycled = IsUpcycled(**whole, **cut);
  for (const DomainSpec& domain : (*cut)->spec().domains) {
    report.domains.push_back(domain.name);
    if (!report.upcycled && !(*whole)->spec().FindDomain(domain.name).has_value()) {
      report.differences.push_back({"config.json", "", "domain " + Quoted(domain.name) + " is not in the source"});
    }
  }
  if ((*cut)->spec().vocab_size != (*whole)->spec().vocab_size) {
    report.differences.push_back({"config.json", "", "'vocab_size' is not the source's"});
  }
  if (options.compare_bytes) SCION_RETURN_IF_ERROR(CompareAllBytes(options, **whole, **cut, report));
  if (report.differences.empty()) SCION_RETURN_IF_ERROR(CompareAllLogits(options, **whole, **cut, report));
  return report;
}

}  // namespace scion

#include "extract/verify.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <system_error>

#include "engine/base/status.h"
#include "engine/base/thread_pool.h"
#include "engine/model/checkpoint.h"
#include "engine/model/model.h"
#include "extract/check_lock.h"
#include "extract/compare_bytes.h"
#include "extract/compare_logits.h"
#include "extract/compare_upcycled.h"
#include "extract/cover_prompts.h"
#include "extract/lock_builder.h"

namespace scion {
namespace {

namespace fs = std::filesystem;

// The hashes of the cut's files against its own lock.
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

// Hashes of those of the source's data files that the cut has been made of.
absl::Status HashSource(const VerifyOptions& options, const Checkpoint& whole, VerifyReport& report) {
  Progress progress(options.log, "hashing the source", report.tensor_bytes, Progress::Unit::kBytes);
  for (const CheckpointFile& file : whole.files()) {
    const std::string part = PartName(whole, file);
    if (file.domain.has_value() && std::ranges::find(report.domains, part) == report.domains.end()) continue;
    SCION_ASSIGN_OR_RETURN(const FileDigest digest, DigestFile(file.file, {}, nullptr, progress));
    report.model_files[file.path] = digest.sha256;
  }
  return absl::OkStatus();
}

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
  return HashSource(options, whole, report);
}

absl::StatusOr<std::vector<RouteTable>> ReadRouteTables(const Checkpoint& checkpoint, const DomainSpec& domain) {
  std::vector<RouteTable> tables;
  for (const int layer : checkpoint.spec().SparseLayers()) {
    if (checkpoint.spec().layers[static_cast<size_t>(layer)].ffn.router != RouterKind::kTable) continue;
    SCION_ASSIGN_OR_RETURN(const TensorInfo* tensor, checkpoint.Find(RouteTensorName(layer, domain.name)));
    SCION_ASSIGN_OR_RETURN(std::vector<int32_t> experts, checkpoint.ReadInt32(*tensor));
    tables.push_back({.layer = layer, .num_experts = domain.num_experts, .expert_of_token = std::move(experts)});
  }
  return tables;
}

// Runs the cover prompts of one domain through both models.
absl::Status CompareDomain(const VerifyOptions& options, const Checkpoint& cut_files, Model& whole, Model& cut,
                           const std::string& name, VerifyReport& report) {
  const int whole_domain = report.upcycled ? 0 : *whole.spec().FindDomain(name);
  const int cut_domain = *cut.spec().FindDomain(name);
  const DomainSpec& domain = cut.spec().domains[static_cast<size_t>(cut_domain)];
  SCION_ASSIGN_OR_RETURN(const std::vector<RouteTable> tables, ReadRouteTables(cut_files, domain));
  const auto prompts = MakeCoverPrompts(tables, cut.spec().vocab_size, cut.spec().max_position_embeddings);
  int64_t positions = 0;
  for (const auto& prompt : prompts) positions += static_cast<int64_t>(prompt.size());
  report.prompts += static_cast<int>(prompts.size());
  report.positions += positions;
  Progress progress(options.log, "comparing logits of " + name, static_cast<uint64_t>(2 * positions),
                    Progress::Unit::kTokens);
  SCION_ASSIGN_OR_RETURN(const std::optional<LogitDifference> difference,
                         CompareLogits({&whole, whole_domain}, {&cut, cut_domain}, prompts, progress));
  if (difference.has_value()) {
    report.differences.push_back(
        {"", "",
         absl::StrCat("domain '", name, "', prompt ", difference->prompt, ", position ", difference->position,
                      ": the logit of token ", difference->token, " is ", difference->whole, " in the source and ",
                      difference->cut, " in the cut")});
  }
  for (const RouteTable& table : tables) {
    LayerCoverage coverage{
        .layer = table.layer, .experts = table.num_experts, .reachable = CountReachable(table), .visited = 0};
    for (int e = 0; e < table.num_experts; ++e) coverage.visited += cut.ExpertTokens(table.layer, cut_domain, e) > 0;
    if (!difference.has_value() && coverage.visited != coverage.reachable) {
      return absl::InternalError(absl::StrCat("domain '", name, "', layer ", table.layer, ": the prompts visited ",
                                              coverage.visited, " of ", coverage.reachable, " experts"));
    }
    report.coverage[name].push_back(coverage);
  }
  return absl::OkStatus();
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
    SCION_RETURN_IF_ERROR(CompareDomain(options, cut_files, **whole, **cut, name, report));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<VerifyReport> Verify(const VerifyOptions& options) {
  std::error_code error;
  if (!fs::is_directory(options.cut, error)) {
    return absl::NotFoundError(absl::StrCat(options.cut.string(), ": there is no such directory"));
  }
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

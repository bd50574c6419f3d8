#include "extract/verify_graft.h"

#include <algorithm>
#include <memory>
#include <set>
#include <utility>

#include "engine/base/status.h"
#include "engine/base/thread_pool.h"
#include "engine/model/model.h"
#include "extract/compare_bytes.h"
#include "extract/compare_domain.h"
#include "extract/copy_domain.h"
#include "extract/domain_config.h"
#include "extract/generations.h"
#include "extract/lock_builder.h"

namespace scion {
namespace {

class GraftVerifier {
 public:
  GraftVerifier(const VerifyOptions& options, const Checkpoint& model, const Checkpoint& donor,
                const Checkpoint& grafted, VerifyReport& report)
      : options_(options), model_(model), donor_(donor), grafted_(grafted), report_(report) {}

  absl::Status CompareBytes() {
    uint64_t total = 0;
    for (const TensorInfo& tensor : grafted_.tensors()) total += tensor.bytes;
    Progress progress(options_.log, "comparing bytes", total, Progress::Unit::kBytes);
    std::set<std::string> checked;  // names in the grafted model
    for (const TensorInfo& tensor : grafted_.tensors()) {
      const bool is_new = PartOf(grafted_, tensor) == as();
      SCION_RETURN_IF_ERROR(CompareOne(tensor, is_new ? donor_ : model_, is_new, progress));
      checked.insert(tensor.name);
    }
    for (const TensorInfo& tensor : model_.tensors()) {
      if (PartOf(model_, tensor) != as() && !checked.contains(tensor.name)) Missing(tensor.name, "the model");
    }
    for (const TensorInfo& tensor : donor_.tensors()) {
      if (PartOf(donor_, tensor) != donor_domain()) continue;
      const std::string name = RenameDomainOfTensor(tensor.name, donor_domain(), as());
      if (!checked.contains(name)) Missing(name, "the donor");
    }
    return absl::OkStatus();
  }

  absl::Status CompareTexts() {
    DomainConfig domain{as(), 0, {}};
    domain.num_experts =
        donor_.spec().domains[static_cast<size_t>(*donor_.spec().FindDomain(donor_domain()))].num_experts;
    for (const TensorInfo& tensor : donor_.tensors()) {
      if (PartOf(donor_, tensor) != donor_domain() || !IsQuantized(tensor.dtype)) continue;
      domain.block_types[RenameDomainOfTensor(tensor.name, donor_domain(), as())] = tensor.dtype;
    }
    SCION_ASSIGN_OR_RETURN(const std::string text, WithDomain(model_.config(), domain));
    SCION_ASSIGN_OR_RETURN(const Json expected, ParseJson(text, "config.json", {.max_bytes = text.size()}));
    Add(CompareConfig(expected, grafted_, "a graft of these"));
    SCION_ASSIGN_OR_RETURN(std::vector<Difference> files, CompareCompanionFiles(model_, grafted_));
    Add(std::move(files));
    return absl::OkStatus();
  }

  absl::Status CompareAllLogits() {
    ThreadPool pool(options_.num_threads);
    ModelOptions model_options;
    model_options.tier = options_.tier;
    model_options.weights = options_.weights;
    absl::StatusOr<std::unique_ptr<Model>> grafted = Model::Load(grafted_, model_options, pool);
    if (!grafted.ok()) return Annotate(grafted.status(), options_.cut.string());
    // One source after the other, so that two models are in memory, not three.
    for (const bool is_donor : {false, true}) {
      const Checkpoint& files = is_donor ? donor_ : model_;
      absl::StatusOr<std::unique_ptr<Model>> source = Model::Load(files, model_options, pool);
      if (!source.ok()) return Annotate(source.status(), files.directory().string());
      for (const std::string& name : report_.domains) {
        if ((name == as()) != is_donor) continue;
        SCION_RETURN_IF_ERROR(CompareDomain({source->get(), is_donor ? donor_domain() : name},
                                            is_donor ? "the donor" : "the model", grafted_, {grafted->get(), name},
                                            options_.log, report_));
      }
    }
    return absl::OkStatus();
  }

 private:
  const std::string& as() const { return options_.graft->as; }
  const std::string& donor_domain() const { return report_.donor_domain; }
  static std::string PartOf(const Checkpoint& checkpoint, const TensorInfo& tensor) {
    return PartName(checkpoint, checkpoint.FileOf(tensor));
  }

  void Add(std::vector<Difference> differences) {
    std::ranges::move(differences, std::back_inserter(report_.differences));
  }

  void Missing(const std::string& tensor, std::string_view where) {
    Add({{"", tensor, absl::StrCat("is in ", ToAbsl(where), ", but not in the graft")}});
  }

  absl::Status CompareOne(const TensorInfo& tensor, const Checkpoint& source, bool is_new, Progress& progress) {
    const std::string& path = grafted_.FileOf(tensor).path;
    const std::string name = is_new ? RenameDomainOfTensor(tensor.name, as(), donor_domain()) : tensor.name;
    const std::string source_name = is_new ? "the donor" : "the model";
    const absl::StatusOr<const TensorInfo*> expected = source.Find(name);
    if (!expected.ok()) {
      Add({{path, tensor.name, "is not in " + source_name}});
      return absl::OkStatus();
    }
    SCION_ASSIGN_OR_RETURN(std::string what,
                           CompareTensor(source, **expected, grafted_, tensor, source_name, buffer_, progress));
    if (!what.empty()) Add({{path, tensor.name, std::move(what)}});
    ++report_.tensors;
    report_.tensor_bytes += tensor.bytes;
    return absl::OkStatus();
  }

  const VerifyOptions& options_;
  const Checkpoint& model_;
  const Checkpoint& donor_;
  const Checkpoint& grafted_;
  VerifyReport& report_;
  std::vector<std::byte> buffer_;
};

// The donor's domain, and whether all domains that should be there are.
absl::Status CheckDomains(const VerifyOptions& options, const Checkpoint& model, const Checkpoint& donor,
                          const Checkpoint& grafted, VerifyReport& report) {
  SCION_ASSIGN_OR_RETURN(const int domain, ChooseDonorDomain(donor, options.graft->donor.domain));
  report.donor_domain = donor.spec().domains[static_cast<size_t>(domain)].name;
  std::set<std::string> expected = {options.graft->as};
  for (const DomainSpec& d : model.spec().domains) expected.insert(d.name);
  for (const DomainSpec& d : grafted.spec().domains) {
    report.domains.push_back(d.name);
    if (expected.erase(d.name) == 0) {
      report.differences.push_back({"config.json", "", "domain " + Quoted(d.name) + " is not in the model"});
    }
  }
  for (const std::string& name : expected) {
    report.differences.push_back({"config.json", "", "domain " + Quoted(name) + " is missing"});
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<VerifyReport> VerifyGraft(const VerifyOptions& options) {
  const absl::StatusOr<std::unique_ptr<Checkpoint>> model = Checkpoint::Open(options.model);
  if (!model.ok()) return Annotate(model.status(), "the model, " + options.model.string());
  const absl::StatusOr<std::unique_ptr<Checkpoint>> donor = Checkpoint::Open(options.graft->donor.model);
  if (!donor.ok()) return Annotate(donor.status(), "the donor, " + options.graft->donor.model.string());
  SCION_RETURN_IF_ERROR(NeedsDomainFiles(**model));
  VerifyReport report;
  if (const LockFile* lock = (*model)->lock()) report.model_lock_sha256 = LockSha256(*lock);
  if (const LockFile* lock = (*donor)->lock()) report.donor_lock_sha256 = LockSha256(*lock);

  CheckCutLock(options, report);
  const absl::StatusOr<std::unique_ptr<Checkpoint>> grafted = Checkpoint::Open(options.cut);
  if (!grafted.ok()) {
    report.differences.push_back({"", "", "the graft does not open: " + std::string(grafted.status().message())});
    return report;
  }
  SCION_RETURN_IF_ERROR(CheckDomains(options, **model, **donor, **grafted, report));
  GraftVerifier verifier(options, **model, **donor, **grafted, report);
  if (options.compare_bytes) SCION_RETURN_IF_ERROR(verifier.CompareBytes());
  SCION_RETURN_IF_ERROR(verifier.CompareTexts());
  std::vector<std::string> others;
  for (const std::string& name : report.domains) {
    if (name != options.graft->as) others.push_back(name);
  }
  SCION_RETURN_IF_ERROR(HashSource(**model, others, options.log, report.model_files));
  SCION_RETURN_IF_ERROR(HashSource(**donor, {report.donor_domain}, options.log, report.donor_files));
  if (report.differences.empty()) SCION_RETURN_IF_ERROR(verifier.CompareAllLogits());
  return report;
}

}  // namespace scion

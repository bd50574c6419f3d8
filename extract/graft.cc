#include "extract/graft.h"

#include <memory>
#include <system_error>
#include <utility>

#include "engine/base/status.h"
#include "engine/model/checkpoint.h"
#include "extract/check_donor.h"
#include "extract/copy_domain.h"
#include "extract/domain_config.h"
#include "extract/generations.h"
#include "extract/lock_builder.h"
#include "extract/model_transaction.h"
#include "extract/new_model.h"

namespace scion {
namespace {

namespace fs = std::filesystem;

absl::StatusOr<std::unique_ptr<Checkpoint>> OpenNamed(const fs::path& path) {
  absl::StatusOr<std::unique_ptr<Checkpoint>> opened = Checkpoint::Open(path);
  if (!opened.ok()) return Annotate(opened.status(), path.string());
  return opened;
}

// A graft that has been checked, on its way into the model.
class Scion {
 public:
  Scion(const GraftOptions& options, const Checkpoint& model, const Checkpoint& donor, int domain)
      : options_(options), model_(model), donor_(donor), domain_(domain) {
    const NewGeneration next = NextGeneration(model, options.as);
    result_.donor_domain = donor.spec().domains[static_cast<size_t>(domain)].name;
    result_.replaced = model.spec().FindDomain(options.as).has_value();
    result_.num_experts = donor.spec().domains[static_cast<size_t>(domain)].num_experts;
    result_.generation = next.generation;
    result_.file = next.path;
  }

  const GraftResult& result() const { return result_; }

  absl::Status Check() const {
    Progress progress(options_.log, "comparing the trunks", TrunkBytesToCompare(model_, donor_),
                      Progress::Unit::kBytes);
    return CheckDonor(model_, donor_, domain_, progress);
  }

  absl::StatusOr<CopiedDomain> Copy(NewFile& file, Progress& progress) {
    SCION_ASSIGN_OR_RETURN(CopiedDomain copied, CopyDomain(donor_, domain_, options_.as, file, progress));
    result_.bytes = copied.digest.bytes;
    return copied;
  }

  absl::StatusOr<std::string> Config(const CopiedDomain& copied) const {
    return WithDomain(model_.config(), {options_.as, result_.num_experts, copied.block_types});
  }

  LockFile::LineageEntry Lineage() const {
    const LockFile* lock = donor_.lock();
    return {.verb = "graft",
            .time = FormatUtc(options_.now),
            .version = options_.version,
            .source = absl::StrCat(ModelName(options_.donor.model), "@", result_.donor_domain),
            .source_lock_sha256 = lock != nullptr ? LockSha256(*lock) : "",
            .domains = {options_.as}};
  }

 private:
  const GraftOptions& options_;
  const Checkpoint& model_;
  const Checkpoint& donor_;
  int domain_;
  GraftResult result_;
};

absl::StatusOr<GraftResult> GraftInPlace(const GraftOptions& options) {
  SCION_ASSIGN_OR_RETURN(ModelTransaction transaction, ModelTransaction::Begin(options.model));
  SCION_RETURN_IF_ERROR(NeedsDomainFiles(transaction.before()));
  SCION_ASSIGN_OR_RETURN(const std::unique_ptr<Checkpoint> donor, OpenNamed(options.donor.model));
  SCION_ASSIGN_OR_RETURN(const int domain, ChooseDonorDomain(*donor, options.donor.domain));
  Scion scion(options, transaction.before(), *donor, domain);
  SCION_RETURN_IF_ERROR(scion.Check());
  SCION_ASSIGN_OR_RETURN(NewFile file, transaction.CreateDataFile(scion.result().file));
  Progress progress(options.log, "copying", DomainFileBytes(*donor, domain), Progress::Unit::kBytes);
  SCION_ASSIGN_OR_RETURN(const CopiedDomain copied, scion.Copy(file, progress));
  SCION_ASSIGN_OR_RETURN(const std::string config, scion.Config(copied));
  LockFile& lock = transaction.lock();
  if (scion.result().replaced) RetireDomain(transaction.before(), options.as, lock);
  AddDomainFile(lock, options.as, scion.result().file, scion.result().generation, copied.digest);
  SCION_RETURN_IF_ERROR(transaction.Commit(config, ModelTransaction::Order::kLockLast, scion.Lineage()));
  return scion.result();
}

absl::StatusOr<GraftResult> GraftInto(const GraftOptions& options, const fs::path& out) {
  SCION_ASSIGN_OR_RETURN(const std::unique_ptr<Checkpoint> model, OpenNamed(options.model));
  SCION_RETURN_IF_ERROR(NeedsDomainFiles(*model));
  SCION_ASSIGN_OR_RETURN(const std::unique_ptr<Checkpoint> donor, OpenNamed(options.donor.model));
  SCION_ASSIGN_OR_RETURN(const int domain, ChooseDonorDomain(*donor, options.donor.domain));
  SCION_RETURN_IF_ERROR(RefuseOutInsideModel(options.donor.model, out));
  Scion scion(options, *model, *donor, domain);
  SCION_RETURN_IF_ERROR(scion.Check());
  uint64_t bytes = DomainFileBytes(*donor, domain);
  for (const CheckpointFile& file : model->files()) bytes += file.file.size();

  SCION_ASSIGN_OR_RETURN(NewModel grafted, NewModel::Create(*model, out));
  Progress progress(options.log, "copying", bytes, Progress::Unit::kBytes);
  std::vector<std::string> domains;
  for (size_t i = 0; i < model->files().size(); ++i) {
    const CheckpointFile& file = model->files()[i];
    if (file.domain.has_value()) {
      domains.push_back(PartName(*model, file));
      if (domains.back() == options.as) continue;
    }
    SCION_RETURN_IF_ERROR(grafted.CopyDataFile(file, TensorsOf(*model, static_cast<int>(i)), progress));
  }
  SCION_RETURN_IF_ERROR(grafted.CopyCompanions(progress));
  SCION_ASSIGN_OR_RETURN(NewFile file, grafted.CreateDataFile(scion.result().file));
  SCION_ASSIGN_OR_RETURN(const CopiedDomain copied, scion.Copy(file, progress));
  grafted.AddDomainFile(options.as, scion.result().file, scion.result().generation, copied.digest, copied.tensor_bytes);
  SCION_ASSIGN_OR_RETURN(const std::string config, scion.Config(copied));
  SCION_RETURN_IF_ERROR(grafted.Commit(config, {.verb = "copy",
                                                .version = options.version,
                                                .now = options.now,
                                                .domains = std::move(domains),
                                                .then = {scion.Lineage()}}));
  return scion.result();
}

}  // namespace

Donor ParseDonor(std::string_view text) {
  std::error_code error;
  const size_t at = text.rfind('@');
  if (at == text.npos || std::filesystem::exists(text, error)) return {.model = text, .domain = {}};
  return {.model = text.substr(0, at), .domain = std::string(text.substr(at + 1))};
}

absl::StatusOr<int> ChooseDonorDomain(const Checkpoint& donor, const std::string& name) {
  SCION_RETURN_IF_ERROR(NeedsDomainFiles(donor));
  if (!name.empty()) return FindDomain(donor, name);
  if (donor.spec().domains.size() == 1) return 0;
  return absl::InvalidArgumentError(absl::StrCat("the donor ", donor.directory().string(),
                                                 " has several domains; name ",
                                                 "one as DONOR@DOMAIN: ", DomainNames(donor)));
}

absl::StatusOr<GraftResult> Graft(const GraftOptions& options) {
  if (!IsValidDomainName(options.as)) {
    return absl::InvalidArgumentError(absl::StrCat(
        Quoted(options.as), " can't be a domain's name: [a-z][a-z0-9_-]{0,62}, and neither 'auto' nor 'all'"));
  }
  return options.out.has_value() ? GraftInto(options, *options.out) : GraftInPlace(options);
}

}  // namespace scion

#include "extract/drop.h"

#include "engine/base/status.h"
#include "extract/cut_config.h"
#include "extract/generations.h"
#include "extract/lock_builder.h"
#include "extract/model_transaction.h"

namespace scion {

absl::StatusOr<DropResult> Drop(const DropOptions& options) {
  SCION_ASSIGN_OR_RETURN(ModelTransaction transaction, ModelTransaction::Begin(options.model));
  const Checkpoint& model = transaction.before();
  SCION_RETURN_IF_ERROR(NeedsDomainFiles(model));
  SCION_ASSIGN_OR_RETURN(const int dropped, FindDomain(model, options.domain));
  if (model.spec().domains.size() == 1) {
    return absl::FailedPreconditionError(
        absl::StrCat(options.model.string(), ": ", Quoted(options.domain), " is its last domain; a model needs one"));
  }
  DropResult result;
  result.file = model.lock()->domains.at(options.domain).file;
  result.bytes = model.lock()->files.at(result.file).size;
  for (const DomainSpec& domain : model.spec().domains) {
    if (domain.name != options.domain) result.domains.push_back(domain.name);
  }
  const bool default_stays = model.spec().default_domain != dropped;
  result.default_domain = default_stays ? model.spec().domains[static_cast<size_t>(model.spec().default_domain)].name
                                        : result.domains.front();
  SCION_ASSIGN_OR_RETURN(const std::string config, CutConfig(model.config(), result.domains));
  RetireDomain(model, options.domain, transaction.lock());
  SCION_RETURN_IF_ERROR(transaction.Commit(config, ModelTransaction::Order::kLockFirst,
                                           {.verb = "drop",
                                            .time = FormatUtc(options.now),
                                            .version = options.version,
                                            .source = ModelName(options.model),
                                            .source_lock_sha256 = LockSha256(*model.lock()),
                                            .domains = {options.domain}}));
  return result;
}

}  // namespace scion

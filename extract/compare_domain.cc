#include "extract/compare_domain.h"

#include <optional>
#include <utility>
#include <vector>

#include "engine/base/status.h"
#include "extract/compare_logits.h"
#include "extract/cover_prompts.h"

namespace scion {
namespace {

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

}  // namespace

absl::Status CompareDomain(const DomainUnderTest& source, const std::string& source_name, const Checkpoint& cut_files,
                           const DomainUnderTest& tested, std::FILE* log, VerifyReport& report) {
  Model& whole = *source.model;
  Model& cut = *tested.model;
  const std::string& name = tested.domain;
  const int whole_domain = *whole.spec().FindDomain(source.domain);
  const int cut_domain = *cut.spec().FindDomain(name);
  const DomainSpec& domain = cut.spec().domains[static_cast<size_t>(cut_domain)];
  SCION_ASSIGN_OR_RETURN(const std::vector<RouteTable> tables, ReadRouteTables(cut_files, domain));
  const auto prompts = MakeCoverPrompts(tables, cut.spec().vocab_size, cut.spec().max_position_embeddings);
  int64_t positions = 0;
  for (const auto& prompt : prompts) positions += static_cast<int64_t>(prompt.size());
  report.prompts += static_cast<int>(prompts.size());
  report.positions += positions;
  Progress progress(log, "comparing logits of " + name, static_cast<uint64_t>(2 * positions), Progress::Unit::kTokens);
  SCION_ASSIGN_OR_RETURN(const std::optional<LogitDifference> difference,
                         CompareLogits({&whole, whole_domain}, {&cut, cut_domain}, prompts, progress));
  if (difference.has_value()) {
    report.differences.push_back(
        {"", "",
         absl::StrCat("domain '", name, "', prompt ", difference->prompt, ", position ", difference->position,
                      ": the logit of token ", difference->token, " is ", difference->whole, " in ", source_name,
                      " and ", difference->cut, " in the cut")});
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

}  // namespace scion

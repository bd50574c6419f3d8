#include "extract/verify_fold.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "engine/base/status.h"
#include "engine/base/thread_pool.h"
#include "engine/model/model.h"
#include "engine/text/tokenizer.h"
#include "extract/cover_prompts.h"
#include "extract/inspect.h"
#include "extract/layerwise_forward.h"
#include "extract/lock_builder.h"

namespace scion {
namespace {

// The domain that the directory was folded from. Signing and quantising leave a fold a fold.
absl::StatusOr<std::string> FoldedDomain(const std::filesystem::path& directory) {
  SCION_ASSIGN_OR_RETURN(const std::optional<LockFile> lock, ReadLock(directory));
  if (lock.has_value()) {
    const auto made = std::ranges::find_if(lock->lineage.rbegin(), lock->lineage.rend(), [](const auto& entry) {
      return entry.verb != "lock" && entry.verb != "quantize";
    });
    if (made != lock->lineage.rend() && made->verb == "densify" && made->domains.size() == 1) return made->domains[0];
  }
  return absl::FailedPreconditionError(absl::StrCat(directory.string(), " is not a fold"));
}

// Prompts that visit every expert, through both.
absl::Status CompareBits(const Checkpoint& source, ModelUnderTest whole, ModelUnderTest fold, std::FILE* log,
                         MatrixOps& ops, VerifyFoldReport& report) {
  const LayerwiseForward reader(source, whole.domain, ops);
  std::vector<RouteTable> tables;
  for (const int layer : source.spec().SparseLayers()) {
    SCION_ASSIGN_OR_RETURN(const LayerRoute route, reader.ReadRoute(layer));
    RouteTable table{.layer = layer, .num_experts = report.num_experts, .expert_of_token = {}};
    for (const auto& slot : route.experts) {
      table.expert_of_token.insert(table.expert_of_token.end(), slot.begin(), slot.end());
    }
    tables.push_back(std::move(table));
  }
  const auto prompts = MakeCoverPrompts(tables, source.spec().vocab_size, source.spec().max_position_embeddings);
  for (const auto& prompt : prompts) report.positions += static_cast<int64_t>(prompt.size());
  Progress progress(log, "comparing logits", static_cast<uint64_t>(2 * report.positions), Progress::Unit::kTokens);
  SCION_ASSIGN_OR_RETURN(const std::optional<LogitDifference> difference,
                         CompareLogits(whole, fold, prompts, progress));
  if (difference.has_value()) {
    report.differences.push_back({"", "",
                                  absl::StrCat("prompt ", difference->prompt, ", position ", difference->position,
                                               ": the logit of token ", difference->token, " is ", difference->whole,
                                               " in the model and ", difference->cut, " in the fold")});
  }
  return absl::OkStatus();
}

absl::Status CompareText(const VerifyFoldOptions& options, const ModelSpec& spec, ModelUnderTest whole,
                         ModelUnderTest fold, VerifyFoldReport& report) {
  SCION_ASSIGN_OR_RETURN(const std::unique_ptr<Tokenizer> tokenizer, Tokenizer::Load(options.fold));
  SCION_ASSIGN_OR_RETURN(const std::vector<TokenWindow> windows,
                         ReadTokenWindows(options.eval, *tokenizer, EvaluationLimits(spec)));
  Progress progress(options.log, "comparing on the text", static_cast<uint64_t>(CountTokens(windows)),
                    Progress::Unit::kTokens);
  SCION_ASSIGN_OR_RETURN(report.comparison, CompareTexts(whole, fold, windows, progress));
  if (!(report.comparison->kl_divergence <= options.max_divergence)) {
    report.differences.push_back(
        {"", "",
         absl::StrCat("a divergence of ", report.comparison->kl_divergence, " nats per token, more than the ",
                      options.max_divergence, " that are tolerated")});
  }
  return absl::OkStatus();
}

}  // namespace

bool IsFold(const std::filesystem::path& directory) { return FoldedDomain(directory).ok(); }

absl::StatusOr<VerifyFoldReport> VerifyFold(const VerifyFoldOptions& options) {
  VerifyFoldReport report;
  SCION_ASSIGN_OR_RETURN(report.domain, FoldedDomain(options.fold));
  const absl::StatusOr<std::unique_ptr<Checkpoint>> source = Checkpoint::Open(options.model);
  if (!source.ok()) return Annotate(source.status(), "the source, " + options.model.string());
  const ModelSpec& spec = (*source)->spec();
  const std::optional<int> domain = spec.FindDomain(report.domain);
  if (!domain.has_value()) {
    return absl::NotFoundError(absl::StrCat("no domain ", Quoted(report.domain), " in ", options.model.string()));
  }
  report.num_experts = spec.domains[static_cast<size_t>(*domain)].num_experts;
  if (report.num_experts > 1 && options.eval.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("a fold of ", report.num_experts, " experts per layer is measured on a text: --eval names one"));
  }
  SCION_ASSIGN_OR_RETURN(report.differences, CheckHashes(options.fold, options.log));
  if (!report.differences.empty()) return report;
  const absl::StatusOr<std::unique_ptr<Checkpoint>> fold = Checkpoint::Open(options.fold);
  if (!fold.ok()) return Annotate(fold.status(), options.fold.string());
  if ((*fold)->spec().vocab_size != spec.vocab_size) {
    report.differences.push_back({"config.json", "", "'vocab_size' is not the source's"});
    return report;
  }
  ThreadPool pool(options.num_threads);
  MatrixOps ops(kernels::GetKernels(options.tier), pool);
  ModelOptions model_options;
  model_options.tier = options.tier;
  SCION_ASSIGN_OR_RETURN(const std::unique_ptr<Model> whole_model, Model::Load(**source, model_options, pool));
  SCION_ASSIGN_OR_RETURN(const std::unique_ptr<Model> fold_model, Model::Load(**fold, model_options, pool));
  const ModelUnderTest whole_under_test{whole_model.get(), *domain}, fold_under_test{fold_model.get(), 0};
  if (report.num_experts == 1) {
    SCION_RETURN_IF_ERROR(CompareBits(**source, whole_under_test, fold_under_test, options.log, ops, report));
  }
  if (!options.eval.empty()) {
    SCION_RETURN_IF_ERROR(CompareText(options, spec, whole_under_test, fold_under_test, report));
  }
  return report;
}

Json ToJson(const TextComparison& comparison) {
  return {{"scored_tokens", comparison.scored_tokens}, {"source_perplexity", comparison.source_perplexity},
          {"perplexity", comparison.perplexity},       {"perplexity_ratio", comparison.ratio()},
          {"kl_divergence", comparison.kl_divergence}, {"top1_agreement", comparison.top1_agreement}};
}

Json ToJson(const VerifyFoldOptions& options, const VerifyFoldReport& report) {
  Json json = {{"result", report.differences.empty() ? "as stated" : "differs"},
               {"differences", Json::array()},
               {"model", options.model.string()},
               {"fold", options.fold.string()},
               {"domain", report.domain},
               {"experts", report.num_experts},
               {"tier", kernels::TierName(options.tier)},
               {"positions", report.positions},
               {"max_divergence", options.max_divergence}};
  for (const Difference& d : report.differences) {
    json["differences"].push_back({{"file", d.file}, {"tensor", d.tensor}, {"what", d.what}});
  }
  if (report.comparison.has_value()) json["text"] = ToJson(*report.comparison);
  return json;
}

}  // namespace scion

#include "extract/report.h"

#include <algorithm>
#include <array>
#include <memory>
#include <span>
#include <string_view>
#include <utility>

#include "engine/base/status.h"
#include "engine/base/thread_pool.h"
#include "engine/model/checkpoint.h"
#include "engine/model/model.h"
#include "engine/text/tokenizer.h"
#include "extract/inspect.h"
#include "extract/lineage_log.h"
#include "extract/lock_builder.h"
#include "extract/new_model.h"
#include "extract/report_page.h"
#include "extract/report_plots.h"
#include "extract/staged_file.h"

namespace scion {
namespace {

std::vector<std::string> DomainNames(const ModelSpec& spec) {
  std::vector<std::string> names;
  for (const DomainSpec& domain : spec.domains) names.push_back(domain.name);
  return names;
}

absl::StatusOr<ExpertSizes> SizesOfExperts(const Checkpoint& checkpoint, const DomainSpec& domain) {
  ExpertSizes sizes{.domain = domain.name};
  for (const int layer : checkpoint.spec().SparseLayers()) {
    for (int e = 0; e < domain.num_experts; ++e) {
      uint64_t bytes = 0;
      for (const std::string_view projection : {"gate", "up", "down"}) {
        SCION_ASSIGN_OR_RETURN(const TensorInfo* tensor,
                               checkpoint.Find(ExpertTensorName(layer, domain.name, e, projection)));
        bytes += tensor->bytes;
      }
      sizes.smallest_bytes = sizes.num_experts == 0 ? bytes : std::min(sizes.smallest_bytes, bytes);
      sizes.largest_bytes = std::max(sizes.largest_bytes, bytes);
      ++sizes.num_experts;
    }
    for (const std::string& name : {RouteTensorName(layer, domain.name), RouteWeightTensorName(layer, domain.name)}) {
      if (const auto tensor = checkpoint.Find(name); tensor.ok()) sizes.route_bytes += (*tensor)->bytes;
    }
  }
  return sizes;
}

absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizer(const Checkpoint& checkpoint) {
  absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer = !checkpoint.is_gguf() ? Tokenizer::Load(checkpoint.directory())
                                                         : checkpoint.vocabulary() != nullptr
                                                             ? Tokenizer::FromGguf(*checkpoint.vocabulary())
                                                             : absl::FailedPreconditionError("the file has none");
  if (!tokenizer.ok()) return Annotate(tokenizer.status(), "a text needs the model's tokenizer");
  return tokenizer;
}

// The matrix, and the balance of each domain that a text is named for.
absl::Status MeasureTexts(const Checkpoint& checkpoint, const ReportOptions& options,
                          std::vector<std::optional<RouteBalance>>& balance, ReportFigures& figures) {
  const ModelSpec& spec = checkpoint.spec();
  DomainMatrix& matrix = figures.matrix.emplace();
  matrix.domains = DomainNames(spec);
  SCION_ASSIGN_OR_RETURN(const std::vector<EvaluationText> texts, FindEvaluationTexts(options.text, matrix.domains));
  SCION_ASSIGN_OR_RETURN(const std::unique_ptr<Tokenizer> tokenizer, LoadTokenizer(checkpoint));
  const TextLimits limits = EvaluationLimits(spec);
  ThreadPool pool(options.num_threads);
  ModelOptions model_options;
  model_options.tier = options.tier;
  SCION_ASSIGN_OR_RETURN(const std::unique_ptr<Model> model, Model::Load(checkpoint, model_options, pool));
  for (const EvaluationText& text : texts) {
    SCION_ASSIGN_OR_RETURN(const std::vector<TokenWindow> windows, ReadTokenWindows(text.file, *tokenizer, limits));
    if (windows.empty()) {
      return absl::InvalidArgumentError(absl::StrCat(text.file.string(), ": no text of two tokens at least"));
    }
    Progress progress(options.log, absl::StrCat("measuring ", text.name),
                      static_cast<uint64_t>(CountTokens(windows)) * matrix.domains.size(), Progress::Unit::kTokens);
    SCION_ASSIGN_OR_RETURN(DomainMatrix::Row row, MeasureRow(*model, text.name, windows, progress));
    matrix.rows.push_back(std::move(row));
    const std::optional<int> domain = spec.FindDomain(text.name);
    if (!domain.has_value() || !spec.HasDomainFiles()) continue;
    SCION_ASSIGN_OR_RETURN(balance[static_cast<size_t>(*domain)],
                           MeasureRouteBalance(checkpoint, *domain, CountWindowTokens(windows, spec.vocab_size)));
  }
  matrix.is_measured = true;
  matrix.source = absl::StrCat("this engine (tier ", ToAbsl(kernels::TierName(options.tier)), "), windows of ",
                               limits.window_tokens, " tokens, of a text at most ",
                               CountText(static_cast<uint64_t>(limits.max_tokens)), " tokens");
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ReportFigures> MakeReport(const ReportOptions& options) {
  const absl::StatusOr<std::unique_ptr<Checkpoint>> opened = Checkpoint::Open(options.model);
  if (!opened.ok()) return Annotate(opened.status(), options.model.string());
  const Checkpoint& checkpoint = **opened;
  const ModelSpec& spec = checkpoint.spec();
  ReportFigures figures{
      .name = ModelName(options.model),
      .model = Describe(checkpoint),
      .generations = checkpoint.lock() == nullptr ? Json::array() : GenerationsJson(*checkpoint.lock()),
      .version = options.version,
      .time = FormatUtc(options.now)};
  figures.is_gate_routed =
      std::ranges::any_of(spec.layers, [](const LayerSpec& l) { return l.ffn.router == RouterKind::kGate; });
  SCION_ASSIGN_OR_RETURN(figures.folds, ReadFoldReports(options.folds, DomainNames(spec)));
  if (!options.matrix.empty()) {
    SCION_ASSIGN_OR_RETURN(figures.matrix, ReadDomainMatrix(options.matrix, DomainNames(spec)));
  }
  std::vector<std::optional<RouteBalance>> balance(spec.domains.size());
  if (!options.text.empty()) SCION_RETURN_IF_ERROR(MeasureTexts(checkpoint, options, balance, figures));
  if (!spec.HasDomainFiles()) return figures;
  for (size_t d = 0; d < spec.domains.size(); ++d) {
    SCION_ASSIGN_OR_RETURN(ExpertSizes sizes, SizesOfExperts(checkpoint, spec.domains[d]));
    figures.experts.push_back(std::move(sizes));
    if (!balance[d].has_value()) {
      SCION_ASSIGN_OR_RETURN(balance[d], MeasureRouteBalance(checkpoint, static_cast<int>(d), {}));
    }
    figures.balance.push_back(*std::move(balance[d]));
  }
  return figures;
}

absl::StatusOr<ReportFigures> WriteReport(const ReportOptions& options) {
  SCION_RETURN_IF_ERROR(RefuseOutInsideModel(options.model, options.out));
  SCION_ASSIGN_OR_RETURN(StagedFile file, StagedFile::Create(options.out));
  SCION_ASSIGN_OR_RETURN(ReportFigures figures, MakeReport(options));
  const std::string page = ReportPage(figures);
  SCION_RETURN_IF_ERROR(file.Append(std::as_bytes(std::span(page))));
  SCION_RETURN_IF_ERROR(file.Commit());
  return figures;
}

Json ToJson(const ReportFigures& figures) {
  Json json = {{"name", figures.name},  {"model", figures.model},   {"generations", figures.generations},
               {"matrix", nullptr},     {"experts", Json::array()}, {"balance", Json::array()},
               {"folds", Json::array()}};
  if (figures.matrix.has_value()) json["matrix"] = ToJson(*figures.matrix);
  for (const ExpertSizes& e : figures.experts) {
    json["experts"].push_back({{"domain", e.domain},
                               {"experts", e.num_experts},
                               {"smallest_bytes", e.smallest_bytes},
                               {"largest_bytes", e.largest_bytes},
                               {"route_bytes", e.route_bytes}});
  }
  for (const RouteBalance& balance : figures.balance) json["balance"].push_back(ToJson(balance));
  for (const FoldReport& fold : figures.folds) json["folds"].push_back(ToJson(fold));
  return json;
}

}  // namespace scion

#include "extract/densify.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <ctime>
#include <memory>
#include <utility>

#include "engine/base/status.h"
#include "engine/base/thread_pool.h"
#include "engine/model/model.h"
#include "extract/dense_layout.h"
#include "extract/dense_writer.h"
#include "extract/digest_file.h"
#include "extract/fold_layers.h"
#include "extract/lock_builder.h"
#include "extract/new_model.h"

namespace scion {
namespace {

constexpr std::array<std::pair<FoldMethod, std::string_view>, 3> kMethods = {
    {{FoldMethod::kAverage, "average"}, {FoldMethod::kWeighted, "weighted"}, {FoldMethod::kLsq, "lsq"}}};
constexpr int64_t kMinCalibrationTokens = 2048;
constexpr int64_t kMaxHeldOutTokens = 32768;
constexpr std::string_view kWeightsFile = "model.safetensors";

// Windows to fit to and windows to measure on.
struct Texts {
  std::vector<TokenWindow> calibration, held_out;
};

absl::StatusOr<Texts> ReadTexts(const DensifyOptions& options, const ModelSpec& spec) {
  Texts texts;
  if (options.calibration.empty() && options.eval.empty()) return texts;
  SCION_ASSIGN_OR_RETURN(const std::unique_ptr<Tokenizer> tokenizer, Tokenizer::Load(options.model));
  TextLimits limits = EvaluationLimits(spec);
  if (!options.eval.empty()) {
    SCION_ASSIGN_OR_RETURN(texts.held_out, ReadTokenWindows(options.eval, *tokenizer, limits));
    if (texts.held_out.empty()) {
      return absl::InvalidArgumentError(absl::StrCat(options.eval.string(), ": no text of two tokens at least"));
    }
  }
  if (options.calibration.empty()) return texts;
  limits.max_tokens = MaxCalibrationTokens(spec);
  SCION_ASSIGN_OR_RETURN(texts.calibration, ReadTokenWindows(options.calibration, *tokenizer, limits));
  const int64_t tokens = CountTokens(texts.calibration);
  if (tokens < kMinCalibrationTokens) {
    return absl::InvalidArgumentError(absl::StrCat(options.calibration.string(), ": ", tokens,
                                                   " tokens are too few to calibrate on; ", kMinCalibrationTokens,
                                                   " at least"));
  }
  if (!options.eval.empty()) return texts;
  // The end of the text: its documents are not those that the fold is fitted to.
  int64_t wanted = std::min(tokens / 10, kMaxHeldOutTokens);
  while (wanted > 0) {
    wanted -= static_cast<int64_t>(texts.calibration.back().size());
    texts.held_out.push_back(std::move(texts.calibration.back()));
    texts.calibration.pop_back();
  }
  return texts;
}

absl::Status CheckWidth(int width, int num_experts) {
  if (width >= 1 && width <= num_experts) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("a width of ", width, " experts, and the domain has ", num_experts,
                                                 " in a layer: 1 to ", num_experts, " are possible"));
}

absl::StatusOr<FoldMethod> ChooseMethod(const DensifyOptions& options) {
  const FoldMethod method =
      options.method.value_or(options.calibration.empty() ? FoldMethod::kWeighted : FoldMethod::kLsq);
  if (method == FoldMethod::kLsq && options.calibration.empty()) {
    return absl::InvalidArgumentError("method lsq needs a calibration text");
  }
  return method;
}

int DefaultEpochs(int64_t tokens) {
  constexpr int64_t kTokens = 400'000;
  return tokens == 0 ? 0 : static_cast<int>(std::max<int64_t>(1, (kTokens + tokens / 2) / tokens));
}

absl::StatusOr<TextComparison> Compare(const DensifyOptions& options, const Checkpoint& source, int domain,
                                       const std::vector<TokenWindow>& windows, ThreadPool& pool) {
  const absl::StatusOr<std::unique_ptr<Checkpoint>> fold_files = Checkpoint::Open(options.out);
  if (!fold_files.ok()) return Annotate(fold_files.status(), options.out.string());
  ModelOptions model_options;
  model_options.tier = options.tier;
  SCION_ASSIGN_OR_RETURN(const std::unique_ptr<Model> whole, Model::Load(source, model_options, pool));
  SCION_ASSIGN_OR_RETURN(const std::unique_ptr<Model> fold, Model::Load(**fold_files, model_options, pool));
  Progress progress(options.log, "comparing with the source", static_cast<uint64_t>(CountTokens(windows)),
                    Progress::Unit::kTokens);
  return CompareTexts({whole.get(), domain}, {fold.get(), 0}, windows, progress);
}

}  // namespace

std::string_view FoldMethodName(FoldMethod method) {
  return std::ranges::find(kMethods, method, &decltype(kMethods)::value_type::first)->second;
}

std::optional<FoldMethod> ParseFoldMethod(std::string_view name) {
  const auto found = std::ranges::find(kMethods, name, &decltype(kMethods)::value_type::second);
  if (found == kMethods.end()) return std::nullopt;
  return found->first;
}

bool WantsRouteChannels(const ModelSpec& spec, int num_experts, int width, FoldMethod method) {
  const int64_t channels = int64_t{num_experts} * static_cast<int64_t>(spec.SparseLayers().size());
  return num_experts > 1 && (width > 1 || method == FoldMethod::kLsq) && channels <= spec.hidden_size / 8;
}

absl::StatusOr<DensifyResult> Densify(const DensifyOptions& options) {
  const absl::StatusOr<std::unique_ptr<Checkpoint>> opened = Checkpoint::Open(options.model);
  if (!opened.ok()) return Annotate(opened.status(), options.model.string());
  const Checkpoint& checkpoint = **opened;
  const ModelSpec& spec = checkpoint.spec();
  SCION_RETURN_IF_ERROR(CheckFoldable(spec));
  const std::optional<int> domain = spec.FindDomain(options.domain);
  if (!domain.has_value()) {
    std::string known;
    for (const DomainSpec& d : spec.domains) absl::StrAppend(&known, known.empty() ? "" : ", ", d.name);
    return absl::NotFoundError(absl::StrCat("no domain ", Quoted(options.domain), "; the model has: ", known));
  }
  DensifyResult result;
  result.num_experts = spec.domains[static_cast<size_t>(*domain)].num_experts;
  SCION_RETURN_IF_ERROR(CheckWidth(options.width, result.num_experts));
  SCION_ASSIGN_OR_RETURN(result.method, ChooseMethod(options));
  result.has_channels =
      options.route_channels.value_or(WantsRouteChannels(spec, result.num_experts, options.width, result.method)) &&
      result.num_experts > 1;
  const DenseLayout layout = MakeDenseLayout(spec, result.num_experts, options.width, result.has_channels);
  result.hidden_size = layout.hidden_size;
  result.intermediate_size = layout.intermediate_size;
  const int slots = spec.layers[static_cast<size_t>(spec.SparseLayers()[0])].ffn.num_experts_per_tok;
  result.is_exact =
      slots == 1 && (result.num_experts == 1 || (result.has_channels && options.width == result.num_experts));
  SCION_ASSIGN_OR_RETURN(Texts texts, ReadTexts(options, spec));
  result.calibration_tokens = CountTokens(texts.calibration);
  SCION_ASSIGN_OR_RETURN(const std::string config, ReadTextInside(options.model, "config.json"));
  SCION_ASSIGN_OR_RETURN(const std::string dense_config, DenseConfig(config, spec, layout));

  SCION_ASSIGN_OR_RETURN(NewModel fold, NewModel::Create(checkpoint, options.out));
  const auto is_used = [&](const CheckpointFile& file) { return !file.domain.has_value() || *file.domain == *domain; };
  for (const CheckpointFile& file : checkpoint.files()) {
    if (is_used(file)) result.model_bytes += file.file.size();
  }
  if (checkpoint.lock() != nullptr) {
    Progress progress(options.log, "hashing the source", result.model_bytes, Progress::Unit::kBytes);
    for (const CheckpointFile& file : checkpoint.files()) {
      if (!is_used(file)) continue;
      SCION_ASSIGN_OR_RETURN(const FileDigest digest, DigestFile(file.file, {}, nullptr, progress));
      SCION_RETURN_IF_ERROR(fold.CheckDigest(file.path, digest));
    }
  }
  const auto begin = std::chrono::steady_clock::now();
  const std::clock_t begin_cpu = std::clock();
  ThreadPool pool(options.num_threads);
  MatrixOps ops(kernels::GetKernels(options.tier), pool);
  FoldOptions fold_options{.domain = *domain,
                           .width = options.width,
                           .weighted = result.method != FoldMethod::kAverage,
                           .fit = result.method == FoldMethod::kLsq,
                           .epochs = options.epochs.value_or(DefaultEpochs(result.calibration_tokens)),
                           .windows = std::move(texts.calibration),
                           .log = options.log};
  SCION_ASSIGN_OR_RETURN(const auto folded, FoldLayers(checkpoint, layout, fold_options, ops));
  {
    SCION_ASSIGN_OR_RETURN(NewFile out, fold.CreateDataFile(std::string(kWeightsFile)));
    SCION_ASSIGN_OR_RETURN(const DenseFile file, WriteDense(checkpoint, layout, folded, std::move(out), options.log));
    fold.AddTrunkFile(std::string(kWeightsFile), file.digest, file.tensor_bytes);
    Progress progress(nullptr, "copying", 0, Progress::Unit::kBytes);
    SCION_RETURN_IF_ERROR(fold.CopyCompanions(progress));
    result.bytes = file.digest.bytes;
  }
  SCION_RETURN_IF_ERROR(fold.Commit(
      dense_config, {.verb = "densify", .version = options.version, .now = options.now, .domains = {options.domain}}));
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  result.cpu_seconds = static_cast<double>(std::clock() - begin_cpu) / CLOCKS_PER_SEC;
  if (!texts.held_out.empty()) {
    SCION_ASSIGN_OR_RETURN(result.comparison, Compare(options, checkpoint, *domain, texts.held_out, pool));
  }
  return result;
}

}  // namespace scion

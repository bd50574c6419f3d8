#include "extract/plan.h"

#include <algorithm>
#include <memory>
#include <string_view>
#include <utility>

#include "absl/strings/str_join.h"
#include "engine/base/status.h"
#include "engine/base/thread_pool.h"
#include "engine/model/checkpoint.h"
#include "engine/model/model.h"
#include "engine/model/weights.h"
#include "engine/text/tokenizer.h"
#include "extract/companion_files.h"
#include "extract/cut_config.h"
#include "extract/dense_layout.h"
#include "extract/densify.h"
#include "extract/lock_builder.h"
#include "extract/quantize.h"
#include "extract/safetensors_writer.h"

namespace scion {
namespace {

namespace fs = std::filesystem;

constexpr int kMaxStepRows = 512;  // the server's own, and ModelOptions'

class Planner {
 public:
  Planner(const Checkpoint& checkpoint, int domain, const PlanOptions& options)
      : checkpoint_(checkpoint),
        spec_(checkpoint.spec()),
        domain_(domain),
        kernels_(kernels::GetKernels(options.tier)) {}

  absl::StatusOr<CutPlans> Plan() {
    CutPlans plans;
    plans.context = spec_.max_position_embeddings;
    for (const CheckpointFile& file : checkpoint_.files()) plans.model_bytes += file.file.size();
    SCION_RETURN_IF_ERROR(AddSlices(plans));
    SCION_RETURN_IF_ERROR(AddFolds(plans));
    return plans;
  }

 private:
  bool IsKept(const CheckpointFile& file) const { return !file.domain.has_value() || file.domain == domain_; }
  const DomainSpec& domain() const { return spec_.domains[static_cast<size_t>(domain_)]; }

  // Tensors of the trunk's and the domain's files, in each file's order.
  std::vector<std::pair<const CheckpointFile*, std::vector<NewTensor>>> KeptFiles(std::optional<DType> type) const {
    std::vector<std::pair<const CheckpointFile*, std::vector<NewTensor>>> files;
    for (size_t i = 0; i < checkpoint_.files().size(); ++i) {
      const CheckpointFile& file = checkpoint_.files()[i];
      if (!IsKept(file)) continue;
      const auto tensors = TensorsOf(checkpoint_, static_cast<int>(i));
      std::vector<NewTensor> kept;
      if (type.has_value()) {
        kept = QuantizedTensors(spec_, tensors, *type);
      } else {
        for (const TensorInfo& tensor : tensors) kept.push_back({tensor.name, tensor.dtype, tensor.shape});
      }
      files.emplace_back(&file, std::move(kept));
    }
    return files;
  }

  // The small files: companions as they are; index and lock name every tensor.
  absl::StatusOr<uint64_t> SmallFileBytes(uint64_t tensors, uint64_t name_bytes, bool is_quantized) const {
    uint64_t bytes = 0;
    SCION_ASSIGN_OR_RETURN(const std::vector<std::string> companions, ListCompanionFiles(checkpoint_.directory()));
    for (const std::string& name : companions) {
      std::error_code error;
      const uintmax_t size = fs::file_size(checkpoint_.directory() / name, error);
      if (!error) bytes += size;
    }
    SCION_ASSIGN_OR_RETURN(const std::string cut,
                           CutConfig(checkpoint_.config(), std::vector<std::string>{domain().name}));
    constexpr uint64_t kHashLine = 75, kIndexLine = 32, kFrames = 2500, kQuantization = 300;
    return bytes + cut.size() + kFrames + (is_quantized ? kQuantization : 0) + tensors * (kHashLine + kIndexLine) +
           2 * name_bytes;
  }

  absl::StatusOr<uint64_t> SmallFileBytes(const std::vector<NewTensor>& tensors, bool is_quantized) const {
    uint64_t name_bytes = 0;
    for (const NewTensor& tensor : tensors) name_bytes += tensor.name.size();
    return SmallFileBytes(tensors.size(), name_bytes, is_quantized);
  }

  absl::Status AddSlices(CutPlans& plans) {
    const std::string cut =
        absl::StrCat("moe-extract slice ", checkpoint_.directory().string(), " --domain ", domain().name);
    SCION_RETURN_IF_ERROR(AddSlice("slice", cut, std::nullopt, WeightMode::kAsIs, plans));
    if (spec_.quantization.has_value()) {
      plans.impossible.push_back(absl::StrCat("8 or 4 bits: the model is quantised already, to ",
                                              ToAbsl(DTypeName(spec_.quantization->type))));
      return absl::OkStatus();
    }
    const std::string then = absl::StrCat(cut, ", then moe-extract quantize --type ");
    SCION_RETURN_IF_ERROR(AddSlice("slice, q8_0", then + "q8_0", DType::kQ8_0, WeightMode::kQ8, plans));
    return AddSlice("slice, q4_0", then + "q4_0", DType::kQ4_0, WeightMode::kQ4, plans);
  }

  absl::Status AddSlice(std::string name, std::string command, std::optional<DType> type, WeightMode mode,
                        CutPlans& plans) {
    CutPlan plan{.name = std::move(name), .command = std::move(command)};
    std::vector<NewTensor> all;
    for (auto& [file, tensors] : KeptFiles(type)) {
      plan.disk_bytes += type.has_value() ? SafetensorsFileBytes(tensors) : file->file.size();
      all.insert(all.end(), tensors.begin(), tensors.end());
    }
    SCION_ASSIGN_OR_RETURN(const uint64_t small, SmallFileBytes(all, type.has_value()));
    plan.disk_bytes += small;
    SCION_ASSIGN_OR_RETURN(const WeightSizes sizes, PlanWeightSizes(checkpoint_, mode, kernels_));
    // Rows of the embedding are looked up as they are on the disk.
    uint64_t embedding = sizes.embedding;
    for (const NewTensor& tensor : all) {
      if (tensor.name == "model.embed_tokens.weight") embedding = tensor.bytes();
    }
    const uint64_t experts = sizes.domains[static_cast<size_t>(domain_)];
    plan.weight_bytes = sizes.trunk - sizes.embedding + embedding + experts;
    plan.bytes_per_token = sizes.trunk - sizes.embedding +
                           experts * static_cast<uint64_t>(Visits()) / static_cast<uint64_t>(domain().num_experts);
    plan.flops_per_token = Flops(spec_.hidden_size, std::nullopt);
    FillRuntime(spec_.hidden_size, Width(), plan);
    plans.cuts.push_back(std::move(plan));
    return absl::OkStatus();
  }

  // Experts that a token visits in a sparse layer.
  int Visits() const { return spec_.layers[static_cast<size_t>(spec_.SparseLayers()[0])].ffn.num_experts_per_tok; }

  // Of the widest FFN's hidden units, for all visits of a token.
  uint64_t Width() const {
    uint64_t width = 0;
    for (const LayerSpec& layer : spec_.layers) {
      const int visits = layer.ffn.router == RouterKind::kNone ? 1 : layer.ffn.num_experts_per_tok;
      width = std::max(width, static_cast<uint64_t>(layer.ffn.intermediate_size) * static_cast<uint64_t>(visits));
    }
    return width;
  }

  // dense_width: of every layer's FFN in a fold.
  uint64_t Flops(int hidden_size, std::optional<int> dense_width) const {
    const uint64_t hidden = static_cast<uint64_t>(hidden_size);
    uint64_t weights = static_cast<uint64_t>(spec_.vocab_size) * hidden;
    for (const LayerSpec& layer : spec_.layers) {
      const AttentionSpec& a = layer.attention;
      weights += hidden * static_cast<uint64_t>(2 * (a.num_heads + a.num_kv_heads) * a.head_dim);
      const bool is_sparse = layer.ffn.router != RouterKind::kNone;
      const int width = layer.ffn.intermediate_size * (is_sparse ? layer.ffn.num_experts_per_tok : 1);
      weights += 3 * hidden * static_cast<uint64_t>(dense_width.value_or(width));
    }
    return 2 * weights;
  }

  void FillRuntime(int hidden_size, uint64_t ffn_width, CutPlan& plan) const {
    uint64_t qkv = 0, attention = 0;
    for (const LayerSpec& layer : spec_.layers) {
      const AttentionSpec& a = layer.attention;
      plan.kv_bytes_per_token +=
          2 * static_cast<uint64_t>(a.num_kv_heads * a.head_dim) * kernels::KvTypeBytes(kernels::KvType::kBF16);
      qkv = std::max(qkv, static_cast<uint64_t>((a.num_heads + 2 * a.num_kv_heads) * a.head_dim));
      attention = std::max(attention, static_cast<uint64_t>(a.num_heads * a.head_dim));
    }
    const uint64_t hidden = static_cast<uint64_t>(hidden_size);
    const uint64_t widest = std::max({hidden, attention, ffn_width});
    plan.step_bytes = kMaxStepRows * sizeof(float) * (2 * hidden + qkv + attention + ffn_width + widest);
  }

  absl::Status AddFolds(CutPlans& plans) {
    if (absl::Status status = CheckFoldable(spec_); !status.ok()) {
      plans.impossible.push_back(absl::StrCat("a fold: ", status.message()));
      return absl::OkStatus();
    }
    for (const int width : {1, 2, 4}) {
      if (width > domain().num_experts) break;
      // As densify folds where no calibration text is given.
      const bool has_channels = WantsRouteChannels(spec_, domain().num_experts, width, FoldMethod::kWeighted);
      const DenseLayout layout = MakeDenseLayout(spec_, domain().num_experts, width, has_channels);
      CutPlan plan{.name = absl::StrCat("fold, width ", width),
                   .command = absl::StrCat("moe-extract densify ", checkpoint_.directory().string(), " --domain ",
                                           domain().name, " --width ", width)};
      SCION_ASSIGN_OR_RETURN(const std::vector<NewTensor> tensors, FoldedTensors(layout));
      SCION_ASSIGN_OR_RETURN(const uint64_t small, SmallFileBytes(tensors, false));
      plan.disk_bytes = SafetensorsFileBytes(tensors) + small;
      plan.weight_bytes = PackedTensorBytes(tensors);
      plan.bytes_per_token = plan.weight_bytes;
      for (const NewTensor& tensor : tensors) {
        if (tensor.name == "model.embed_tokens.weight") plan.weight_bytes += tensor.bytes();
      }
      plan.flops_per_token = Flops(layout.hidden_size, layout.intermediate_size);
      FillRuntime(layout.hidden_size, static_cast<uint64_t>(layout.intermediate_size), plan);
      plans.cuts.push_back(std::move(plan));
    }
    return absl::OkStatus();
  }

  // The fold's tensors: the trunk's, FFNs padded to one width, and one FFN for each group of experts.
  absl::StatusOr<std::vector<NewTensor>> FoldedTensors(const DenseLayout& layout) const {
    std::vector<NewTensor> tensors;
    const int64_t width = layout.intermediate_size, hidden = layout.hidden_size;
    const auto ffn = [&](int layer, auto source_name) -> absl::Status {
      for (const char* projection : {"gate", "up", "down"}) {
        SCION_ASSIGN_OR_RETURN(const TensorInfo* source, checkpoint_.Find(source_name(projection)));
        std::vector<int64_t> shape = {width, hidden};
        if (projection == std::string_view("down")) std::swap(shape[0], shape[1]);
        tensors.push_back({TrunkTensorName(layer, absl::StrCat("mlp.", projection, "_proj.weight")), source->dtype,
                           std::move(shape)});
      }
      return absl::OkStatus();
    };
    for (const TensorInfo& tensor : checkpoint_.tensors()) {
      if (checkpoint_.FileOf(tensor).domain.has_value()) continue;
      if (tensor.shape.empty() || tensor.name.find(".mlp.") != std::string::npos) continue;
      NewTensor folded{tensor.name, tensor.dtype, tensor.shape};
      const bool is_output = tensor.shape.size() == 1 || tensor.name.ends_with("o_proj.weight");
      folded.shape[is_output ? 0 : 1] = hidden;
      if (tensor.shape.size() == 1 && layout.is_wider(spec_)) folded.dtype = DType::kF32;
      tensors.push_back(std::move(folded));
    }
    for (size_t l = 0; l < spec_.layers.size(); ++l) {
      const int layer = static_cast<int>(l);
      const bool is_sparse = spec_.layers[l].ffn.router != RouterKind::kNone;
      SCION_RETURN_IF_ERROR(ffn(layer, [&](const char* projection) {
        return is_sparse ? ExpertTensorName(layer, domain().name, 0, projection)
                         : TrunkTensorName(layer, absl::StrCat("mlp.", projection, "_proj.weight"));
      }));
    }
    return tensors;
  }

  // As the engine packs them; the embedding once more as the head where it is both.
  uint64_t PackedTensorBytes(const std::vector<NewTensor>& tensors) const {
    uint64_t bytes = 0;
    for (const NewTensor& tensor : tensors) {
      const bool is_head = spec_.tie_word_embeddings && tensor.name == "model.embed_tokens.weight";
      if (tensor.shape.size() != 2 || (tensor.name == "model.embed_tokens.weight" && !is_head)) continue;
      bytes += kernels::PackedBytes(*kernels::ExactWeightType(tensor.dtype), static_cast<int>(tensor.shape[0]),
                                    static_cast<int>(tensor.shape[1]));
    }
    return bytes;
  }

  const Checkpoint& checkpoint_;
  const ModelSpec& spec_;
  const int domain_;
  const kernels::KernelTable& kernels_;
};

// The slices on the text: the exact one, and each rounded one beside it.
absl::Status Measure(const Checkpoint& checkpoint, int domain, const PlanOptions& options, CutPlans& plans) {
  const absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer = Tokenizer::Load(checkpoint.directory());
  if (!tokenizer.ok()) return Annotate(tokenizer.status(), "a text needs the model's tokenizer");
  SCION_ASSIGN_OR_RETURN(const std::vector<TokenWindow> windows,
                         ReadTokenWindows(options.eval, **tokenizer,
                                          {.window_tokens = std::min(256, checkpoint.spec().max_position_embeddings),
                                           .max_tokens = options.max_eval_tokens,
                                           .vocab_size = checkpoint.spec().vocab_size}));
  ThreadPool pool(options.num_threads);
  ModelOptions model_options;
  model_options.tier = options.tier;
  SCION_ASSIGN_OR_RETURN(const std::unique_ptr<Model> whole, Model::Load(checkpoint, model_options, pool));
  for (CutPlan& cut : plans.cuts) {
    const bool is_exact = cut.name == "slice";
    if (!is_exact && !cut.name.starts_with("slice")) continue;
    Progress progress(options.log, "measuring " + cut.name, static_cast<uint64_t>(CountTokens(windows)),
                      Progress::Unit::kTokens);
    std::unique_ptr<Model> rounded;
    if (!is_exact) {
      model_options.weights = cut.name.ends_with("q8_0") ? WeightMode::kQ8 : WeightMode::kQ4;
      SCION_ASSIGN_OR_RETURN(rounded, Model::Load(checkpoint, model_options, pool));
    }
    SCION_ASSIGN_OR_RETURN(
        cut.quality,
        CompareTexts({whole.get(), domain}, {is_exact ? whole.get() : rounded.get(), domain}, windows, progress));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<CutPlans> PlanCuts(const PlanOptions& options) {
  const absl::StatusOr<std::unique_ptr<Checkpoint>> opened = Checkpoint::Open(options.model);
  if (!opened.ok()) return Annotate(opened.status(), options.model.string());
  const Checkpoint& checkpoint = **opened;
  const ModelSpec& spec = checkpoint.spec();
  if (!spec.HasDomainFiles()) {
    return absl::FailedPreconditionError(absl::StrCat(options.model.string(), " has no domains to cut"));
  }
  const std::optional<int> domain = spec.FindDomain(options.domain);
  if (!domain.has_value()) {
    const auto name = [](std::string* out, const DomainSpec& d) { *out += d.name; };
    return absl::NotFoundError(absl::StrCat("no domain ", Quoted(options.domain),
                                            "; the model has: ", absl::StrJoin(spec.domains, ", ", name)));
  }
  SCION_ASSIGN_OR_RETURN(CutPlans plans, Planner(checkpoint, *domain, options).Plan());
  if (!options.eval.empty()) SCION_RETURN_IF_ERROR(Measure(checkpoint, *domain, options, plans));
  return plans;
}

}  // namespace scion

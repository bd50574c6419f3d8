#include "extract/quantize.h"

#include <algorithm>
#include <memory>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include "engine/base/json.h"
#include "engine/base/status.h"
#include "engine/model/checkpoint.h"
#include "extract/convert_rows.h"
#include "extract/digest_file.h"
#include "extract/lock_builder.h"
#include "extract/new_model.h"
#include "extract/safetensors_writer.h"

namespace scion {
namespace {

using OrderedJson = nlohmann::ordered_json;

constexpr uint64_t kBatchBytes = uint64_t{1} << 20;  // of a tensor, read at a time; at least a row

// A tensor of the source and what becomes of it.
struct PlannedTensor {
  const TensorInfo* source;
  DType type;  // the source's, or blocks

  bool is_quantized() const { return type != source->dtype; }
  NewTensor written() const { return {source->name, type, source->shape}; }
};

// Names of the matrices that the engine multiplies, or looks rows up in.
std::set<std::string> MatrixNames(const ModelSpec& spec) {
  std::set<std::string> names = {"model.embed_tokens.weight", "lm_head.weight"};
  for (size_t l = 0; l < spec.layers.size(); ++l) {
    const int layer = static_cast<int>(l);
    for (const char* projection : {"q", "k", "v", "o"}) {
      names.insert(TrunkTensorName(layer, absl::StrCat("self_attn.", projection, "_proj.weight")));
    }
    for (const char* projection : {"gate", "up", "down"}) {
      switch (spec.layers[l].ffn.router) {
        case RouterKind::kNone:
          names.insert(TrunkTensorName(layer, absl::StrCat("mlp.", projection, "_proj.weight")));
          break;
        case RouterKind::kTable:
          for (const DomainSpec& domain : spec.domains) {
            for (int e = 0; e < domain.num_experts; ++e) {
              names.insert(ExpertTensorName(layer, domain.name, e, projection));
            }
          }
          break;
        case RouterKind::kGate:
          for (int e = 0; e < spec.domains[0].num_experts; ++e) {
            names.insert(GateRoutedExpertTensorName(spec, layer, e, projection));
          }
          break;
      }
    }
  }
  return names;
}

bool IsHeadOrEmbedding(std::string_view name) {
  return name == "model.embed_tokens.weight" || name == "lm_head.weight";
}

// The type of a matrix when the model's is `type`.
DType BlockTypeOf(std::string_view name, DType type) { return IsHeadOrEmbedding(name) ? DType::kQ8_0 : type; }

// The tensors of a file in the order in which they are written.
std::vector<PlannedTensor> PlanFile(std::span<const TensorInfo> tensors, const std::set<std::string>& matrices,
                                    DType type, QuantizeResult& result) {
  std::vector<PlannedTensor> plan;
  for (const TensorInfo& tensor : tensors) {
    PlannedTensor planned{&tensor, tensor.dtype};
    if (matrices.contains(tensor.name) && tensor.shape.size() == 2) {
      const DType blocks = BlockTypeOf(tensor.name, type);
      const bool fills_blocks = tensor.shape[1] % DTypeBlockElements(blocks) == 0;
      if (fills_blocks) planned.type = blocks;
      ++(fills_blocks ? result.quantized : result.left_as_is);
    }
    plan.push_back(planned);
  }
  std::ranges::stable_sort(plan, std::ranges::greater(),
                           [](const PlannedTensor& tensor) { return tensor.written().element_width(); });
  return plan;
}

// Writes the data of one file.
class FileWriter {
 public:
  FileWriter(const Checkpoint& checkpoint, const CheckpointFile& file, SafetensorsWriter& out, Progress& progress)
      : checkpoint_(checkpoint), file_(file), out_(out), progress_(progress) {}

  absl::Status Write(const PlannedTensor& tensor) {
    return tensor.is_quantized() ? WriteBlocks(tensor) : WriteCopy(tensor);
  }

 private:
  absl::Status Read(const TensorInfo& tensor, uint64_t offset, uint64_t bytes) {
    if (CancelRequested()) {
      return absl::CancelledError(absl::StrCat("interrupted while reading ", file_.file.path().string()));
    }
    batch_.resize(bytes);
    SCION_RETURN_IF_ERROR(Annotate(checkpoint_.Read(tensor, offset, batch_), checkpoint_.directory().string()));
    progress_.Advance(bytes);
    return absl::OkStatus();
  }

  absl::Status WriteCopy(const PlannedTensor& tensor) {
    const uint64_t size = tensor.source->bytes;
    for (uint64_t at = 0; at < size; at += batch_.size()) {
      SCION_RETURN_IF_ERROR(Read(*tensor.source, at, std::min(kBatchBytes, size - at)));
      SCION_RETURN_IF_ERROR(out_.Append(batch_));
    }
    return absl::OkStatus();
  }

  absl::Status WriteBlocks(const PlannedTensor& tensor) {
    const TensorInfo& source = *tensor.source;
    const uint64_t rows = static_cast<uint64_t>(source.shape[0]);
    const uint64_t elements = static_cast<uint64_t>(source.shape[1]);
    const uint64_t source_row = DTypeRowBytes(source.dtype, elements), row_bytes = DTypeRowBytes(tensor.type, elements);
    const uint64_t batch_rows = std::max<uint64_t>(1, kBatchBytes / source_row);
    RowConverter converter(source.dtype, tensor.type, static_cast<int>(elements));
    for (uint64_t first = 0; first < rows; first += batch_rows) {
      const uint64_t count = std::min(batch_rows, rows - first);
      SCION_RETURN_IF_ERROR(Read(source, first * source_row, count * source_row));
      blocks_.resize(count * row_bytes);
      for (uint64_t row = 0; row < count; ++row) {
        const absl::Status converted = converter.Convert(&batch_[row * source_row], &blocks_[row * row_bytes]);
        if (converted.ok()) continue;
        return absl::DataLossError(absl::StrCat((checkpoint_.directory() / file_.path).string(), ": tensor ",
                                                Quoted(source.name), ": row ", first + row, " has ",
                                                converted.message()));
      }
      SCION_RETURN_IF_ERROR(out_.Append(blocks_));
    }
    return absl::OkStatus();
  }

  const Checkpoint& checkpoint_;
  const CheckpointFile& file_;
  SafetensorsWriter& out_;
  Progress& progress_;
  std::vector<std::byte> batch_, blocks_;
};

absl::Status RefuseSource(const Checkpoint& checkpoint, const QuantizeOptions& options) {
  if (checkpoint.is_gguf()) {
    return absl::FailedPreconditionError(
        absl::StrCat(options.model.string(), " is a GGUF file; a directory of safetensors is quantised"));
  }
  if (const auto& quantization = checkpoint.spec().quantization; quantization.has_value()) {
    return absl::FailedPreconditionError(
        absl::StrCat(options.model.string(), " is quantised already, to ", ToAbsl(DTypeName(quantization->type)),
                     ": rounding it again would lose more; quantise what it was made of"));
  }
  return absl::OkStatus();
}

// The source's config.json, every key in its place, and quantization_config.
std::string QuantizedConfig(const Checkpoint& checkpoint, DType type, std::span<const PlannedTensor> tensors) {
  auto config = OrderedJson::parse(checkpoint.config());
  OrderedJson quantization = {{"quant_method", "ggml"}, {"type", DTypeName(type)}};
  for (const PlannedTensor& tensor : tensors) {
    if (!tensor.is_quantized() || tensor.type == type) continue;
    quantization["tensors"][tensor.source->name] = DTypeName(tensor.type);
  }
  config["quantization_config"] = std::move(quantization);
  return config.dump(2) + "\n";
}

}  // namespace

std::vector<NewTensor> QuantizedTensors(const ModelSpec& spec, std::span<const TensorInfo> tensors, DType type) {
  QuantizeResult counts;
  std::vector<NewTensor> written;
  for (const PlannedTensor& tensor : PlanFile(tensors, MatrixNames(spec), type, counts)) {
    written.push_back(tensor.written());
  }
  return written;
}

absl::StatusOr<QuantizeResult> Quantize(const QuantizeOptions& options) {
  const absl::StatusOr<std::unique_ptr<Checkpoint>> opened = Checkpoint::Open(options.model);
  if (!opened.ok()) return Annotate(opened.status(), options.model.string());
  const Checkpoint& checkpoint = **opened;
  SCION_RETURN_IF_ERROR(RefuseSource(checkpoint, options));

  QuantizeResult result;
  const std::set<std::string> matrices = MatrixNames(checkpoint.spec());
  std::vector<std::vector<PlannedTensor>> plans;
  std::vector<PlannedTensor> all;
  for (size_t i = 0; i < checkpoint.files().size(); ++i) {
    plans.push_back(PlanFile(TensorsOf(checkpoint, static_cast<int>(i)), matrices, options.type, result));
    all.insert(all.end(), plans.back().begin(), plans.back().end());
    result.model_bytes += checkpoint.files()[i].file.size();
  }
  if (result.quantized == 0) {
    return absl::FailedPreconditionError(absl::StrCat(options.model.string(), ": no matrix has rows of a multiple of ",
                                                      DTypeBlockElements(options.type),
                                                      ", so that there is nothing to quantise"));
  }
  const std::string config = QuantizedConfig(checkpoint, options.type, all);

  SCION_ASSIGN_OR_RETURN(NewModel model, NewModel::Create(checkpoint, options.out));
  SCION_RETURN_IF_ERROR(model.CheckSource(options.log));
  {
    Progress progress(options.log, "quantising", result.model_bytes, Progress::Unit::kBytes);
    for (size_t i = 0; i < plans.size(); ++i) {
      const CheckpointFile& file = checkpoint.files()[i];
      std::vector<NewTensor> tensors;
      uint64_t tensor_bytes = 0;
      for (const PlannedTensor& tensor : plans[i]) {
        tensors.push_back(tensor.written());
        tensor_bytes += tensors.back().bytes();
      }
      SCION_ASSIGN_OR_RETURN(NewFile out, model.CreateDataFile(file.path));
      SCION_ASSIGN_OR_RETURN(SafetensorsWriter writer, SafetensorsWriter::Create(std::move(out), std::move(tensors)));
      FileWriter data(checkpoint, file, writer, progress);
      for (const PlannedTensor& tensor : plans[i]) SCION_RETURN_IF_ERROR(data.Write(tensor));
      SCION_ASSIGN_OR_RETURN(const FileDigest digest, writer.Finish());
      model.AddDataFile(file, digest, tensor_bytes);
      result.bytes += digest.bytes;
    }
    SCION_RETURN_IF_ERROR(model.CopyCompanions(progress));
  }
  std::vector<std::string> domains;
  if (checkpoint.spec().HasDomainFiles()) {
    for (const DomainSpec& domain : checkpoint.spec().domains) domains.push_back(domain.name);
  }
  SCION_RETURN_IF_ERROR(model.Commit(
      config, {.verb = "quantize", .version = options.version, .now = options.now, .domains = std::move(domains)}));
  return result;
}

}  // namespace scion

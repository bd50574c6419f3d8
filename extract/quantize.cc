#include "extract/quantize.h"

#include <algorithm>
#include <memory>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include "engine/base/json.h"
#include "engine/base/sha256.h"
#include "engine/base/status.h"
#include "engine/model/checkpoint.h"
#include "extract/convert_rows.h"
#include "extract/digest_file.h"
#include "extract/lock_builder.h"
#include "extract/new_model.h"

namespace scion {
namespace {

using OrderedJson = nlohmann::ordered_json;

constexpr uint64_t kBatchBytes = uint64_t{1} << 20;  // of a tensor, read at a time; at least a row

// A tensor of the source and what becomes of it.
struct PlannedTensor {
  const TensorInfo* source;
  DType type;  // the source's, or blocks

  bool is_quantized() const { return type != source->dtype; }
  uint64_t bytes() const {
    if (!is_quantized()) return source->bytes;
    return static_cast<uint64_t>(source->shape[0]) * DTypeRowBytes(type, static_cast<uint64_t>(source->shape[1]));
  }
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

// The tensors of a file in the order in which they are written: wide elements first and blocks last, so that every
// element lies where its size divides the offset, which readers of the format like.
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
  const auto width = [](const PlannedTensor& t) { return IsQuantized(t.type) ? 0 : DTypeBytes(t.type); };
  std::ranges::stable_sort(plan, std::ranges::greater(), width);
  return plan;
}

std::string SafetensorsHeader(std::span<const PlannedTensor> plan) {
  OrderedJson header = {{"__metadata__", {{"format", "pt"}}}};
  uint64_t offset = 0;
  for (const PlannedTensor& tensor : plan) {
    std::vector<int64_t> shape = tensor.source->shape;
    if (tensor.is_quantized())
      shape[1] = static_cast<int64_t>(DTypeRowBytes(tensor.type, static_cast<uint64_t>(shape[1])));
    header[tensor.source->name] = {{"dtype", DTypeName(tensor.is_quantized() ? DType::kU8 : tensor.type)},
                                   {"shape", shape},
                                   {"data_offsets", {offset, offset + tensor.bytes()}}};
    offset += tensor.bytes();
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  std::string bytes(8, '\0');
  for (size_t i = 0; i < 8; ++i) bytes[i] = static_cast<char>(uint64_t{text.size()} >> (8 * i));
  return bytes + text;
}

// Writes one data file, hashing it on the way.
class FileWriter {
 public:
  FileWriter(const Checkpoint& checkpoint, const CheckpointFile& file, NewFile& out, Progress& progress)
      : checkpoint_(checkpoint), file_(file), out_(out), progress_(progress) {}

  absl::StatusOr<FileDigest> Write(std::span<const PlannedTensor> plan) {
    FileDigest digest;
    const std::string header = SafetensorsHeader(plan);
    SCION_RETURN_IF_ERROR(Append(std::as_bytes(std::span(header)), nullptr));
    for (const PlannedTensor& tensor : plan) {
      Sha256 hash;
      SCION_RETURN_IF_ERROR(tensor.is_quantized() ? WriteBlocks(tensor, hash) : WriteCopy(tensor, hash));
      digest.tensor_sha256.emplace_back(tensor.source->name, hash.FinishHex());
    }
    SCION_RETURN_IF_ERROR(out_.Finish());
    digest.bytes = bytes_;
    digest.sha256 = whole_.FinishHex();
    return digest;
  }

 private:
  absl::Status Append(std::span<const std::byte> bytes, Sha256* tensor_hash) {
    whole_.Update(bytes);
    if (tensor_hash != nullptr) tensor_hash->Update(bytes);
    bytes_ += bytes.size();
    return out_.Append(bytes);
  }

  absl::Status Read(const TensorInfo& tensor, uint64_t offset, uint64_t bytes) {
    if (CancelRequested()) {
      return absl::CancelledError(absl::StrCat("interrupted while reading ", file_.file.path().string()));
    }
    batch_.resize(bytes);
    SCION_RETURN_IF_ERROR(Annotate(checkpoint_.Read(tensor, offset, batch_), checkpoint_.directory().string()));
    progress_.Advance(bytes);
    return absl::OkStatus();
  }

  absl::Status WriteCopy(const PlannedTensor& tensor, Sha256& hash) {
    const uint64_t size = tensor.source->bytes;
    for (uint64_t at = 0; at < size; at += batch_.size()) {
      SCION_RETURN_IF_ERROR(Read(*tensor.source, at, std::min(kBatchBytes, size - at)));
      SCION_RETURN_IF_ERROR(Append(batch_, &hash));
    }
    return absl::OkStatus();
  }

  absl::Status WriteBlocks(const PlannedTensor& tensor, Sha256& hash) {
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
      SCION_RETURN_IF_ERROR(Append(blocks_, &hash));
    }
    return absl::OkStatus();
  }

  const Checkpoint& checkpoint_;
  const CheckpointFile& file_;
  NewFile& out_;
  Progress& progress_;
  Sha256 whole_;
  uint64_t bytes_ = 0;
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
  if (checkpoint.lock() != nullptr) {
    Progress progress(options.log, "hashing the source", result.model_bytes, Progress::Unit::kBytes);
    for (const CheckpointFile& file : checkpoint.files()) {
      SCION_ASSIGN_OR_RETURN(const FileDigest digest, DigestFile(file.file, {}, nullptr, progress));
      SCION_RETURN_IF_ERROR(model.CheckDigest(file.path, digest));
    }
  }
  {
    Progress progress(options.log, "quantising", result.model_bytes, Progress::Unit::kBytes);
    for (size_t i = 0; i < plans.size(); ++i) {
      const CheckpointFile& file = checkpoint.files()[i];
      SCION_ASSIGN_OR_RETURN(NewFile out, model.CreateDataFile(file));
      SCION_ASSIGN_OR_RETURN(const FileDigest digest, FileWriter(checkpoint, file, out, progress).Write(plans[i]));
      uint64_t tensor_bytes = 0;
      for (const PlannedTensor& tensor : plans[i]) tensor_bytes += tensor.bytes();
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

#include "engine/model/checkpoint.h"

#include <fcntl.h>

#include <bit>
#include <cstring>
#include <system_error>
#include <utility>

#include "engine/base/status.h"
#include "engine/model/gguf.h"
#include "engine/model/gguf_spec.h"
#include "engine/model/gguf_tensors.h"
#include "engine/model/gguf_tokenizer.h"
#include "engine/model/model_files.h"
#include "engine/model/tensor_check.h"

namespace scion {

static_assert(std::endian::native == std::endian::little, "tensor data is little-endian and read as it is");

absl::StatusOr<std::unique_ptr<Checkpoint>> Checkpoint::Open(const std::filesystem::path& path) {
  std::error_code error;
  if (std::filesystem::is_regular_file(path, error)) {
    auto checkpoint = std::make_unique<Checkpoint>();
    checkpoint->directory_ = path;
    SCION_ASSIGN_OR_RETURN(ReadOnlyFile file, ReadOnlyFile::Open(path));
    SCION_ASSIGN_OR_RETURN(checkpoint->is_gguf_, HasGgufMagic(file));
    if (!checkpoint->is_gguf_) {
      return absl::InvalidArgumentError(absl::StrCat("open: ", path.string(), ": not a directory, nor a GGUF file"));
    }
    SCION_RETURN_IF_ERROR(checkpoint->OpenGguf(std::move(file)));
    SCION_RETURN_IF_ERROR(CheckTensors(*checkpoint));
    return checkpoint;
  }
  SCION_ASSIGN_OR_RETURN(const std::filesystem::path root, ResolveDirectory(path));
  for (int attempt = 1;; ++attempt) {
    auto checkpoint = std::make_unique<Checkpoint>();
    checkpoint->directory_ = path;
    absl::Status status = checkpoint->OpenDirectory(root);
    if (status.ok()) status = CheckTensors(*checkpoint);
    if (status.ok()) return checkpoint;
    // A writer may have removed a file that the lock named when it was read.
    constexpr int kMaxAttempts = 16;
    if (attempt == kMaxAttempts || checkpoint->lock() == nullptr || !LockHasChanged(root, *checkpoint->lock())) {
      return status;
    }
  }
}

absl::Status Checkpoint::OpenDirectory(const std::filesystem::path& root) {
  SCION_ASSIGN_OR_RETURN(ModelFiles model_files, FindModelFiles(root));
  spec_ = std::move(model_files.spec);
  config_ = std::move(model_files.config);
  lock_ = std::move(model_files.lock);
  for (DataFileName& name : model_files.data) {
    SCION_ASSIGN_OR_RETURN(ReadOnlyFile file, OpenInside(root, name.path));
    if (lock_.has_value()) {
      const uint64_t expected = lock_->files.at(name.path).size;
      if (file.size() != expected) {
        return absl::DataLossError(
            absl::StrCat(name.path, ": ", file.size(), " bytes, but ", ToAbsl(kLockFileName), " says ", expected));
      }
    }
    SCION_ASSIGN_OR_RETURN(std::vector<TensorInfo> tensors, ReadSafetensorsHeader(file, name.path));
    if (spec_.quantization.has_value()) {
      SCION_RETURN_IF_ERROR(SetBlockTypes(*spec_.quantization, name.path, tensors));
    }
    files_.push_back({std::move(name.path), name.domain, name.generation, std::move(file)});
    SCION_RETURN_IF_ERROR(AddTensors(std::move(tensors)));
  }
  for (const auto& [tensor, path] : model_files.weight_map) {
    absl::StatusOr<const TensorInfo*> found = Find(tensor);
    if (!found.ok() || FileOf(**found).path != path) {
      return absl::DataLossError(
          absl::StrCat(path, ": tensor ", Quoted(tensor), " is not there, but ", ToAbsl(kIndexFileName), " says so"));
    }
  }
  if (!spec_.quantization.has_value()) return absl::OkStatus();
  for (const auto& [tensor, type] : spec_.quantization->tensors) {
    if (Find(tensor).ok()) continue;
    return absl::DataLossError(absl::StrCat("config.json: 'quantization_config' gives tensor ", Quoted(tensor),
                                            " the type ", ToAbsl(DTypeName(type)), ", but no file has it"));
  }
  return absl::OkStatus();
}

absl::Status Checkpoint::OpenGguf(ReadOnlyFile file) {
  const std::string name = file.path().filename().string();
  SCION_ASSIGN_OR_RETURN(GgufHeader header, ReadGgufHeader(file, name));
  SCION_ASSIGN_OR_RETURN(spec_, ParseGgufSpec(header));
  SCION_ASSIGN_OR_RETURN(vocabulary_, ReadGgufVocabulary(file, header.metadata));
  SCION_ASSIGN_OR_RETURN(std::vector<TensorInfo> tensors, NameGgufTensors(std::move(header), spec_));
  files_.push_back({name, std::nullopt, 1, std::move(file)});
  return AddTensors(std::move(tensors));
}

absl::Status Checkpoint::AddTensors(std::vector<TensorInfo> tensors) {
  const CheckpointFile& file = files_.back();
  if (tensors_.size() + tensors.size() > kMaxTensors) {
    return absl::ResourceExhaustedError(absl::StrCat(file.path, ": more than ", kMaxTensors, " tensors in all files"));
  }
  for (TensorInfo& tensor : tensors) {
    tensor.file = static_cast<int>(files_.size()) - 1;
    const auto [other, is_new] = by_name_.emplace(tensor.name, static_cast<int>(tensors_.size()));
    if (!is_new) {
      const CheckpointFile& other_file = FileOf(tensors_[static_cast<size_t>(other->second)]);
      return absl::DataLossError(
          absl::StrCat(file.path, ": tensor ", Quoted(tensor.name), ": ",
                       &other_file == &file ? "comes twice" : absl::StrCat("is in ", other_file.path, " too")));
    }
    tensors_.push_back(std::move(tensor));
  }
  return absl::OkStatus();
}

absl::StatusOr<const TensorInfo*> Checkpoint::Find(std::string_view name) const {
  const auto it = by_name_.find(ToAbsl(name));
  if (it == by_name_.end())
    return absl::NotFoundError(absl::StrCat("tensor ", Quoted(name), " is not in the checkpoint"));
  return &tensors_[static_cast<size_t>(it->second)];
}

absl::Status Checkpoint::Read(const TensorInfo& tensor, uint64_t offset, std::span<std::byte> out) const {
  const CheckpointFile& file = FileOf(tensor);
  const auto context = [&] { return absl::StrCat(file.path, ": tensor ", Quoted(tensor.name)); };
  if (offset > tensor.bytes || out.size() > tensor.bytes - offset) {
    return absl::DataLossError(
        absl::StrCat(context(), ": bytes [", offset, ", +", out.size(), ") reach beyond its ", tensor.bytes));
  }
  absl::Status status = file.file.Read(tensor.offset + offset, out);
  if (status.ok()) return status;
  return absl::DataLossError(absl::StrCat(context(), ": ", status.message()));
}

absl::Status Checkpoint::ReadInOrder(const TensorInfo& tensor, uint64_t offset, std::span<std::byte> out) const {
  if (tensor.interleaved_head_dim == 0) return Read(tensor, offset, out);
  const uint64_t row_bytes = DTypeRowBytes(tensor.dtype, static_cast<uint64_t>(tensor.shape.back()));
  for (uint64_t at = 0; at < out.size(); at += row_bytes) {
    const int64_t row = static_cast<int64_t>((offset + at) / row_bytes);
    SCION_RETURN_IF_ERROR(
        Read(tensor, static_cast<uint64_t>(tensor.FileRow(row)) * row_bytes, out.subspan(at, row_bytes)));
  }
  return absl::OkStatus();
}

void Checkpoint::Release(const TensorInfo& tensor) const {
  ::posix_fadvise(FileOf(tensor).file.fd(), static_cast<off_t>(tensor.offset), static_cast<off_t>(tensor.bytes),
                  POSIX_FADV_DONTNEED);
}

absl::StatusOr<std::vector<float>> Checkpoint::ReadFloats(const TensorInfo& tensor) const {
  std::vector<float> values(tensor.bytes / DTypeBytes(tensor.dtype));
  if (tensor.dtype == DType::kF32) {
    SCION_RETURN_IF_ERROR(Read(tensor, 0, std::as_writable_bytes(std::span(values))));
    return values;
  }
  if (tensor.dtype != DType::kBF16 && tensor.dtype != DType::kF16) {
    return absl::InvalidArgumentError(absl::StrCat(FileOf(tensor).path, ": tensor ", Quoted(tensor.name), ": dtype ",
                                                   ToAbsl(DTypeName(tensor.dtype)), " is not F32, F16 or BF16"));
  }
  std::vector<uint16_t> halves(values.size());
  SCION_RETURN_IF_ERROR(Read(tensor, 0, std::as_writable_bytes(std::span(halves))));
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = tensor.dtype == DType::kBF16 ? Bf16ToF32(halves[i]) : F16ToF32(halves[i]);
  }
  return values;
}

absl::StatusOr<std::vector<int32_t>> Checkpoint::ReadInt32(const TensorInfo& tensor) const {
  if (tensor.dtype != DType::kI32) {
    return absl::InvalidArgumentError(absl::StrCat(FileOf(tensor).path, ": tensor ", Quoted(tensor.name), ": dtype ",
                                                   ToAbsl(DTypeName(tensor.dtype)), " is not I32"));
  }
  std::vector<int32_t> values(tensor.bytes / sizeof(int32_t));
  SCION_RETURN_IF_ERROR(Read(tensor, 0, std::as_writable_bytes(std::span(values))));
  return values;
}

std::string TrunkTensorName(int layer, std::string_view rest) {
  return absl::StrCat("model.layers.", layer, ".", ToAbsl(rest));
}

std::string ExpertTensorName(int layer, std::string_view domain, int expert, std::string_view projection) {
  return absl::StrCat("model.layers.", layer, ".mlp.domains.", ToAbsl(domain), ".experts.", expert, ".",
                      ToAbsl(projection), "_proj.weight");
}

std::string GateTensorName(const ModelSpec& spec, int layer) {
  const bool is_mlp = spec.expert_names == ExpertNames::kMlp;
  return TrunkTensorName(layer, is_mlp ? "mlp.gate.weight" : "block_sparse_moe.gate.weight");
}

std::string GateRoutedExpertTensorName(const ModelSpec& spec, int layer, int expert, std::string_view projection) {
  if (spec.expert_names == ExpertNames::kMlp) {
    return absl::StrCat("model.layers.", layer, ".mlp.experts.", expert, ".", ToAbsl(projection), "_proj.weight");
  }
  const absl::string_view matrix = projection == "gate" ? "w1" : projection == "up" ? "w3" : "w2";
  return absl::StrCat("model.layers.", layer, ".block_sparse_moe.experts.", expert, ".", matrix, ".weight");
}

std::string RouteTensorName(int layer, std::string_view domain) {
  return absl::StrCat("model.layers.", layer, ".mlp.domains.", ToAbsl(domain), ".route");
}

std::optional<std::string_view> DomainOfTensor(std::string_view name) {
  constexpr std::string_view kMarker = ".mlp.domains.";
  const size_t marker = name.find(kMarker);
  if (marker == name.npos) return std::nullopt;
  const std::string_view rest = name.substr(marker + kMarker.size());
  return rest.substr(0, rest.find('.'));
}

std::string RouteWeightTensorName(int layer, std::string_view domain) {
  return absl::StrCat("model.layers.", layer, ".mlp.domains.", ToAbsl(domain), ".route_weight");
}

}  // namespace scion

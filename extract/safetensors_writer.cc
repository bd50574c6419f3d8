#include "extract/safetensors_writer.h"

#include <nlohmann/json.hpp>
#include <string_view>
#include <utility>

#include "engine/base/status.h"

namespace scion {
namespace {

std::string Header(std::span<const NewTensor> tensors) {
  nlohmann::ordered_json header = {{"__metadata__", {{"format", "pt"}}}};
  uint64_t offset = 0;
  for (const NewTensor& tensor : tensors) {
    std::vector<int64_t> shape = tensor.shape;
    const bool is_blocks = IsQuantized(tensor.dtype);
    if (is_blocks) shape[1] = static_cast<int64_t>(DTypeRowBytes(tensor.dtype, static_cast<uint64_t>(shape[1])));
    header[tensor.name] = {{"dtype", DTypeName(is_blocks ? DType::kU8 : tensor.dtype)},
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

}  // namespace

uint64_t NewTensor::bytes() const {
  uint64_t rows = 1;
  for (size_t d = 0; d + 1 < shape.size(); ++d) rows *= static_cast<uint64_t>(shape[d]);
  return rows * DTypeRowBytes(dtype, shape.empty() ? 1 : static_cast<uint64_t>(shape.back()));
}

uint64_t SafetensorsFileBytes(std::span<const NewTensor> tensors) {
  uint64_t bytes = Header(tensors).size();
  for (const NewTensor& tensor : tensors) bytes += tensor.bytes();
  return bytes;
}

absl::StatusOr<SafetensorsWriter> SafetensorsWriter::Create(NewFile file, std::vector<NewTensor> tensors) {
  const std::string header = Header(tensors);
  SafetensorsWriter writer(std::move(file), std::move(tensors));
  SCION_RETURN_IF_ERROR(writer.Write(std::as_bytes(std::span(header))));
  return writer;
}

absl::Status SafetensorsWriter::Write(std::span<const std::byte> bytes) {
  whole_.Update(bytes);
  digest_.bytes += bytes.size();
  return file_.Append(bytes);
}

absl::Status SafetensorsWriter::Append(std::span<const std::byte> bytes) {
  if (current_ == tensors_.size() || bytes.size() > tensors_[current_].bytes() - written_) {
    return absl::InternalError("more data than the header of a new file says");
  }
  tensor_hash_.Update(bytes);
  written_ += bytes.size();
  SCION_RETURN_IF_ERROR(Write(bytes));
  if (written_ < tensors_[current_].bytes()) return absl::OkStatus();
  digest_.tensor_sha256.emplace_back(tensors_[current_].name, std::exchange(tensor_hash_, Sha256()).FinishHex());
  written_ = 0;
  ++current_;
  return absl::OkStatus();
}

absl::StatusOr<FileDigest> SafetensorsWriter::Finish() {
  if (current_ != tensors_.size()) {
    return absl::InternalError(absl::StrCat("tensor ", Quoted(tensors_[current_].name), " of a new file lacks data"));
  }
  SCION_RETURN_IF_ERROR(file_.Finish());
  digest_.sha256 = whole_.FinishHex();
  return std::move(digest_);
}

}  // namespace scion

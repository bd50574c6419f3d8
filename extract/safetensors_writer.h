// Writes a safetensors file from front to back, hashing it and every tensor on the way.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/base/dtype.h"
#include "engine/base/sha256.h"
#include "extract/digest_file.h"
#include "extract/new_file.h"

namespace scion {

// A tensor that a file shall hold. Blocks of quantised weights [rows, elements] are stored as U8 [rows, row_bytes].
struct NewTensor {
  std::string name;
  DType dtype;
  std::vector<int64_t> shape;  // of what it stands for; a row is of whole blocks

  uint64_t bytes() const;
  // Tensors in descending order of it lie where their elements' size divides the offset, which readers of the format
  // like: wide elements first, blocks last.
  size_t element_width() const { return IsQuantized(dtype) ? 0 : DTypeBytes(dtype); }
};

// Of a file of these tensors, header included.
uint64_t SafetensorsFileBytes(std::span<const NewTensor> tensors);

class SafetensorsWriter {
 public:
  // Writes the header. The tensors' data follow in this order.
  static absl::StatusOr<SafetensorsWriter> Create(NewFile file, std::vector<NewTensor> tensors);

  // The next bytes of the data, at most up to the end of a tensor.
  absl::Status Append(std::span<const std::byte> bytes);
  // Down to the disk. Internal if data are missing.
  absl::StatusOr<FileDigest> Finish();

 private:
  SafetensorsWriter(NewFile file, std::vector<NewTensor> tensors)
      : file_(std::move(file)), tensors_(std::move(tensors)) {}
  absl::Status Write(std::span<const std::byte> bytes);

  NewFile file_;
  std::vector<NewTensor> tensors_;
  size_t current_ = 0;    // index into tensors_
  uint64_t written_ = 0;  // of the current one
  Sha256 tensor_hash_, whole_;
  FileDigest digest_;
};

}  // namespace scion

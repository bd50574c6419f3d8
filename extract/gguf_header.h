// The header of a GGUF file, version 3, little-endian, put together in memory: metadata, and where tensors will lie.
// The format: github.com/ggml-org/ggml, docs/gguf.md.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/status/statusor.h"
#include "engine/base/dtype.h"

namespace scion {

inline constexpr uint64_t kGgufAlignment = 32;

class GgufHeaderWriter {
 public:
  void AddUint32(std::string_view key, uint32_t value);
  void AddFloat32(std::string_view key, float value);
  void AddBool(std::string_view key, bool value);
  void AddString(std::string_view key, std::string_view value);
  void AddStrings(std::string_view key, std::span<const std::string> values);
  void AddFloats(std::string_view key, std::span<const float> values);
  void AddInt32s(std::string_view key, std::span<const int32_t> values);

  // The next tensor, whose data follow those of the one before, aligned. shape: as everywhere here, a row's length
  // last.
  void AddTensor(std::string_view name, std::span<const int64_t> shape, DType type, uint64_t bytes);

  // The file up to where the data begin, at a multiple of the alignment. InvalidArgument: a key or a tensor that was
  // added twice, a name that readers find too long, a type that is none of GGUF's, offsets beyond 63 bits.
  absl::StatusOr<std::string> Finish() const;

 private:
  void AddKey(std::string_view key, uint32_t type);
  void Fail(std::string_view what, std::string_view name);

  absl::Status status_;
  std::string keys_, tensors_;
  uint64_t num_keys_ = 0, num_tensors_ = 0;
  uint64_t offset_ = 0;  // of the next tensor, in the data
  absl::flat_hash_set<std::string> names_;
};

// Bytes of padding behind data of so many bytes.
constexpr uint64_t GgufPadding(uint64_t bytes) { return (kGgufAlignment - bytes % kGgufAlignment) % kGgufAlignment; }

}  // namespace scion

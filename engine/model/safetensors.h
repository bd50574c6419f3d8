// The header of one safetensors file: a little-endian u64 with the header's length, a JSON object that gives each
// tensor's dtype, shape and data_offsets (from the end of the header), then the data, without holes or overlaps.
//
// Nothing in it is believed: each error is a DataLoss that names file and tensor (Unimplemented for a dtype that the
// format knows and this engine does not; ResourceExhausted beyond the limits below). No memory is allocated on the
// header's word alone: its length is checked against the file, and a tensor costs at most about 300 bytes.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/base/dtype.h"
#include "engine/base/file.h"

namespace scion {

inline constexpr uint64_t kMaxSafetensorsHeaderBytes = 100'000'000;
inline constexpr int kMaxTensors = 1 << 17;  // in a file, and in a checkpoint
inline constexpr int kMaxTensorDims = 8;
inline constexpr int kMaxTensorNameBytes = 1024;

// A tensor in a data file of a checkpoint.
struct TensorInfo {
  std::string name;
  DType dtype;
  std::vector<int64_t> shape;
  int file;         // index into Checkpoint::files()
  uint64_t offset;  // of the data, from the start of the file
  uint64_t bytes;   // of all rows (the last dimension is a row: DTypeRowBytes), checked
  // Not 0: the rows of each head of so many come as pairs (0, head_dim/2), (1, head_dim/2 + 1), ..., as in GGUF's q and
  // k projections of Llama, whose RoPE turns neighbours.
  int interleaved_head_dim = 0;

  // Where the row lies in the file: row i of a head is then its row i < head_dim/2 ? 2i : 2(i - head_dim/2) + 1.
  int64_t FileRow(int64_t row) const {
    if (interleaved_head_dim == 0) return row;
    const int64_t in_head = row % interleaved_head_dim;
    const int64_t half = interleaved_head_dim / 2;
    return row - in_head + (in_head < half ? 2 * in_head : 2 * (in_head - half) + 1);
  }
};

// Reads and checks the header. Tensors come sorted by offset; `file` is 0.
// file_name: what messages call the file.
absl::StatusOr<std::vector<TensorInfo>> ReadSafetensorsHeader(const ReadOnlyFile& file, std::string_view file_name);

// The two halves of it, on memory. prefix: the file's first 8 bytes, or all of it if it is shorter.
absl::StatusOr<uint64_t> ParseSafetensorsHeaderLength(std::string_view prefix, uint64_t file_bytes,
                                                      std::string_view file_name);
// header: the JSON text; the file has data_bytes bytes behind it.
absl::StatusOr<std::vector<TensorInfo>> ParseSafetensorsHeader(std::string_view header, uint64_t data_bytes,
                                                               std::string_view file_name);

}  // namespace scion

#include "extract/export_tensor_writer.h"

#include <algorithm>
#include <vector>

#include "engine/base/status.h"
#include "extract/convert_rows.h"
#include "extract/digest_file.h"

namespace scion {
namespace {

constexpr uint64_t kBatchBytes = uint64_t{1} << 20;

// Which row of a head is written as row `row`; of pairs, if they are interleaved.
uint64_t RowOfHead(uint64_t row, uint64_t head_dim, bool interleaved) {
  if (!interleaved) return row;
  return row % 2 == 0 ? row / 2 : row / 2 + head_dim / 2;
}

// Where row `row` of a head lies in its file.
uint64_t PlaceInHead(uint64_t row, uint64_t head_dim, bool interleaved) {
  if (!interleaved) return row;
  return row < head_dim / 2 ? 2 * row : 2 * (row - head_dim / 2) + 1;
}

class PartReader {
 public:
  PartReader(const Checkpoint& checkpoint, const TensorInfo& part, int written_head_dim)
      : checkpoint_(checkpoint),
        part_(part),
        row_bytes_(DTypeRowBytes(part.dtype, static_cast<uint64_t>(part.shape.back()))),
        written_(written_head_dim != 0),
        stored_(part.interleaved_head_dim != 0),
        head_dim_(static_cast<uint64_t>(std::max(written_head_dim, part.interleaved_head_dim))) {}

  uint64_t row_bytes() const { return row_bytes_; }

  // Rows [first, first + out.size() / row_bytes()) as they are written.
  absl::Status Read(uint64_t first, std::span<std::byte> out) const {
    if (written_ == stored_) return checkpoint_.Read(part_, first * row_bytes_, out);
    for (uint64_t at = 0; at < out.size(); at += row_bytes_) {
      const uint64_t row = first + at / row_bytes_, head = row / head_dim_ * head_dim_;
      const uint64_t place = head + PlaceInHead(RowOfHead(row - head, head_dim_, written_), head_dim_, stored_);
      SCION_RETURN_IF_ERROR(checkpoint_.Read(part_, place * row_bytes_, out.subspan(at, row_bytes_)));
    }
    return absl::OkStatus();
  }

 private:
  const Checkpoint& checkpoint_;
  const TensorInfo& part_;
  const uint64_t row_bytes_;
  const bool written_, stored_;  // as pairs
  const uint64_t head_dim_;
};

}  // namespace

absl::Status WriteExportTensor(const Checkpoint& checkpoint, const ExportTensor& tensor, ByteSink sink,
                               Progress& progress) {
  const uint64_t rows_of_part = tensor.rows() / tensor.parts.size();
  const uint64_t out_row = DTypeRowBytes(tensor.type, tensor.row_length());
  std::vector<std::byte> in, out;
  for (const TensorInfo* part : tensor.parts) {
    const PartReader reader(checkpoint, *part, tensor.interleaved_head_dim);
    const uint64_t in_row = reader.row_bytes();
    const uint64_t batch_rows = std::max<uint64_t>(1, kBatchBytes / std::max(in_row, out_row));
    RowConverter converter(part->dtype, tensor.type, static_cast<int>(tensor.row_length()));
    for (uint64_t first = 0; first < rows_of_part; first += batch_rows) {
      const std::string path = checkpoint.FileOf(*part).file.path().string();
      if (CancelRequested()) return absl::CancelledError(absl::StrCat("interrupted while reading ", path));
      const uint64_t count = std::min(batch_rows, rows_of_part - first);
      in.resize(count * in_row);
      SCION_RETURN_IF_ERROR(Annotate(reader.Read(first, in), checkpoint.directory().string()));
      progress.Advance(in.size());
      if (part->dtype == tensor.type) {
        SCION_RETURN_IF_ERROR(sink(in));
        continue;
      }
      out.resize(count * out_row);
      for (uint64_t row = 0; row < count; ++row) {
        const absl::Status converted = converter.Convert(&in[row * in_row], &out[row * out_row]);
        if (converted.ok()) continue;
        return absl::DataLossError(
            absl::StrCat(path, ": tensor ", Quoted(part->name), ": row ", first + row, " has ", converted.message()));
      }
      SCION_RETURN_IF_ERROR(sink(out));
    }
  }
  return absl::OkStatus();
}

}  // namespace scion

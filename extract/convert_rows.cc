#include "extract/convert_rows.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "engine/base/status.h"
#include "engine/kernels/ggml_blocks.h"

namespace scion {
namespace {

absl::Status TooLarge(std::string_view type) {
  return absl::DataLossError(absl::StrCat("a weight too large for ", ToAbsl(type)));
}

}  // namespace

RowConverter::RowConverter(DType from, DType to, int elements)
    : from_(from), to_(to), values_(static_cast<size_t>(elements)) {}

absl::Status RowConverter::Convert(const std::byte* in, std::byte* out) {
  const int elements = static_cast<int>(values_.size());
  if (from_ == to_) {
    std::memcpy(out, in, DTypeRowBytes(to_, values_.size()));
    return absl::OkStatus();
  }
  kernels::DequantizeRow(from_, in, elements, values_.data());
  if (to_ == DType::kF32) {
    std::memcpy(out, values_.data(), values_.size() * sizeof(float));
    return absl::OkStatus();
  }
  return IsQuantized(to_) ? ToBlocks(out) : ToHalves(out);
}

absl::Status RowConverter::ToHalves(std::byte* out) const {
  for (size_t i = 0; i < values_.size(); ++i) {
    const bool is_bf16 = to_ == DType::kBF16;
    const uint16_t half = is_bf16 ? F32ToBf16(values_[i]) : F32ToF16(values_[i]);
    if (std::isfinite(values_[i]) && !std::isfinite(is_bf16 ? Bf16ToF32(half) : F16ToF32(half))) {
      return TooLarge(DTypeName(to_));
    }
    std::memcpy(out + i * sizeof(half), &half, sizeof(half));
  }
  return absl::OkStatus();
}

absl::Status RowConverter::ToBlocks(std::byte* out) const {
  if (!std::ranges::all_of(values_, [](float v) { return std::isfinite(v); })) {
    return absl::DataLossError("a weight that is not finite");
  }
  kernels::QuantizeRow(to_, values_.data(), static_cast<int>(values_.size()), out);
  // A row whose values are finite has blocks whose scales are, unless they are too large for a half.
  for (size_t at = 0; at < DTypeRowBytes(to_, values_.size()); at += DTypeBytes(to_)) {
    uint16_t scale;
    std::memcpy(&scale, out + at, sizeof(scale));
    if (!std::isfinite(F16ToF32(scale))) return TooLarge(absl::StrCat("a block of ", ToAbsl(DTypeName(to_))));
  }
  return absl::OkStatus();
}

}  // namespace scion

// Packing of weights into panels.
#include <cstring>

#include "engine/kernels/kernels.h"

namespace scion::kernels {
namespace {

float ReadF32(DType type, const std::byte* p) {
  if (type == DType::kF32) {
    float f;
    std::memcpy(&f, p, sizeof(f));
    return f;
  }
  uint16_t u;
  std::memcpy(&u, p, sizeof(u));
  return type == DType::kBF16 ? Bf16ToF32(u) : F16ToF32(u);
}

uint16_t ReadBf16(DType type, const std::byte* p) {
  if (type != DType::kBF16) return F32ToBf16(ReadF32(type, p));
  uint16_t u;
  std::memcpy(&u, p, sizeof(u));
  return u;
}

}  // namespace

size_t PackedPanelBytes(WeightType type, int in_features) {
  const size_t k = static_cast<size_t>(in_features);
  return type == WeightType::kBF16 ? (k + 1) / 2 * kPanelWidth * 2 * sizeof(uint16_t) : k * kPanelWidth * sizeof(float);
}

void PackPanel(DType source_type, const std::byte* rows, int num_rows, int in_features, WeightType type,
               std::byte* out) {
  std::memset(out, 0, PackedPanelBytes(type, in_features));
  const size_t element = DTypeBytes(source_type);
  const size_t k_count = static_cast<size_t>(in_features);
  for (size_t n = 0; n < static_cast<size_t>(num_rows); ++n) {
    const std::byte* row = rows + n * k_count * element;
    if (type == WeightType::kF32) {
      float* to = reinterpret_cast<float*>(out) + n;
      for (size_t k = 0; k < k_count; ++k) to[k * kPanelWidth] = ReadF32(source_type, row + k * element);
    } else {
      uint16_t* to = reinterpret_cast<uint16_t*>(out) + 2 * n;
      for (size_t k = 0; k < k_count; ++k) {
        to[k / 2 * 2 * kPanelWidth + k % 2] = ReadBf16(source_type, row + k * element);
      }
    }
  }
}

}  // namespace scion::kernels

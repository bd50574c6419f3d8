// Packing of weights into panels.
#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include "engine/kernels/ggml_blocks.h"
#include "engine/kernels/kernels.h"
#include "engine/kernels/packed_blocks.h"

namespace scion::kernels {
namespace {

// Rows go into their column of the panel: n is the feature's number in the panel.

void PackF32(const float* row, size_t k_count, size_t n, size_t width, std::byte* out) {
  float* to = reinterpret_cast<float*>(out) + n;
  for (size_t k = 0; k < k_count; ++k) to[k * width] = row[k];
}

void PackHalves(WeightType type, const uint16_t* row, size_t k_count, size_t n, std::byte* out) {
  uint16_t* to = reinterpret_cast<uint16_t*>(out);
  for (size_t k = 0; k < k_count; ++k) {
    const size_t place = type == WeightType::kBF16 ? 2 * n + k % 2 : n / 16 * 32 + k % 2 * 16 + n % 16;
    to[k / 2 * 2 * kPanelWidth + place] = row[k];
  }
}

// `unit`: where the block's unit begins.
template <WeightType kType>
void PackBlock(const BlockCodes& block, size_t n, std::byte* unit, std::byte* out) {
  using Format = BlockFormat<kType>;
  uint8_t* bytes = reinterpret_cast<uint8_t*>(out);
  const auto set_half = [n](std::byte* halves, float x) { reinterpret_cast<uint16_t*>(halves)[n] = F32ToF16(x); };
  const auto set_subs = [&](size_t at) {
    for (size_t i = 0; i < 2; ++i) bytes[at + i * kPanelWidth + n] = static_cast<uint8_t>(block.sub_scale[i]);
  };
  if constexpr (Format::kSuper) {
    set_half(unit, block.super_scale);
    set_half(unit + Format::kSuperMins, block.super_min);
    set_subs(Format::kScales);
  } else if constexpr (Format::kSixBits) {
    set_half(out + Format::kScales, block.super_scale);
    set_subs(Format::kSubScales);
  } else {
    set_half(out + Format::kScales, block.scale[0]);
    if constexpr (Format::kHasMin) set_half(out + Format::kMins, block.min);
  }
  constexpr size_t kStep = kPanelWidth * 4;
  uint8_t* codes = bytes + n * 4;
  for (size_t k = 0; k < kBlockElements; ++k) {
    const uint8_t code = block.codes[k];
    const size_t byte = k % 4;
    if constexpr (Format::kSixBits) {
      uint8_t* half = codes + k / 16 * 3 * kStep;
      const size_t quad = k % 16 / 4;
      half[byte] |= static_cast<uint8_t>(code >> 4 << (quad * 2));
      half[(1 + quad / 2) * kStep + byte] |= static_cast<uint8_t>((code & 15) << (quad % 2 * 4));
    } else if constexpr (Format::kFourBits) {
      codes[k % 16 / 4 * kStep + byte] |= static_cast<uint8_t>(code << (k / 16 * 4));
    } else {
      codes[k / 4 * kStep + byte] = code;
    }
  }
}

template <WeightType kType>
void PackBlocks(DType source_type, const std::byte* row, int in_features, size_t n, std::byte* out) {
  using Format = BlockFormat<kType>;
  BlockCodes block;
  for (int b = 0; b < in_features / kBlockElements; ++b) {
    ReadBlock(source_type, row, b, block);
    std::byte* unit = out + static_cast<size_t>(b / Format::kBlocksPerUnit) * Format::kUnitBytes;
    const size_t in_unit = static_cast<size_t>(b % Format::kBlocksPerUnit) * Format::kBytes;
    PackBlock<kType>(block, n, unit, unit + Format::kSuperBytes + in_unit);
  }
}

void PackBlocks(WeightType type, DType source_type, const std::byte* row, int in_features, size_t n, std::byte* out) {
  ForBlockedType(type, [&]<WeightType kType>() { PackBlocks<kType>(source_type, row, in_features, n, out); });
}

}  // namespace

std::string_view WeightTypeName(WeightType type) {
  switch (type) {
    case WeightType::kBF16:
      return "bf16";
    case WeightType::kF32:
      return "f32";
    case WeightType::kF16:
      return "f16";
    case WeightType::kQ8:
      return "q8";
    case WeightType::kQ8Min:
      return "q8min";
    case WeightType::kQ8Super:
      return "q8super";
    case WeightType::kQ4:
      return "q4";
    case WeightType::kQ4Min:
      return "q4min";
    case WeightType::kQ4Super:
      return "q4super";
    case WeightType::kQ6:
      return "q6";
  }
  return "?";
}

std::optional<WeightType> ExactWeightType(DType type) {
  switch (type) {
    case DType::kF32:
      return WeightType::kF32;
    case DType::kF16:
      return WeightType::kF16;
    case DType::kBF16:
      return WeightType::kBF16;
    case DType::kQ8_0:
    case DType::kQ5_0:
      return WeightType::kQ8;
    case DType::kQ5_1:
      return WeightType::kQ8Min;
    case DType::kQ5K:
      return WeightType::kQ8Super;
    case DType::kQ6K:
      return WeightType::kQ6;
    case DType::kQ4_0:
      return WeightType::kQ4;
    case DType::kQ4_1:
      return WeightType::kQ4Min;
    case DType::kQ4K:
      return WeightType::kQ4Super;
    default:
      return std::nullopt;
  }
}

size_t PackedPanelBytes(WeightType type, int in_features) {
  const size_t k = static_cast<size_t>(in_features);
  if (type == WeightType::kF32) return k * kPanelWidth * sizeof(float);
  if (!IsBlocked(type)) return (k + 1) / 2 * kPanelWidth * 2 * sizeof(uint16_t);
  return ForBlockedType(type, [k]<WeightType kType>() {
    using Format = BlockFormat<kType>;
    constexpr size_t kElements = size_t{kBlockElements} * Format::kBlocksPerUnit;
    return (k + kElements - 1) / kElements * Format::kUnitBytes;
  });
}

void PackPanel(DType source_type, const std::byte* rows, int num_rows, int in_features, WeightType type,
               std::byte* out) {
  std::memset(out, 0, PackedPanelBytes(type, in_features));
  const size_t k_count = static_cast<size_t>(in_features);
  const size_t row_bytes = DTypeRowBytes(source_type, k_count);
  std::vector<float> values(k_count);
  std::vector<uint16_t> halves(k_count);
  std::vector<std::byte> rounded;
  for (int n = 0; n < num_rows; ++n) {
    const std::byte* row = rows + static_cast<size_t>(n) * row_bytes;
    if (IsBlocked(type) && ExactWeightType(source_type) == type) {
      PackBlocks(type, source_type, row, in_features, static_cast<size_t>(n), out);
      continue;
    }
    if (!IsBlocked(type) && type != WeightType::kF32 && ExactWeightType(source_type) == type) {
      std::memcpy(halves.data(), row, row_bytes);
      PackHalves(type, halves.data(), k_count, static_cast<size_t>(n), out);
      continue;
    }
    DequantizeRow(source_type, row, in_features, values.data());
    if (type == WeightType::kF32) {
      PackF32(values.data(), k_count, static_cast<size_t>(n),
              static_cast<size_t>(num_rows <= kNarrowWidth ? kNarrowWidth : kPanelWidth), out);
      continue;
    }
    if (!IsBlocked(type)) {
      std::transform(values.begin(), values.end(), halves.begin(), type == WeightType::kBF16 ? F32ToBf16 : F32ToF16);
      PackHalves(type, halves.data(), k_count, static_cast<size_t>(n), out);
      continue;
    }
    const DType block_type = type == WeightType::kQ8 ? DType::kQ8_0 : DType::kQ4_0;
    rounded.resize(DTypeRowBytes(block_type, k_count));
    QuantizeRow(block_type, values.data(), in_features, rounded.data());
    PackBlocks(type, block_type, rounded.data(), in_features, static_cast<size_t>(n), out);
  }
}

}  // namespace scion::kernels

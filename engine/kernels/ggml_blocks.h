// The block types of quantised weights, as GGML lays them out (ggml-common.h, ggml-quants.c of ggml): their values, and
// the rounding of fp32 rows to Q8_0 and Q4_0.
#pragma once

#include <cstddef>
#include <cstdint>

#include "engine/base/dtype.h"

namespace scion::kernels {

// Elements of a packed block. Every block type is a sequence of those: value = scale * (code - offset) + min.
inline constexpr int kBlockElements = 32;

// What one block of 32 elements holds, before packing.
struct BlockCodes {
  uint8_t codes[kBlockElements];
  int offset;      // 128 for 8-bit codes that stand for signed bytes, 32 for Q6_K, 8 for Q4_0, else 0
  float scale[2];  // of elements 0..15 and 16..31: equal but for Q6_K
  float min;       // 0 for types without
  // Q6_K, Q5_K and Q4_K only: scale[i] = super_scale * sub_scale[i], exactly. But for Q6_K, sub_scale[1] is that of
  // min.
  float super_scale;
  float super_min;
  int8_t sub_scale[2];
};

// Block `index` (of 32 elements) of a row of a quantised type.
void ReadBlock(DType type, const std::byte* row, int index, BlockCodes& out);

// The values of a row of any float or quantised type, exactly; `elements` is a multiple of the type's block.
void DequantizeRow(DType type, const std::byte* row, int elements, float* out);

// Rounds a row to kQ8_0 or kQ4_0 by GGML's rule; `elements` is a multiple of 32. A value that is not finite makes a
// block of unspecified values.
void QuantizeRow(DType type, const float* x, int elements, std::byte* out);

}  // namespace scion::kernels

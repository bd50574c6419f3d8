#include "engine/kernels/ggml_blocks.h"

#include <cmath>
#include <cstring>

namespace scion::kernels {
namespace {

float HalfAt(const std::byte* p) {
  uint16_t h;
  std::memcpy(&h, p, sizeof(h));
  return F16ToF32(h);
}

const uint8_t* BytesAt(const std::byte* p) { return reinterpret_cast<const uint8_t*>(p); }

// Sixteen bytes of two nibbles: the low ones are elements 0..15, the high ones 16..31.
void SplitNibbles(const uint8_t* packed, uint8_t* codes) {
  for (int j = 0; j < 16; ++j) {
    codes[j] = packed[j] & 0x0f;
    codes[j + 16] = packed[j] >> 4;
  }
}

// Bit j of `high` is the fifth bit of element j.
void AddFifthBits(const uint8_t* high, uint8_t* codes) {
  uint32_t bits;
  std::memcpy(&bits, high, sizeof(bits));
  for (int j = 0; j < kBlockElements; ++j) codes[j] = static_cast<uint8_t>(codes[j] | ((bits >> j) & 1u) << 4);
}

// The 6-bit scale and min of sub-block j of Q4_K and Q5_K, out of 12 bytes.
void SubBlockScale(const uint8_t* packed, int j, int& scale, int& min) {
  if (j < 4) {
    scale = packed[j] & 63;
    min = packed[j + 4] & 63;
  } else {
    scale = (packed[j + 4] & 0x0f) | (packed[j - 4] >> 6) << 4;
    min = packed[j + 4] >> 4 | (packed[j] >> 6) << 4;
  }
}

void SetScale(float scale, BlockCodes& out) { out.scale[0] = out.scale[1] = scale; }

// Two bytes d, two bytes dmin, 12 bytes of scales; products of an fp16 and six bits are exact in fp32.
void ReadKScales(const std::byte* super, int sub, BlockCodes& out) {
  int scale, min;
  SubBlockScale(BytesAt(super + 4), sub, scale, min);
  out.super_scale = HalfAt(super);
  out.super_min = -HalfAt(super + 2);
  out.sub_scale[0] = static_cast<int8_t>(scale);
  out.sub_scale[1] = static_cast<int8_t>(min);
  SetScale(out.super_scale * static_cast<float>(scale), out);
  out.min = out.super_min * static_cast<float>(min);
}

// Nibbles of 64 elements share 32 bytes: the low ones are the even sub-block.
void ReadKNibbles(const uint8_t* packed, int sub, uint8_t* codes) {
  const uint8_t* pair = packed + sub / 2 * 32;
  for (int j = 0; j < kBlockElements; ++j) codes[j] = sub % 2 == 0 ? pair[j] & 0x0f : pair[j] >> 4;
}

void ReadQ6K(const std::byte* super, int sub, BlockCodes& out) {
  const uint8_t* low = BytesAt(super) + sub / 4 * 64 + sub % 2 * 32;
  const uint8_t* high = BytesAt(super + 128) + sub / 4 * 32;
  const int8_t* scales = reinterpret_cast<const int8_t*>(super + 192) + sub * 2;
  const int quarter = sub % 4;
  for (int j = 0; j < kBlockElements; ++j) {
    const int nibble = quarter < 2 ? low[j] & 0x0f : low[j] >> 4;
    out.codes[j] = static_cast<uint8_t>(nibble | ((high[j] >> (2 * quarter)) & 3) << 4);
  }
  out.super_scale = HalfAt(super + 208);
  for (int half = 0; half < 2; ++half) {
    out.sub_scale[half] = scales[half];
    out.scale[half] = out.super_scale * static_cast<float>(scales[half]);
  }
}

}  // namespace

void ReadBlock(DType type, const std::byte* row, int index, BlockCodes& out) {
  const int per_block = DTypeBlockElements(type) / kBlockElements;
  const std::byte* block = row + static_cast<size_t>(index / per_block) * DTypeBytes(type);
  const int sub = index % per_block;
  out.offset = 0;
  out.min = 0.0f;
  switch (type) {
    case DType::kQ8_0:
      out.offset = 128;
      SetScale(HalfAt(block), out);
      for (int j = 0; j < kBlockElements; ++j) out.codes[j] = BytesAt(block + 2)[j] ^ 0x80;
      return;
    case DType::kQ4_0:
      out.offset = 8;
      SetScale(HalfAt(block), out);
      SplitNibbles(BytesAt(block + 2), out.codes);
      return;
    case DType::kQ4_1:
      SetScale(HalfAt(block), out);
      out.min = HalfAt(block + 2);
      SplitNibbles(BytesAt(block + 4), out.codes);
      return;
    case DType::kQ5_0:
      out.offset = 128;
      SetScale(HalfAt(block), out);
      SplitNibbles(BytesAt(block + 6), out.codes);
      AddFifthBits(BytesAt(block + 2), out.codes);
      for (uint8_t& code : out.codes) code = static_cast<uint8_t>(code + 128 - 16);
      return;
    case DType::kQ5_1:
      SetScale(HalfAt(block), out);
      out.min = HalfAt(block + 2);
      SplitNibbles(BytesAt(block + 8), out.codes);
      AddFifthBits(BytesAt(block + 4), out.codes);
      return;
    case DType::kQ4K:
      ReadKScales(block, sub, out);
      ReadKNibbles(BytesAt(block + 16), sub, out.codes);
      return;
    case DType::kQ5K:
      ReadKScales(block, sub, out);
      ReadKNibbles(BytesAt(block + 48), sub, out.codes);
      for (int j = 0; j < kBlockElements; ++j) {
        out.codes[j] = static_cast<uint8_t>(out.codes[j] | ((BytesAt(block + 16)[j] >> sub) & 1) << 4);
      }
      return;
    case DType::kQ6K:
      out.offset = 32;
      ReadQ6K(block, sub, out);
      return;
    default:
      return;
  }
}

void DequantizeRow(DType type, const std::byte* row, int elements, float* out) {
  const size_t n = static_cast<size_t>(elements);
  if (type == DType::kF32) {
    std::memcpy(out, row, n * sizeof(float));
    return;
  }
  if (!IsQuantized(type)) {
    for (size_t i = 0; i < n; ++i) {
      uint16_t half;
      std::memcpy(&half, row + i * sizeof(half), sizeof(half));
      out[i] = type == DType::kBF16 ? Bf16ToF32(half) : F16ToF32(half);
    }
    return;
  }
  BlockCodes block;
  for (int b = 0; b < elements / kBlockElements; ++b) {
    ReadBlock(type, row, b, block);
    for (int j = 0; j < kBlockElements; ++j) {
      out[b * kBlockElements + j] = block.scale[j / 16] * static_cast<float>(block.codes[j] - block.offset) + block.min;
    }
  }
}

void QuantizeRow(DType type, const float* x, int elements, std::byte* out) {
  for (int b = 0; b < elements / kBlockElements; ++b, x += kBlockElements, out += DTypeBytes(type)) {
    float largest = 0.0f;  // in magnitude, with its sign
    for (int j = 0; j < kBlockElements; ++j) {
      if (std::fabs(x[j]) > std::fabs(largest)) largest = x[j];
    }
    const float scale = type == DType::kQ8_0 ? std::fabs(largest) / 127.0f : largest / -8.0f;
    const float inverse = scale != 0.0f ? 1.0f / scale : 0.0f;
    const uint16_t half = F32ToF16(scale);
    std::memcpy(out, &half, sizeof(half));
    uint8_t* codes = reinterpret_cast<uint8_t*>(out + 2);
    for (int j = 0; j < (type == DType::kQ8_0 ? kBlockElements : 16); ++j) {
      if (type == DType::kQ8_0) {
        const float rounded = std::round(x[j] * inverse);
        codes[j] = static_cast<uint8_t>(static_cast<int8_t>(rounded >= -128.0f && rounded <= 127.0f ? rounded : 0.0f));
        continue;
      }
      const auto nibble = [&](float v) {
        const float shifted = v * inverse + 8.5f;
        return static_cast<uint8_t>(shifted >= 15.0f ? 15 : shifted > 0.0f ? static_cast<int>(shifted) : 0);
      };
      codes[j] = static_cast<uint8_t>(nibble(x[j]) | nibble(x[j + 16]) << 4);
    }
  }
}

}  // namespace scion::kernels

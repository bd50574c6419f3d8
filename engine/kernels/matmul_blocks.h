// matmul's inner part for blocked weights: dot products of 8-bit integers within a block of 32, exact; then one
// multiply-add per block into the output's fp32 accumulator. Included after a simd_*.h; see there.
//
// For each block in ascending order:   acc += (scale_x * float(sum_k (code_w - offset) * code_x)) * scale_w
//                                      acc += (scale_x * sum_k code_x) * min_w          where the type has mins
// with a half block in place of a block where the type has a scale for each half. The integers are exact in any order,
// so all tiers that fuse the multiply-add give the same bits.
#pragma once

#include "engine/kernels/packed_blocks.h"
#include "engine/kernels/tiling.h"

namespace scion::kernels {
namespace {

// Rounds 32 activations to int8 by their largest magnitude. A row that is not finite keeps that visible in its scale.
SCION_KERNEL void PrepareBlock(const float* x, int n, ActivationBlock* out) {
  const F32x16 low = LoadPartial(x, n < 16 ? n : 16);
  const F32x16 high = LoadPartial(x + 16, n < 16 ? 0 : n - 16);
  const F32x16 zero = Set1(0.0f);
  const F32x16 abs_low = Max(low, Sub(zero, low)), abs_high = Max(high, Sub(zero, high));
  const float largest = ReduceMax(Max(abs_low, abs_high));
  const F32x16 infinity = Set1(__builtin_inff());
  const bool finite = (MaskBits(Less(abs_low, infinity)) & MaskBits(Less(abs_high, infinity))) == 0xffff;
  const float scale = largest * (1.0f / 127.0f);
  const F32x16 inverse = Set1(finite && largest > 0.0f ? 127.0f / largest : 0.0f);
  // Adding 1.5 * 2^23 rounds to an integer, to nearest even; the sums of the integers are exact.
  const F32x16 shift = Set1(0x1.8p23f);
  const auto rounded = [&](F32x16 v) {
    return Sub(Add(Max(Min(Mul(v, inverse), Set1(127.0f)), Set1(-127.0f)), shift), shift);
  };
  const F32x16 codes_low = rounded(low), codes_high = rounded(high);
  StoreInt8(out->codes, codes_low);
  StoreInt8(out->codes + 16, codes_high);
  const int32_t sum_low = static_cast<int32_t>(ReduceAdd(codes_low));
  const int32_t sum_high = static_cast<int32_t>(ReduceAdd(codes_high));
  out->scale = finite ? scale : __builtin_nanf("");
  out->scaled_sum = out->scale * static_cast<float>(sum_low + sum_high);
  out->bias8 = -8 * (sum_low + sum_high);
  out->bias128 = -128 * (sum_low + sum_high);
  out->bias128_low = -128 * sum_low;
  out->bias128_high = -128 * sum_high;
  out->unused[0] = out->unused[1] = 0;
}

SCION_KERNEL void PrepareInt8Row(const float* x, int in_features, std::byte* out) {
  ActivationBlock* block = reinterpret_cast<ActivationBlock*>(out);
  for (int i = 0; i < in_features; i += kBlockElements) {
    PrepareBlock(x + i, SmallerOf(kBlockElements, in_features - i), block++);
  }
}

template <WeightType kType>
struct BlockPanels {
  using Format = BlockFormat<kType>;
  static constexpr ActivationForm kForm = ActivationForm::kInt8;
  static constexpr int kRowsOfTile = kBlockTileRows;
  static constexpr int kLinesOfTile = kBlockTileLines;
  static constexpr int kFullWidth = kBlockFullWidthRows;
  static constexpr size_t kUnitBytes = Format::kBytes;
  static constexpr size_t kUnitActivationBytes = sizeof(ActivationBlock);
  static constexpr size_t kStreamAhead = Format::kHalfPrecisionScale ? 0 : 16384;

  static SCION_KERNEL int Units(int in_features) { return (in_features + kBlockElements - 1) / kBlockElements; }

  static SCION_KERNEL const ActivationBlock& BlockOf(const std::byte* x, size_t x_row_bytes, int row) {
    return *reinterpret_cast<const ActivationBlock*>(x + static_cast<size_t>(row) * x_row_bytes);
  }

  // dots += the products of a step's lines with the activations at `quad`, of all rows.
  template <int kRows, int kLines>
  static SCION_KERNEL void DotStep(const U32x16 (&w)[kLines], const std::byte* x, size_t x_row_bytes, int quad,
                                   U32x16 (&dots)[kRows][kLines]) {
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const U32x16 codes = SetBits(*reinterpret_cast<const int32_t*>(BlockOf(x, x_row_bytes, r).codes + 4 * quad));
#pragma GCC unroll 4
      for (int l = 0; l < kLines; ++l) dots[r][l] = AddDots<Format>(dots[r][l], w[l], codes);
    }
  }

  // acc += scale_w * (scale_x * dots). `scales`: of this tile's lines.
  template <int kRows, int kLines>
  static SCION_KERNEL void AddScaledDots(const std::byte* scales, const std::byte* x, size_t x_row_bytes,
                                         const U32x16 (&dots)[kRows][kLines], F32x16 (&acc)[kRows][kLines]) {
    F32x16 w_scale[kLines];
#pragma GCC unroll 4
    for (int l = 0; l < kLines; ++l) w_scale[l] = LoadScale(scales + static_cast<size_t>(l) * kScaleLineBytes);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const F32x16 x_scale = Set1(BlockOf(x, x_row_bytes, r).scale);
#pragma GCC unroll 4
      for (int l = 0; l < kLines; ++l) {
        const F32x16 total = IntToF32(TotalDots<Format>(dots[r][l]));
        acc[r][l] = MulAdd(Mul(x_scale, total), w_scale[l], acc[r][l]);
      }
    }
  }

  static constexpr size_t kScaleLineBytes = Format::kHalfPrecisionScale ? 32 : 64;
  static SCION_KERNEL F32x16 LoadScale(const std::byte* scales) {
    return Format::kHalfPrecisionScale ? LoadF16(scales) : Load(scales);
  }

  // What a block's integer sums start from, so that they come out as if the codes were signed.
  static SCION_KERNEL int32_t Bias(const ActivationBlock& block, int part) {
    if (Format::kHasHalves) return part == 0 ? block.bias128_low : block.bias128_high;
    return Format::kOffset == 8 ? block.bias8 : Format::kOffset == 128 ? block.bias128 : 0;
  }

  template <int kRows, int kLines>
  static inline void AccumulateTile(const std::byte* weights, int line, int units, const std::byte* x,
                                    size_t x_row_bytes, bool first, PrefetchStream& prefetch, float* sums) {
    constexpr int kParts = Format::kHasHalves ? 2 : 1;
    constexpr int kPartSteps = Format::kSteps / kParts;
    PrefetchStream ahead = prefetch;
    const std::byte* scales = weights + static_cast<size_t>(line) * kScaleLineBytes;
    const std::byte* codes = weights + Format::kScaleBytes + static_cast<size_t>(line) * kLineBytes;
    F32x16 acc[kRows][kLines];
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int l = 0; l < kLines; ++l) acc[r][l] = first ? Set1(0.0f) : Load(sums + r * kPanelWidth + l * 16);
    }
    for (int u = 0; u < units; ++u) {
      PrefetchNext<static_cast<int>(Format::kScaleBytes / kLineBytes)>(ahead);
#pragma GCC unroll 2
      for (int part = 0; part < kParts; ++part) {
        U32x16 dots[kRows][kLines];
#pragma GCC unroll 16
        for (int r = 0; r < kRows; ++r) {
          const U32x16 start = StartDots<Format>(Bias(BlockOf(x, x_row_bytes, r), part));
#pragma GCC unroll 4
          for (int l = 0; l < kLines; ++l) dots[r][l] = start;
        }
#pragma GCC unroll 8
        for (int s = part * kPartSteps; s < (part + 1) * kPartSteps; ++s) {
          U32x16 w[kLines];
#pragma GCC unroll 4
          for (int l = 0; l < kLines; ++l) {
            w[l] = LoadBits(codes + static_cast<size_t>(s * kPanelLines + l) * kLineBytes);
          }
          PrefetchNext<kPanelLines>(ahead);
          if constexpr (Format::kFourBits) {
            U32x16 half[kLines];
#pragma GCC unroll 4
            for (int l = 0; l < kLines; ++l) half[l] = AndBits(w[l], 0x0f0f0f0fu);
            DotStep<kRows, kLines>(half, x, x_row_bytes, s, dots);
#pragma GCC unroll 4
            for (int l = 0; l < kLines; ++l) half[l] = AndBits(ShiftRight<4>(w[l]), 0x0f0f0f0fu);
            DotStep<kRows, kLines>(half, x, x_row_bytes, s + 4, dots);
          } else {
            DotStep<kRows, kLines>(w, x, x_row_bytes, s, dots);
          }
        }
        AddScaledDots<kRows, kLines>(scales + (part == 1 ? kPanelWidth * sizeof(float) : 0), x, x_row_bytes, dots, acc);
      }
      if constexpr (Format::kHasMin) {
        F32x16 min[kLines];
#pragma GCC unroll 4
        for (int l = 0; l < kLines; ++l) {
          min[l] = Load(scales + kPanelWidth * sizeof(float) + static_cast<size_t>(l) * kLineBytes);
        }
#pragma GCC unroll 16
        for (int r = 0; r < kRows; ++r) {
          const F32x16 sum = Set1(BlockOf(x, x_row_bytes, r).scaled_sum);
#pragma GCC unroll 4
          for (int l = 0; l < kLines; ++l) acc[r][l] = MulAdd(sum, min[l], acc[r][l]);
        }
      }
      scales += Format::kBytes;
      codes += Format::kBytes;
      x += sizeof(ActivationBlock);
    }
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int l = 0; l < kLines; ++l) Store(sums + r * kPanelWidth + l * 16, acc[r][l]);
    }
    prefetch = ahead;
  }
};

}  // namespace
}  // namespace scion::kernels

// matmul's inner part for blocked weights: dot products of 8-bit integers within a block of 32, exact; then one
// multiply-add per block into the output's fp32 accumulator. Included after a simd_*.h; see there.
//
// For each block in ascending order:   acc += (scale_x * float(sum_k (code_w - offset) * code_x)) * scale_w
//                                      acc += (scale_x * sum_k code_x) * min_w          where the type has mins
// with a half block in place of a block where the type has a scale for each half. The integers are exact in any order,
// so all tiers that fuse the multiply-add give the same bits.
#pragma once

#include "engine/kernels/dots.h"
#include "engine/kernels/packed_blocks.h"
#include "engine/kernels/tiling.h"

namespace scion::kernels {
namespace {

// Rounds 32 activations to int8 by their largest magnitude. A block that is not finite keeps that visible in its scale;
// one whose scale has no inverse is 0.
SCION_KERNEL void PrepareBlock(F32x16 low, F32x16 high, ActivationBlock* out) {
  const float largest = LargestMagnitude(low, high);
  const bool finite = largest < __builtin_inff();
  const F32x16 inverse = Set1(finite && largest > 0x1p-120f ? 127.0f / largest : 0.0f);
  const CodeSums sums = finite ? StoreCodes(out->codes, Mul(low, inverse), Mul(high, inverse))
                               : StoreCodes(out->codes, Set1(0.0f), Set1(0.0f));
  const int32_t sum = sums.low + sums.high;
  const float scale = finite ? largest * (1.0f / 127.0f) : __builtin_nanf("");
  out->scale = scale;
  out->scaled_sum = scale * static_cast<float>(sum);
  out->bias8 = -8 * sum;
  out->bias128 = -128 * sum;
  out->bias32[0] = -32 * sums.low;
  out->bias32[1] = -32 * sums.high;
  out->unused[0] = out->unused[1] = 0;
}

SCION_KERNEL void PrepareInt8Row(const float* x, int in_features, std::byte* out) {
  ActivationBlock* block = reinterpret_cast<ActivationBlock*>(out);
  int i = 0;
  for (; i + kBlockElements <= in_features; i += kBlockElements) {
    PrepareBlock(Load(x + i), Load(x + i + 16), block++);
  }
  const int n = in_features - i;
  if (n > 0) PrepareBlock(LoadPartial(x + i, SmallerOf(n, 16)), LoadPartial(x + i + 16, n < 16 ? 0 : n - 16), block);
}

template <WeightType kType>
struct BlockPanels {
  using Format = BlockFormat<kType>;
  static constexpr ActivationForm kForm = ActivationForm::kInt8;
  static constexpr int kRowsOfTile = kBlockTileRows;
  static constexpr int kUnitLines = kPanelLines;
  static constexpr int kLinesOfTile = kBlockTileLines;
  static constexpr int kFullWidth = kBlockFullWidthRows;
  static constexpr size_t kUnitBytes = Format::kUnitBytes;
  static_assert(Format::kBytes % kLineBytes == 0 && Format::kSuperBytes % kLineBytes == 0);  // LoadBitsOnce faults else
  static constexpr size_t kUnitActivationBytes = Format::kBlocksPerUnit * sizeof(ActivationBlock);
  static constexpr bool kEightBits = !Format::kFourBits && !Format::kSixBits;
  static constexpr bool kAsksTwice = kEightBits;

  // Of 4-bit codes with three rows, so much is computed between two lines that the processor has too few of them
  // in flight; beyond the page that it is in, it doesn't fetch by itself.
  static SCION_KERNEL size_t StreamAhead(int rows) {
    if (kEightBits) return 2048;
    return Format::kFourBits && rows > 2 ? 6400 : 0;
  }

  static SCION_KERNEL int Units(int in_features) {
    constexpr int kElements = kBlockElements * Format::kBlocksPerUnit;
    return (in_features + kElements - 1) / kElements;
  }

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

  // A line's fp16 are this far from those of the line before, its int8 half as far.
  static constexpr size_t kHalfLineBytes = 32;

  // The scales of a line of features for one part of a block. `scales`: the line's fp16; `sub_scales`: its int8.
  static SCION_KERNEL F32x16 LoadScale(const std::byte* scales, const std::byte* sub_scales, int part) {
    if constexpr (!Format::kSixBits && !Format::kSuper) return LoadF16(scales);
    return Mul(LoadF16(scales), IntToF32(LoadInt8(sub_scales + part * kPanelWidth)));
  }

  static SCION_KERNEL F32x16 LoadMin(const std::byte* scales, const std::byte* sub_scales) {
    if constexpr (!Format::kSuper) return LoadF16(scales + (Format::kMins - Format::kScales));
    return Mul(LoadF16(scales + Format::kSuperMins), IntToF32(LoadInt8(sub_scales + kPanelWidth)));
  }

  // acc += scale_w * (scale_x * dots). `scales`, `sub_scales`: of this tile's lines.
  template <int kRows, int kLines>
  static SCION_KERNEL void AddScaledDots(const std::byte* scales, const std::byte* sub_scales, int part,
                                         const std::byte* x, size_t x_row_bytes, const U32x16 (&dots)[kRows][kLines],
                                         F32x16 (&acc)[kRows][kLines]) {
    F32x16 w_scale[kLines];
#pragma GCC unroll 4
    for (int l = 0; l < kLines; ++l) {
      const size_t line = static_cast<size_t>(l);
      w_scale[l] = LoadScale(scales + line * kHalfLineBytes, sub_scales + line * kHalfLineBytes / 2, part);
    }
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

  // What a block's integer sums start from, so that they come out as if the codes were signed.
  static SCION_KERNEL int32_t Bias(const ActivationBlock& block, int part) {
    if (Format::kSixBits) return block.bias32[part];
    return Format::kOffset == 8 ? block.bias8 : Format::kOffset == 128 ? block.bias128 : 0;
  }

  // The two high bits of quad kQuad of a part, moved above its nibbles.
  template <int kQuad>
  static SCION_KERNEL U32x16 HighBits(U32x16 w) {
    if constexpr (kQuad == 2) return AndBits(w, 0x30303030u);
    if constexpr (kQuad == 3) return AndBits(ShiftRight<2>(w), 0x30303030u);
    return AndBits(ShiftLeft<4 - 2 * kQuad>(w), 0x30303030u);
  }

  // dots += the products of quads kQuad and kQuad + 1 of a part of six-bit codes. `codes`: of this tile's lines.
  template <int kQuad, bool kOnce, int kRows, int kLines>
  static SCION_KERNEL void DotSixBits(const std::byte* codes, int part, const std::byte* x, size_t x_row_bytes,
                                      U32x16 (&dots)[kRows][kLines]) {
    const std::byte* high = codes + static_cast<size_t>(3 * part) * kStepBytes;
    const std::byte* low = high + static_cast<size_t>(1 + kQuad / 2) * kStepBytes;
    U32x16 six[kLines];
#pragma GCC unroll 4
    for (int l = 0; l < kLines; ++l) {
      const size_t at = static_cast<size_t>(l) * kLineBytes;
      six[l] = OrBits(HighBits<kQuad>(LoadLine<kOnce>(high + at)), AndBits(LoadLine<kOnce>(low + at), 0x0f0f0f0fu));
    }
    DotStep<kRows, kLines>(six, x, x_row_bytes, 4 * part + kQuad, dots);
#pragma GCC unroll 4
    for (int l = 0; l < kLines; ++l) {
      const size_t at = static_cast<size_t>(l) * kLineBytes;
      six[l] = OrBits(AndBits(ShiftRight<4>(LoadLine<kOnce>(low + at)), 0x0f0f0f0fu),
                      HighBits<kQuad + 1>(LoadLine<kOnce>(high + at)));
    }
    DotStep<kRows, kLines>(six, x, x_row_bytes, 4 * part + kQuad + 1, dots);
  }

  template <int kRows, int kLines, bool kOnce>
  static inline void AccumulateTile(const std::byte* weights, int line, int units, const std::byte* x,
                                    size_t x_row_bytes, bool first, PrefetchStream& prefetch, float* sums) {
    constexpr int kPartSteps = Format::kSteps / Format::kParts;
    PrefetchStream ahead = prefetch;
    // Of a unit, or of a block: fp16, int8 and codes of this tile's lines.
    const std::byte* scales =
        weights + (Format::kSuper ? 0 : Format::kScales) + static_cast<size_t>(line) * kHalfLineBytes;
    const std::byte* sub_scales = weights + Format::kSuperBytes +
                                  (Format::kSuper ? Format::kScales : Format::kSubScales) +
                                  static_cast<size_t>(line) * kHalfLineBytes / 2;
    const std::byte* codes = weights + Format::kSuperBytes + static_cast<size_t>(line) * kLineBytes;
    F32x16 acc[kRows][kLines];
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int l = 0; l < kLines; ++l) acc[r][l] = first ? Set1(0.0f) : Load(sums + r * kPanelWidth + l * 16);
    }
    for (int u = 0; u < units; ++u) {
      if constexpr (Format::kSuper) {
        // Touched before the codes, which lie after them, so that lines come in order.
        for (size_t l = 0; l < kLines; l += 2) {
          PrefetchToL2(scales + l * kHalfLineBytes);
          PrefetchToL2(scales + l * kHalfLineBytes + Format::kSuperMins);
        }
        PrefetchNext<static_cast<int>(Format::kSuperBytes / kLineBytes)>(ahead);
      }
#pragma GCC unroll 1
      for (int b = 0; b < Format::kBlocksPerUnit; ++b) {
        PrefetchNext<static_cast<int>(Format::kScaleBytes / kLineBytes)>(ahead);
#pragma GCC unroll 2
        for (int part = 0; part < Format::kParts; ++part) {
          U32x16 dots[kRows][kLines];
#pragma GCC unroll 16
          for (int r = 0; r < kRows; ++r) {
            const U32x16 start = StartDots<Format>(Bias(BlockOf(x, x_row_bytes, r), part));
#pragma GCC unroll 4
            for (int l = 0; l < kLines; ++l) dots[r][l] = start;
          }
          if constexpr (Format::kSixBits) {
            DotSixBits<0, kOnce, kRows, kLines>(codes, part, x, x_row_bytes, dots);
            PrefetchNext<kPartSteps * kPanelLines>(ahead);
            DotSixBits<2, kOnce, kRows, kLines>(codes, part, x, x_row_bytes, dots);
          } else {
#pragma GCC unroll 8
            for (int s = 0; s < kPartSteps; ++s) {
              U32x16 w[kLines];
#pragma GCC unroll 4
              for (int l = 0; l < kLines; ++l) {
                w[l] = LoadLine<kOnce>(codes + static_cast<size_t>(s * kPanelLines + l) * kLineBytes);
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
          }
          AddScaledDots<kRows, kLines>(scales, sub_scales, part, x, x_row_bytes, dots, acc);
        }
        if constexpr (Format::kHasMin) {
          F32x16 min[kLines];
#pragma GCC unroll 4
          for (int l = 0; l < kLines; ++l) {
            const size_t at = static_cast<size_t>(l) * kHalfLineBytes;
            min[l] = LoadMin(scales + at, sub_scales + at / 2);
          }
#pragma GCC unroll 16
          for (int r = 0; r < kRows; ++r) {
            const F32x16 sum = Set1(BlockOf(x, x_row_bytes, r).scaled_sum);
#pragma GCC unroll 4
            for (int l = 0; l < kLines; ++l) acc[r][l] = MulAdd(sum, min[l], acc[r][l]);
          }
        }
        if constexpr (!Format::kSuper) scales += Format::kBytes;
        sub_scales += Format::kBytes;
        codes += Format::kBytes;
        x += sizeof(ActivationBlock);
      }
      if constexpr (Format::kSuper) {
        scales += Format::kUnitBytes;
        sub_scales += Format::kSuperBytes;
        codes += Format::kSuperBytes;
      }
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

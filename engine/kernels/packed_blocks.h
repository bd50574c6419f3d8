// How blocked weights lie in a panel; constants only, for packing and for the kernels.
//
// A panel of 64 output features is a sequence of blocks, each 32 values of k:
//
//   scales   kQ8, kQ4: 64 fp16.  kQ8Min, kQ4Min: 64 fp32 scales, 64 fp32 mins.  kQ8Half: 64 fp32 for k 0..15, 64
//   for 16..31 codes    steps of 256 bytes, four lines of 16 features, each line four bytes of a feature after those of
//   the one before:
//            8 bits: step t holds k 4t..4t+3.   4 bits: step t holds k 4t..4t+3 in the low nibbles, 4t+16..4t+19 in the
//            high
//
// so that a line is the operand of vpdpbusd.
#pragma once

#include <cstddef>
#include <cstdint>

#include "engine/kernels/ggml_blocks.h"
#include "engine/kernels/kernels.h"

namespace scion::kernels {

template <WeightType kType>
struct BlockFormat {
  static_assert(IsBlocked(kType));
  static constexpr bool kFourBits = kType == WeightType::kQ4 || kType == WeightType::kQ4Min;
  static constexpr bool kHasMin = kType == WeightType::kQ8Min || kType == WeightType::kQ4Min;
  static constexpr bool kHasHalves = kType == WeightType::kQ8Half;
  static constexpr bool kHalfPrecisionScale = kType == WeightType::kQ8 || kType == WeightType::kQ4;
  static constexpr int kOffset = kHasMin ? 0 : kFourBits ? 8 : 128;
  // What the codes of the types on disk lie between; the padding of a last panel is zero.
  static constexpr int kMinCode = kHasHalves ? 96 : 0;
  static constexpr int kMaxCode = kFourBits ? 15 : kHasMin ? 31 : kHasHalves ? 159 : 255;
  // How many products make one integer sum.
  static constexpr int kDotElements = kHasHalves ? kBlockElements / 2 : kBlockElements;
  static constexpr size_t kScaleBytes =
      kHalfPrecisionScale ? kPanelWidth * sizeof(uint16_t) : 2 * kPanelWidth * sizeof(float);
  static constexpr int kSteps = kFourBits ? 4 : 8;
  static constexpr size_t kBytes = kScaleBytes + size_t{kSteps} * kPanelWidth * 4;
};

// A block of prepared activations: one cache line.
struct ActivationBlock {
  int8_t codes[kBlockElements];
  float scale;           // value = scale * code
  float scaled_sum;      // scale * the sum of the codes
  int32_t bias8;         // -8 * the sum of the codes: takes the offset of unsigned codes out of a dot product
  int32_t bias128;       // -128 * the sum
  int32_t bias128_low;   // -128 * the sum of codes 0..15
  int32_t bias128_high;  // of codes 16..31
  int32_t unused[2];
};
static_assert(sizeof(ActivationBlock) == 64);

}  // namespace scion::kernels

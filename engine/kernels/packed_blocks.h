// How blocked weights lie in a panel; constants only, for packing and for the kernels.
//
// A panel of 64 output features is a sequence of blocks, each 32 values of k; of kQ8Super and kQ4Super, a sequence of
// units, each 64 fp16 scales, 64 fp16 mins and then eight blocks:
//
//   codes    steps of 256 bytes, four lines of 16 features, each line four bytes of a feature after those of the one
//            before:
//            8 bits: step t holds k 4t..4t+3.   4 bits: step t holds k 4t..4t+3 in the low nibbles, 4t+16..4t+19 in the
//            high.   6 bits: three steps for k 0..15, three for 16..31; the first of three holds the two high bits, of
//            k 4q..4q+3 as bits 2q and 2q+1, step t after it the low four bits, of k 8t..8t+3 in the low nibbles, of
//            8t+4..8t+7 in the high
//   scales   kQ8, kQ4: 64 fp16.  kQ8Min, kQ4Min: 64 fp16 scales, 64 fp16 mins.  kQ8Super, kQ4Super: 64 int8 for the
//            scales, 64 for the mins, which are the products with the unit's.  kQ6: 64 fp16, 64 int8 for k 0..15, 64
//            for k 16..31; a scale is the product of the two
//
// so that a line of bytes, or of nibbles once they are masked, is the operand of vpdpbusd, and lines are first touched
// in the order in which they lie: the processor's prefetchers see one stream.
#pragma once

#include <cstddef>
#include <cstdint>

#include "engine/kernels/ggml_blocks.h"
#include "engine/kernels/kernels.h"

namespace scion::kernels {

template <WeightType kType>
struct BlockFormat {
  static_assert(IsBlocked(kType));
  static constexpr bool kFourBits =
      kType == WeightType::kQ4 || kType == WeightType::kQ4Min || kType == WeightType::kQ4Super;
  static constexpr bool kSixBits = kType == WeightType::kQ6;
  static constexpr bool kSuper = kType == WeightType::kQ8Super || kType == WeightType::kQ4Super;
  static constexpr bool kHasMin = kType == WeightType::kQ8Min || kType == WeightType::kQ4Min || kSuper;
  static constexpr int kOffset = kHasMin ? 0 : kSixBits ? 32 : kFourBits ? 8 : 128;
  // The largest code of the types on disk; the padding of a last panel is zero.
  static constexpr int kMaxCode = kSixBits ? 63 : kFourBits ? 15 : kHasMin ? 31 : 255;
  // A block has as many integer sums for each feature as it has scales.
  static constexpr int kParts = kSixBits ? 2 : 1;
  static constexpr int kDotElements = kBlockElements / kParts;
  static constexpr size_t kScaleBytes = kSuper     ? kPanelWidth * 2
                                        : kSixBits ? kPanelWidth * (sizeof(uint16_t) + 2)
                                        : kHasMin  ? kPanelWidth * sizeof(uint16_t) * 2
                                                   : kPanelWidth * sizeof(uint16_t);
  static constexpr int kSteps = kSixBits ? 6 : kFourBits ? 4 : 8;
  static constexpr size_t kScales = size_t{kSteps} * kPanelWidth * 4;  // where they begin
  static constexpr size_t kMins = kScales + kPanelWidth * (kSuper ? 1 : sizeof(uint16_t));
  static constexpr size_t kSubScales = kScales + kPanelWidth * sizeof(uint16_t);  // those of kQ6
  static constexpr size_t kBytes = kScales + kScaleBytes;
  static constexpr int kBlocksPerUnit = kSuper ? 8 : 1;
  static constexpr size_t kSuperMins = kPanelWidth * sizeof(uint16_t);  // after the unit's scales
  static constexpr size_t kSuperBytes = kSuper ? 2 * kSuperMins : 0;
  static constexpr size_t kUnitBytes = kSuperBytes + kBlocksPerUnit * kBytes;
};

// fn.template operator()<kType>() for a type that is known at run time only. type: blocked.
template <typename Fn>
constexpr decltype(auto) ForBlockedType(WeightType type, Fn&& fn) {
  switch (type) {
    case WeightType::kQ8Min:
      return fn.template operator()<WeightType::kQ8Min>();
    case WeightType::kQ8Super:
      return fn.template operator()<WeightType::kQ8Super>();
    case WeightType::kQ4:
      return fn.template operator()<WeightType::kQ4>();
    case WeightType::kQ4Min:
      return fn.template operator()<WeightType::kQ4Min>();
    case WeightType::kQ4Super:
      return fn.template operator()<WeightType::kQ4Super>();
    case WeightType::kQ6:
      return fn.template operator()<WeightType::kQ6>();
    default:
      return fn.template operator()<WeightType::kQ8>();
  }
}

// A block of prepared activations: one cache line.
struct ActivationBlock {
  int8_t codes[kBlockElements];
  float scale;        // value = scale * code
  float scaled_sum;   // scale * the sum of the codes
  int32_t bias8;      // -8 * the sum of the codes: takes the offset of unsigned codes out of a dot product
  int32_t bias128;    // -128 * the sum
  int32_t bias32[2];  // -32 * the sum of codes 0..15, and of codes 16..31
  int32_t unused[2];
};
static_assert(sizeof(ActivationBlock) == 64);

}  // namespace scion::kernels

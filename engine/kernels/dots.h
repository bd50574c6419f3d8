// Dot policies: what matmul does with one step of a panel: four lines of 16 output features (of a gate one). A step
// covers two values of k in bf16, one in fp32. Included after a simd_*.h; see there.
//
// A policy is the only place where tiers of one SIMD width differ, so that the text of matmul.h is the same for all.
#pragma once

#include "engine/kernels/kernels.h"

namespace scion::kernels {
namespace {

// kOnce: the line is not needed again in this step.
template <bool kOnce>
SCION_KERNEL U32x16 LoadLine(const std::byte* line) {
  if constexpr (kOnce) return LoadBitsOnce(line);
  return LoadBits(line);
}

// fp32 weights, fp32 activations.
struct F32Dot {
  static constexpr ActivationForm kForm = ActivationForm::kF32;
  static constexpr size_t kStepActivationBytes = 4;
  using Weights = F32x16;
  using Activation = F32x16;

  static int Steps(int in_features) { return in_features; }
  template <bool kOnce = false>
  static SCION_KERNEL Weights LoadWeights(const std::byte* line) {
    return FromBits(LoadLine<kOnce>(line));
  }
  static SCION_KERNEL Activation Broadcast(const std::byte* x) { return Set1(*reinterpret_cast<const float*>(x)); }
  static SCION_KERNEL F32x16 Accumulate(F32x16 acc, const Weights& w, const Activation& x) { return MulAdd(w, x, acc); }
};

// bf16 weights widened in registers, fp32 activations: the even k first.
struct WidenedBf16Dot {
  static constexpr ActivationForm kForm = ActivationForm::kF32;
  static constexpr size_t kStepActivationBytes = 8;
  struct Pair {
    F32x16 even, odd;
  };
  using Weights = Pair;
  using Activation = Pair;

  static int Steps(int in_features) { return (in_features + 1) / 2; }
  template <bool kOnce = false>
  static SCION_KERNEL Weights LoadWeights(const std::byte* line) {
    const U32x16 pair = LoadLine<kOnce>(line);
    return {FromBits(ShiftLeft<16>(pair)), FromBits(AndBits(pair, 0xffff0000u))};
  }
  static SCION_KERNEL Activation Broadcast(const std::byte* x) {
    const float* f = reinterpret_cast<const float*>(x);
    return {Set1(f[0]), Set1(f[1])};
  }
  static SCION_KERNEL F32x16 Accumulate(F32x16 acc, const Weights& w, const Activation& x) {
    return MulAdd(w.odd, x.odd, MulAdd(w.even, x.even, acc));
  }
};

// fp16 weights widened in registers, fp32 activations. A line holds the even k of 16 features, then the odd.
struct F16Dot {
  static constexpr ActivationForm kForm = ActivationForm::kF32;
  static constexpr size_t kStepActivationBytes = 8;
  struct Pair {
    F32x16 even, odd;
  };
  using Weights = Pair;
  using Activation = Pair;

  static int Steps(int in_features) { return (in_features + 1) / 2; }
  template <bool kOnce = false>
  static SCION_KERNEL Weights LoadWeights(const std::byte* line) {
    return {LoadF16(line), LoadF16(line + 32)};
  }
  static SCION_KERNEL Activation Broadcast(const std::byte* x) {
    const float* f = reinterpret_cast<const float*>(x);
    return {Set1(f[0]), Set1(f[1])};
  }
  static SCION_KERNEL F32x16 Accumulate(F32x16 acc, const Weights& w, const Activation& x) {
    return MulAdd(w.odd, x.odd, MulAdd(w.even, x.even, acc));
  }
};

}  // namespace
}  // namespace scion::kernels

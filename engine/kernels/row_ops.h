// Kernels on one row: RMS norm, scaled addition, log-sum-exp, argmax. Included after a simd_*.h; see there.
#pragma once

#include <cmath>

#include "engine/kernels/kernels.h"
#include "engine/kernels/vector_math.h"

namespace scion::kernels {
namespace {

SCION_KERNEL F32x16 LoadRow(const float* x, int i, int n) {
  return n - i >= 16 ? Load(x + i) : LoadPartial(x + i, n - i);
}
SCION_KERNEL void StoreRow(float* x, F32x16 v, int i, int n) {
  if (n - i >= 16) {
    Store(x + i, v);
  } else {
    StorePartial(x + i, v, n - i);
  }
}

inline void RmsNorm(const float* x, const float* weight, float eps, int n, float* out) {
  F32x16 squares = Set1(0.0f);
  for (int i = 0; i < n; i += 16) {
    const F32x16 v = LoadRow(x, i, n);
    squares = MulAdd(v, v, squares);
  }
  const float mean = ReduceAdd(squares) / static_cast<float>(n);
  const F32x16 scale = Set1(1.0f / __builtin_sqrtf(mean + eps));
  for (int i = 0; i < n; i += 16) StoreRow(out, Mul(Mul(LoadRow(x, i, n), scale), LoadRow(weight, i, n)), i, n);
}

// Rows are mostly added one after another, and the processor fetches nothing by itself beyond the page that it is in.
inline void AddScaled(float* acc, const float* x, float scale, int n) {
  for (int i = 0; i < n; i += 16) {
    PrefetchToL2(x + i + n);
    PrefetchToL2(acc + i + n);
    StoreRow(acc, MulAdd(Set1(scale), LoadRow(x, i, n), LoadRow(acc, i, n)), i, n);
  }
}

// NaNs are left out; -inf if there is nothing else.
inline float LargestOf(const float* x, int n) {
  const F32x16 minus_infinity = Set1(-__builtin_inff());
  F32x16 largest = minus_infinity;
  for (int i = 0; i < n; i += 16) largest = Max(Select(FirstLanes(n - i), LoadRow(x, i, n), minus_infinity), largest);
  return ReduceMax(largest);
}

inline float LogSumExp(const float* x, int n) {
  const float largest = LargestOf(x, n);
  const float shift = __builtin_isinf(largest) ? 0.0f : largest;  // inf - inf would make a NaN of an honest infinity
  F32x16 sum = Set1(0.0f);
  for (int i = 0; i < n; i += 16) {
    const F32x16 v = Select(FirstLanes(n - i), LoadRow(x, i, n), Set1(-__builtin_inff()));
    sum = Add(sum, Exp(Sub(v, Set1(shift))));
  }
  return shift + ::logf(ReduceAdd(sum));
}

inline int Argmax(const float* x, int n) {
  const F32x16 largest = Set1(LargestOf(x, n));
  for (int i = 0; i < n; i += 16) {
    uint32_t equal = MaskBits(Equal(LoadRow(x, i, n), largest));
    if (n - i < 16) equal &= (1u << (n - i)) - 1u;
    if (equal != 0) return i + __builtin_ctz(equal);
  }
  return 0;  // all NaN
}

}  // namespace
}  // namespace scion::kernels

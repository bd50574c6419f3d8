// Sixteen fp32 lanes in plain C++ (vector extensions of 16 bytes, which every target has): multiply, then add.
//
// simd_avx2.h and simd_avx512.h offer the same functions. The kernel texts (vector_math.h, matmul.h, ...) are written
// against them; a tier's source file includes one of the three first. Everything has internal linkage: see
// CMakeLists.txt.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "engine/base/dtype.h"

#define SCION_KERNEL inline __attribute__((always_inline))

namespace scion::kernels {
namespace {

typedef float F32x4 __attribute__((vector_size(16)));
typedef uint32_t U32x4 __attribute__((vector_size(16)));

struct F32x16 {
  F32x4 part[4];
};
struct U32x16 {
  U32x4 part[4];
};
struct Mask16 {  // all ones or all zeros per lane
  U32x4 part[4];
};

// The largest register tile of matmul: rows x lines of 16 output features.
constexpr int kTileRows = 2;
constexpr int kTileLines = 1;
// Up to this many rows a tile spans all lines of a panel.
constexpr int kFullWidthRows = 0;
// The same of blocked weights.
constexpr int kBlockTileRows = 2;
constexpr int kBlockTileLines = 1;
constexpr int kBlockFullWidthRows = 0;
// Query heads that attention takes through a tile of keys at once.
constexpr int kAttendHeads = 2;
// Lines of values that are added at once, at most.
constexpr int kAttendLines = 4;

SCION_KERNEL F32x16 Set1(float x) {
  const F32x4 p = {x, x, x, x};
  return {{p, p, p, p}};
}
SCION_KERNEL F32x16 Load(const void* p) {
  F32x16 r;
  std::memcpy(&r, p, 64);
  return r;
}
SCION_KERNEL U32x16 LoadBits(const void* p) {
  U32x16 r;
  std::memcpy(&r, p, 64);
  return r;
}
// A cache line, 64-byte aligned, that is not needed again: it need not push others out of the caches.
SCION_KERNEL U32x16 LoadBitsOnce(const void* p) { return LoadBits(p); }
SCION_KERNEL void Store(void* p, F32x16 x) { std::memcpy(p, &x, 64); }
// To a whole cache line, which it leaves out of the caches where a tier can; in order with other stores, for other
// threads, only after FinishStoresPastCaches.
SCION_KERNEL void StorePastCaches(float* p, F32x16 x) { Store(p, x); }
SCION_KERNEL void FinishStoresPastCaches() {}
// The first n lanes; the others are zero.
SCION_KERNEL F32x16 LoadPartial(const float* p, int n) {
  F32x16 r = Set1(0.0f);
  std::memcpy(&r, p, static_cast<size_t>(n) * sizeof(float));
  return r;
}
SCION_KERNEL void StorePartial(float* p, F32x16 x, int n) {
  std::memcpy(p, &x, static_cast<size_t>(n) * sizeof(float));
}

#define SCION_LANEWISE(type, expr)                \
  type r;                                         \
  for (int i = 0; i < 4; ++i) r.part[i] = (expr); \
  return r

SCION_KERNEL F32x16 Add(F32x16 a, F32x16 b) { SCION_LANEWISE(F32x16, a.part[i] + b.part[i]); }
SCION_KERNEL F32x16 Sub(F32x16 a, F32x16 b) { SCION_LANEWISE(F32x16, a.part[i] - b.part[i]); }
SCION_KERNEL F32x16 Mul(F32x16 a, F32x16 b) { SCION_LANEWISE(F32x16, a.part[i] * b.part[i]); }
SCION_KERNEL F32x16 Div(F32x16 a, F32x16 b) { SCION_LANEWISE(F32x16, a.part[i] / b.part[i]); }
// a * b + c
SCION_KERNEL F32x16 MulAdd(F32x16 a, F32x16 b, F32x16 c) { SCION_LANEWISE(F32x16, a.part[i] * b.part[i] + c.part[i]); }
// c - a * b
SCION_KERNEL F32x16 NegMulAdd(F32x16 a, F32x16 b, F32x16 c) {
  SCION_LANEWISE(F32x16, c.part[i] - a.part[i] * b.part[i]);
}

SCION_KERNEL U32x16 Bits(F32x16 a) { SCION_LANEWISE(U32x16, reinterpret_cast<U32x4>(a.part[i])); }
SCION_KERNEL F32x16 FromBits(U32x16 a) { SCION_LANEWISE(F32x16, reinterpret_cast<F32x4>(a.part[i])); }
SCION_KERNEL U32x16 AddBits(U32x16 a, uint32_t b) { SCION_LANEWISE(U32x16, a.part[i] + b); }
SCION_KERNEL U32x16 AndBits(U32x16 a, uint32_t b) { SCION_LANEWISE(U32x16, a.part[i] & b); }
SCION_KERNEL U32x16 OrBits(U32x16 a, U32x16 b) { SCION_LANEWISE(U32x16, a.part[i] | b.part[i]); }
template <int kShift>
SCION_KERNEL U32x16 ShiftLeft(U32x16 a) {
  SCION_LANEWISE(U32x16, a.part[i] << kShift);
}

SCION_KERNEL Mask16 Less(F32x16 a, F32x16 b) { SCION_LANEWISE(Mask16, reinterpret_cast<U32x4>(a.part[i] < b.part[i])); }
SCION_KERNEL Mask16 Equal(F32x16 a, F32x16 b) {
  SCION_LANEWISE(Mask16, reinterpret_cast<U32x4>(a.part[i] == b.part[i]));
}
SCION_KERNEL Mask16 IsNan(F32x16 a) { SCION_LANEWISE(Mask16, reinterpret_cast<U32x4>(a.part[i] != a.part[i])); }
SCION_KERNEL Mask16 FirstLanes(int n) {
  const uint32_t limit = n < 0 ? 0u : static_cast<uint32_t>(n);
  Mask16 r;
  for (uint32_t i = 0; i < 4; ++i) {
    const U32x4 lane = {4 * i, 4 * i + 1, 4 * i + 2, 4 * i + 3};
    r.part[i] = reinterpret_cast<U32x4>(lane < limit);
  }
  return r;
}
// Bit i: lane i.
SCION_KERNEL uint32_t MaskBits(Mask16 m) {
  uint32_t bits = 0;
  for (int i = 0; i < 16; ++i) bits |= (m.part[i / 4][i % 4] & 1u) << i;
  return bits;
}
SCION_KERNEL F32x16 Select(Mask16 m, F32x16 yes, F32x16 no) {
  SCION_LANEWISE(F32x16, reinterpret_cast<F32x4>((m.part[i] & reinterpret_cast<U32x4>(yes.part[i])) |
                                                 (~m.part[i] & reinterpret_cast<U32x4>(no.part[i]))));
}
// b where a is NaN.
SCION_KERNEL F32x16 Max(F32x16 a, F32x16 b) { return Select(Less(b, a), a, b); }
SCION_KERNEL F32x16 Min(F32x16 a, F32x16 b) { return Select(Less(a, b), a, b); }

#undef SCION_LANEWISE

// Lanes are combined as i with i + 8, then + 4, + 2, + 1.
SCION_KERNEL float ReduceAdd(F32x16 a) {
  const F32x4 s = (a.part[0] + a.part[2]) + (a.part[1] + a.part[3]);
  return (s[0] + s[2]) + (s[1] + s[3]);
}
SCION_KERNEL float ReduceMax(F32x16 a) {
  float m = a.part[0][0];
  for (int i = 1; i < 16; ++i) m = m < a.part[i / 4][i % 4] ? a.part[i / 4][i % 4] : m;
  return m;
}
SCION_KERNEL float FirstLane(F32x16 a) { return a.part[0][0]; }

// 16 bf16 <-> fp32; stores round to nearest even, a NaN stays a quiet NaN.
SCION_KERNEL void StoreBf16(uint16_t* p, F32x16 x) {
  uint32_t u[16];
  std::memcpy(u, &x, 64);
  for (int i = 0; i < 16; ++i) {
    const bool nan = (u[i] & 0x7fffffffu) > 0x7f800000u;
    const uint32_t rounded = (u[i] + 0x7fffu + ((u[i] >> 16) & 1u)) >> 16;
    p[i] = static_cast<uint16_t>(nan ? (u[i] >> 16) | 0x40u : rounded);
  }
}

SCION_KERNEL F32x16 LoadF16(const void* p) {
  uint16_t h[16];
  std::memcpy(h, p, sizeof(h));
  F32x16 r;
  for (int i = 0; i < 16; ++i) r.part[i / 4][i % 4] = F16ToF32(h[i]);
  return r;
}
SCION_KERNEL void StoreF16(uint16_t* p, F32x16 x) {
  for (int i = 0; i < 16; ++i) p[i] = F32ToF16(x.part[i / 4][i % 4]);
}

// 16 signed integers of 32 bits, as bits.
SCION_KERNEL U32x16 SetBits(int32_t x) {
  const uint32_t u = static_cast<uint32_t>(x);
  const U32x4 p = {u, u, u, u};
  return {{p, p, p, p}};
}
template <int kShift>
SCION_KERNEL U32x16 ShiftRight(U32x16 a) {
  for (U32x4& part : a.part) part >>= kShift;
  return a;
}
SCION_KERNEL F32x16 IntToF32(U32x16 a) {
  F32x16 r;
  for (int i = 0; i < 16; ++i) r.part[i / 4][i % 4] = static_cast<float>(static_cast<int32_t>(a.part[i / 4][i % 4]));
  return r;
}
// 16 signed bytes, widened.
SCION_KERNEL U32x16 LoadInt8(const void* p) {
  U32x16 r;
  for (int i = 0; i < 16; ++i) {
    r.part[i / 4][i % 4] = static_cast<uint32_t>(int32_t{static_cast<const int8_t*>(p)[i]});
  }
  return r;
}
// The largest magnitude of 32 values; NaN if one is NaN.
SCION_KERNEL float LargestMagnitude(F32x16 low, F32x16 high) {
  // As integers, magnitudes are in the same order, and NaNs come after infinity.
  uint32_t largest = 0;
  for (int i = 0; i < 4; ++i) {
    for (int j = 0; j < 4; ++j) {
      const uint32_t a = Bits(low).part[i][j] & 0x7fffffffu, b = Bits(high).part[i][j] & 0x7fffffffu;
      largest = largest < a ? a : largest;
      largest = largest < b ? b : largest;
    }
  }
  float f;
  std::memcpy(&f, &largest, 4);
  return f;
}
// Stores 32 fp32 rounded to the nearest (ties to even) signed bytes; each must be in range. Returns the sums of the
// first and of the last sixteen.
struct CodeSums {
  int32_t low, high;
};
SCION_KERNEL CodeSums StoreCodes(int8_t* p, F32x16 low, F32x16 high) {
  CodeSums sums = {0, 0};
  for (int i = 0; i < 16; ++i) {
    p[i] = static_cast<int8_t>(__builtin_nearbyintf(low.part[i / 4][i % 4]));
    p[i + 16] = static_cast<int8_t>(__builtin_nearbyintf(high.part[i / 4][i % 4]));
    sums.low += p[i];
    sums.high += p[i + 16];
  }
  return sums;
}
// The dot products of a block, Format::kDotElements products each: sum of (code_w - Format::kOffset) * code_x, exact.
// Codes of w are unsigned bytes up to Format::kMaxCode, codes of x signed ones between -127 and 127. A
// tier may keep the sums in a form of its own until TotalDots makes them integers of 32 bits.
//
// `bias`: -Format::kOffset times the sum of the codes of x.
template <class Format>
SCION_KERNEL U32x16 StartDots(int32_t bias) {
  return SetBits(bias);
}
// Per lane: four more products, those of the bytes of the lane.
template <class Format>
SCION_KERNEL U32x16 AddDots(U32x16 sums, U32x16 w, U32x16 x) {
  uint8_t u[64];
  int8_t s[64];
  std::memcpy(u, &w, 64);
  std::memcpy(s, &x, 64);
  for (int i = 0; i < 16; ++i) {
    int32_t sum = 0;
    for (int j = 0; j < 4; ++j) sum += u[4 * i + j] * s[4 * i + j];
    sums.part[i / 4][i % 4] += static_cast<uint32_t>(sum);
  }
  return sums;
}
template <class Format>
SCION_KERNEL U32x16 TotalDots(U32x16 sums) {
  return sums;
}

SCION_KERNEL void PrefetchToL2(const void* p) { __builtin_prefetch(p, 0, 2); }

}  // namespace
}  // namespace scion::kernels

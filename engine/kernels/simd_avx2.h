// Sixteen fp32 lanes in two AVX2 registers, with fused multiply-add. The same functions as simd_portable.h, which says
// what they do.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#define SCION_KERNEL inline __attribute__((always_inline))

namespace scion::kernels {
namespace {

struct F32x16 {
  __m256 low, high;
};
struct U32x16 {
  __m256i low, high;
};
struct Mask16 {  // all ones or all zeros per lane
  __m256 low, high;
};

// 10 accumulators, the weights of a line (even and odd k), and a broadcast activation fill the 16 registers.
constexpr int kTileRows = 5;
constexpr int kTileLines = 1;
constexpr int kFullWidthRows = 1;
// Integer sums only: the float accumulators, which a block touches once, rest in memory.
constexpr int kBlockTileRows = 4;
constexpr int kBlockTileLines = 1;
constexpr int kBlockFullWidthRows = 1;
constexpr int kAttendHeads = 2;
constexpr int kAttendLines = 2;

SCION_KERNEL F32x16 Set1(float x) {
  const __m256 v = _mm256_set1_ps(x);
  return {v, v};
}
SCION_KERNEL F32x16 Load(const void* p) {
  const float* f = static_cast<const float*>(p);
  return {_mm256_loadu_ps(f), _mm256_loadu_ps(f + 8)};
}
SCION_KERNEL U32x16 LoadBits(const void* p) {
  const __m256i* v = static_cast<const __m256i*>(p);
  return {_mm256_loadu_si256(v), _mm256_loadu_si256(v + 1)};
}
SCION_KERNEL U32x16 LoadBitsOnce(const void* p) {
  const __m256i* v = static_cast<const __m256i*>(p);
  return {_mm256_stream_load_si256(v), _mm256_stream_load_si256(v + 1)};
}
SCION_KERNEL void Store(void* p, F32x16 x) {
  float* f = static_cast<float*>(p);
  _mm256_storeu_ps(f, x.low);
  _mm256_storeu_ps(f + 8, x.high);
}
SCION_KERNEL void StorePastCaches(float* p, F32x16 x) {
  _mm256_stream_ps(p, x.low);
  _mm256_stream_ps(p + 8, x.high);
}
SCION_KERNEL void FinishStoresPastCaches() { _mm_sfence(); }
SCION_KERNEL Mask16 FirstLanes(int n) {
  const __m256i limit = _mm256_set1_epi32(n);
  const __m256i low = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i high = _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15);
  return {_mm256_castsi256_ps(_mm256_cmpgt_epi32(limit, low)), _mm256_castsi256_ps(_mm256_cmpgt_epi32(limit, high))};
}
SCION_KERNEL F32x16 LoadPartial(const float* p, int n) {
  const Mask16 m = FirstLanes(n);
  return {_mm256_maskload_ps(p, _mm256_castps_si256(m.low)), _mm256_maskload_ps(p + 8, _mm256_castps_si256(m.high))};
}
SCION_KERNEL void StorePartial(float* p, F32x16 x, int n) {
  const Mask16 m = FirstLanes(n);
  _mm256_maskstore_ps(p, _mm256_castps_si256(m.low), x.low);
  _mm256_maskstore_ps(p + 8, _mm256_castps_si256(m.high), x.high);
}

SCION_KERNEL F32x16 Add(F32x16 a, F32x16 b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
SCION_KERNEL F32x16 Sub(F32x16 a, F32x16 b) { return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)}; }
SCION_KERNEL F32x16 Mul(F32x16 a, F32x16 b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
SCION_KERNEL F32x16 Div(F32x16 a, F32x16 b) { return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)}; }
SCION_KERNEL F32x16 MulAdd(F32x16 a, F32x16 b, F32x16 c) {
  return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
SCION_KERNEL F32x16 NegMulAdd(F32x16 a, F32x16 b, F32x16 c) {
  return {_mm256_fnmadd_ps(a.low, b.low, c.low), _mm256_fnmadd_ps(a.high, b.high, c.high)};
}

SCION_KERNEL U32x16 Bits(F32x16 a) { return {_mm256_castps_si256(a.low), _mm256_castps_si256(a.high)}; }
SCION_KERNEL F32x16 FromBits(U32x16 a) { return {_mm256_castsi256_ps(a.low), _mm256_castsi256_ps(a.high)}; }
SCION_KERNEL U32x16 AddBits(U32x16 a, uint32_t b) {
  const __m256i v = _mm256_set1_epi32(static_cast<int>(b));
  return {_mm256_add_epi32(a.low, v), _mm256_add_epi32(a.high, v)};
}
SCION_KERNEL U32x16 AndBits(U32x16 a, uint32_t b) {
  const __m256i v = _mm256_set1_epi32(static_cast<int>(b));
  return {_mm256_and_si256(a.low, v), _mm256_and_si256(a.high, v)};
}
SCION_KERNEL U32x16 OrBits(U32x16 a, U32x16 b) {
  return {_mm256_or_si256(a.low, b.low), _mm256_or_si256(a.high, b.high)};
}
template <int kShift>
SCION_KERNEL U32x16 ShiftLeft(U32x16 a) {
  return {_mm256_slli_epi32(a.low, kShift), _mm256_slli_epi32(a.high, kShift)};
}

template <int kPredicate>
SCION_KERNEL Mask16 Compare(F32x16 a, F32x16 b) {
  return {_mm256_cmp_ps(a.low, b.low, kPredicate), _mm256_cmp_ps(a.high, b.high, kPredicate)};
}
SCION_KERNEL Mask16 Less(F32x16 a, F32x16 b) { return Compare<_CMP_LT_OQ>(a, b); }
SCION_KERNEL Mask16 Equal(F32x16 a, F32x16 b) { return Compare<_CMP_EQ_OQ>(a, b); }
SCION_KERNEL Mask16 IsNan(F32x16 a) { return Compare<_CMP_UNORD_Q>(a, a); }
SCION_KERNEL uint32_t MaskBits(Mask16 m) {
  return static_cast<uint32_t>(_mm256_movemask_ps(m.low) | _mm256_movemask_ps(m.high) << 8);
}
SCION_KERNEL F32x16 Select(Mask16 m, F32x16 yes, F32x16 no) {
  return {_mm256_blendv_ps(no.low, yes.low, m.low), _mm256_blendv_ps(no.high, yes.high, m.high)};
}
SCION_KERNEL F32x16 Max(F32x16 a, F32x16 b) { return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)}; }
SCION_KERNEL F32x16 Min(F32x16 a, F32x16 b) { return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)}; }

SCION_KERNEL float ReduceAdd(F32x16 a) {
  const __m256 h = _mm256_add_ps(a.low, a.high);
  const __m128 q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
  const __m128 d = _mm_add_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_add_ss(d, _mm_movehdup_ps(d)));
}
SCION_KERNEL float ReduceMax(F32x16 a) {
  const __m256 h = _mm256_max_ps(a.low, a.high);
  const __m128 q = _mm_max_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
  const __m128 d = _mm_max_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_max_ss(d, _mm_movehdup_ps(d)));
}
SCION_KERNEL float FirstLane(F32x16 a) { return _mm256_cvtss_f32(a.low); }

// Eight fp32 as bf16, each in the low half of 32 bits.
SCION_KERNEL __m256i RoundToBf16(__m256 x) {
  const __m256i u = _mm256_castps_si256(x);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(u, _mm256_set1_epi32(0x7fff)), odd);
  const __m256i quiet = _mm256_or_si256(u, _mm256_set1_epi32(0x400000));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  return _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
}
SCION_KERNEL void StoreBf16(uint16_t* p, F32x16 x) {
  // The pack works within 128 bits; the permutation puts the quarters in order.
  const __m256i packed = _mm256_packus_epi32(RoundToBf16(x.low), RoundToBf16(x.high));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(packed, 0xd8));
}

SCION_KERNEL F32x16 LoadF16(const void* p) {
  const __m128i* v = static_cast<const __m128i*>(p);
  return {_mm256_cvtph_ps(_mm_loadu_si128(v)), _mm256_cvtph_ps(_mm_loadu_si128(v + 1))};
}
SCION_KERNEL void StoreF16(uint16_t* p, F32x16 x) {
  __m128i* v = reinterpret_cast<__m128i*>(p);
  _mm_storeu_si128(v, _mm256_cvtps_ph(x.low, _MM_FROUND_TO_NEAREST_INT));
  _mm_storeu_si128(v + 1, _mm256_cvtps_ph(x.high, _MM_FROUND_TO_NEAREST_INT));
}

SCION_KERNEL U32x16 SetBits(int32_t x) {
  const __m256i v = _mm256_set1_epi32(x);
  return {v, v};
}
template <int kShift>
SCION_KERNEL U32x16 ShiftRight(U32x16 a) {
  return {_mm256_srli_epi32(a.low, kShift), _mm256_srli_epi32(a.high, kShift)};
}
SCION_KERNEL F32x16 IntToF32(U32x16 a) { return {_mm256_cvtepi32_ps(a.low), _mm256_cvtepi32_ps(a.high)}; }
SCION_KERNEL U32x16 LoadInt8(const void* p) {
  const __m128i bytes = _mm_loadu_si128(static_cast<const __m128i*>(p));
  return {_mm256_cvtepi8_epi32(bytes), _mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8))};
}
SCION_KERNEL float LargestMagnitude(F32x16 low, F32x16 high) {
  const __m256i a = _mm256_max_epu32(AndBits(Bits(low), 0x7fffffffu).low, AndBits(Bits(low), 0x7fffffffu).high);
  const __m256i b = _mm256_max_epu32(AndBits(Bits(high), 0x7fffffffu).low, AndBits(Bits(high), 0x7fffffffu).high);
  const __m256i h = _mm256_max_epu32(a, b);
  const __m128i q = _mm_max_epu32(_mm256_castsi256_si128(h), _mm256_extracti128_si256(h, 1));
  const __m128i d = _mm_max_epu32(q, _mm_shuffle_epi32(q, 0x4e));
  return _mm_cvtss_f32(_mm_castsi128_ps(_mm_max_epu32(d, _mm_shuffle_epi32(d, 0xb1))));
}
struct CodeSums {
  int32_t low, high;
};
SCION_KERNEL CodeSums StoreCodes(int8_t* p, F32x16 low, F32x16 high) {
  const __m256i first = _mm256_packs_epi32(_mm256_cvtps_epi32(low.low), _mm256_cvtps_epi32(low.high));
  const __m256i last = _mm256_packs_epi32(_mm256_cvtps_epi32(high.low), _mm256_cvtps_epi32(high.high));
  // The packs work within 128 bits; the permutation puts the groups of four in order.
  const __m256i codes =
      _mm256_permutevar8x32_epi32(_mm256_packs_epi16(first, last), _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), codes);
  const __m256i fours = _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_set1_epi8(1), codes), _mm256_set1_epi16(1));
  const __m256i twos = _mm256_add_epi32(fours, _mm256_shuffle_epi32(fours, 0x4e));
  const __m256i sums = _mm256_add_epi32(twos, _mm256_shuffle_epi32(twos, 0xb1));
  return {_mm256_cvtsi256_si32(sums), _mm_cvtsi128_si32(_mm256_extracti128_si256(sums, 1))};
}

// vpmaddubsw saturates its 16-bit sums of two products, so it multiplies only what cannot reach 32767: codes that are
// small as they are, or the magnitude of a code less its offset (at most 128) with the activation given the code's
// sign, at most 2 * 128 * 127 = 32512. Where the sum of a block's products in a 16-bit lane stays within 16 bits, it is
// kept there until TotalDots; on the way it may wrap, which the end undoes.
template <class Format>
struct ByteProducts {
  static constexpr bool kSigned = Format::kOffset >= 32;  // subtracts the offset itself
  static constexpr int kLowest = kSigned ? -Format::kOffset : 0;
  static constexpr int kHighest = kSigned ? Format::kMaxCode - Format::kOffset : Format::kMaxCode;
  static constexpr int kLargest = -kLowest > kHighest ? -kLowest : kHighest;
  static_assert(2 * kLargest * 127 <= 32767);
  // A 16-bit lane collects half of the products, and the even ones also hold the bias of all.
  static constexpr int kProducts = Format::kDotElements / 2;
  static constexpr bool kNarrow =
      kProducts * kLargest * 127 <= 32767 && (kSigned || kProducts * 2 * Format::kOffset * 127 <= 32767);

  static SCION_KERNEL __m256i Add(__m256i sums, __m256i w, __m256i x) {
    __m256i pairs;
    if constexpr (kSigned) {
      const __m256i code = _mm256_sub_epi8(w, _mm256_set1_epi8(static_cast<char>(Format::kOffset)));
      pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(code), _mm256_sign_epi8(x, code));
    } else {
      pairs = _mm256_maddubs_epi16(w, x);
    }
    sums = kNarrow ? _mm256_add_epi16(sums, pairs)
                   : _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    // Now, not later: a compiler that puts a block's additions off runs out of registers for the products.
    __asm__("" : "+x"(sums));
    return sums;
  }
};
template <class Format>
SCION_KERNEL U32x16 StartDots(int32_t bias) {
  using Products = ByteProducts<Format>;
  return SetBits(Products::kSigned ? 0 : Products::kNarrow ? bias & 0xffff : bias);
}
template <class Format>
SCION_KERNEL U32x16 AddDots(U32x16 sums, U32x16 w, U32x16 x) {
  return {ByteProducts<Format>::Add(sums.low, w.low, x.low), ByteProducts<Format>::Add(sums.high, w.high, x.high)};
}
template <class Format>
SCION_KERNEL U32x16 TotalDots(U32x16 sums) {
  if constexpr (!ByteProducts<Format>::kNarrow) return sums;
  const __m256i ones = _mm256_set1_epi16(1);
  return {_mm256_madd_epi16(sums.low, ones), _mm256_madd_epi16(sums.high, ones)};
}

SCION_KERNEL void PrefetchToL2(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }

}  // namespace
}  // namespace scion::kernels

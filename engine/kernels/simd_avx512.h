// Sixteen fp32 lanes in one AVX-512 register, with fused multiply-add. The same functions as simd_portable.h, which
// says what they do.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#define SCION_KERNEL inline __attribute__((always_inline))

namespace scion::kernels {
namespace {

using F32x16 = __m512;
using U32x16 = __m512i;
using Mask16 = __mmask16;

// 24 accumulators, the weights of four lines, and a broadcast activation fill the 32 registers.
constexpr int kTileRows = 6;
constexpr int kTileLines = 4;
constexpr int kFullWidthRows = 6;
// The same of blocked weights: an integer and a float accumulator for each.
constexpr int kBlockTileRows = 6;
constexpr int kBlockTileLines = 2;
constexpr int kBlockFullWidthRows = 3;
constexpr int kAttendHeads = 8;
constexpr int kAttendLines = 4;

SCION_KERNEL F32x16 Set1(float x) { return _mm512_set1_ps(x); }
SCION_KERNEL F32x16 Load(const void* p) { return _mm512_loadu_ps(p); }
SCION_KERNEL U32x16 LoadBits(const void* p) { return _mm512_loadu_si512(p); }
SCION_KERNEL U32x16 LoadBitsOnce(const void* p) { return _mm512_stream_load_si512(const_cast<void*>(p)); }
SCION_KERNEL void Store(void* p, F32x16 x) { _mm512_storeu_ps(p, x); }
SCION_KERNEL void StorePastCaches(float* p, F32x16 x) { _mm512_stream_ps(p, x); }
SCION_KERNEL void FinishStoresPastCaches() { _mm_sfence(); }
SCION_KERNEL Mask16 FirstLanes(int n) {
  return n <= 0 ? Mask16{0} : n >= 16 ? Mask16{0xffff} : static_cast<Mask16>((1u << n) - 1u);
}
SCION_KERNEL F32x16 LoadPartial(const float* p, int n) { return _mm512_maskz_loadu_ps(FirstLanes(n), p); }
SCION_KERNEL void StorePartial(float* p, F32x16 x, int n) { _mm512_mask_storeu_ps(p, FirstLanes(n), x); }

SCION_KERNEL F32x16 Add(F32x16 a, F32x16 b) { return _mm512_add_ps(a, b); }
SCION_KERNEL F32x16 Sub(F32x16 a, F32x16 b) { return _mm512_sub_ps(a, b); }
SCION_KERNEL F32x16 Mul(F32x16 a, F32x16 b) { return _mm512_mul_ps(a, b); }
SCION_KERNEL F32x16 Div(F32x16 a, F32x16 b) { return _mm512_div_ps(a, b); }
SCION_KERNEL F32x16 MulAdd(F32x16 a, F32x16 b, F32x16 c) { return _mm512_fmadd_ps(a, b, c); }
SCION_KERNEL F32x16 NegMulAdd(F32x16 a, F32x16 b, F32x16 c) { return _mm512_fnmadd_ps(a, b, c); }

SCION_KERNEL U32x16 Bits(F32x16 a) { return _mm512_castps_si512(a); }
SCION_KERNEL F32x16 FromBits(U32x16 a) { return _mm512_castsi512_ps(a); }
SCION_KERNEL U32x16 AddBits(U32x16 a, uint32_t b) {
  return _mm512_add_epi32(a, _mm512_set1_epi32(static_cast<int>(b)));
}
SCION_KERNEL U32x16 AndBits(U32x16 a, uint32_t b) {
  return _mm512_and_si512(a, _mm512_set1_epi32(static_cast<int>(b)));
}
SCION_KERNEL U32x16 OrBits(U32x16 a, U32x16 b) { return _mm512_or_si512(a, b); }
template <int kShift>
SCION_KERNEL U32x16 ShiftLeft(U32x16 a) {
  return _mm512_slli_epi32(a, kShift);
}

SCION_KERNEL Mask16 Less(F32x16 a, F32x16 b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
SCION_KERNEL Mask16 Equal(F32x16 a, F32x16 b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
SCION_KERNEL Mask16 IsNan(F32x16 a) { return _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q); }
SCION_KERNEL uint32_t MaskBits(Mask16 m) { return m; }
SCION_KERNEL F32x16 Select(Mask16 m, F32x16 yes, F32x16 no) { return _mm512_mask_blend_ps(m, no, yes); }
SCION_KERNEL F32x16 Max(F32x16 a, F32x16 b) { return _mm512_max_ps(a, b); }
SCION_KERNEL F32x16 Min(F32x16 a, F32x16 b) { return _mm512_min_ps(a, b); }

SCION_KERNEL float ReduceAdd(F32x16 a) {
  const __m256 h = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
  const __m128 q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
  const __m128 d = _mm_add_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_add_ss(d, _mm_movehdup_ps(d)));
}
SCION_KERNEL float ReduceMax(F32x16 a) {
  const __m256 h = _mm256_max_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
  const __m128 q = _mm_max_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
  const __m128 d = _mm_max_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_max_ss(d, _mm_movehdup_ps(d)));
}
SCION_KERNEL float FirstLane(F32x16 a) { return _mm512_cvtss_f32(a); }

SCION_KERNEL void StoreBf16(uint16_t* p, F32x16 x) {
  const __m512i u = Bits(x);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7fff)), odd);
  const __m512i quiet = _mm512_or_si512(u, _mm512_set1_epi32(0x400000));
  const __m512i bits = _mm512_mask_blend_epi32(IsNan(x), rounded, quiet);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(_mm512_srli_epi32(bits, 16)));
}

SCION_KERNEL F32x16 LoadF16(const void* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
}
SCION_KERNEL void StoreF16(uint16_t* p, F32x16 x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}

SCION_KERNEL U32x16 SetBits(int32_t x) { return _mm512_set1_epi32(x); }
template <int kShift>
SCION_KERNEL U32x16 ShiftRight(U32x16 a) {
  return _mm512_srli_epi32(a, kShift);
}
SCION_KERNEL F32x16 IntToF32(U32x16 a) { return _mm512_cvtepi32_ps(a); }
SCION_KERNEL U32x16 LoadInt8(const void* p) {
  return _mm512_cvtepi8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p)));
}
SCION_KERNEL float LargestMagnitude(F32x16 low, F32x16 high) {
  const __m512i m = _mm512_max_epu32(AndBits(Bits(low), 0x7fffffffu), AndBits(Bits(high), 0x7fffffffu));
  const __m256i h = _mm256_max_epu32(_mm512_castsi512_si256(m), _mm512_extracti64x4_epi64(m, 1));
  const __m128i q = _mm_max_epu32(_mm256_castsi256_si128(h), _mm256_extracti128_si256(h, 1));
  const __m128i d = _mm_max_epu32(q, _mm_shuffle_epi32(q, 0x4e));
  return _mm_cvtss_f32(_mm_castsi128_ps(_mm_max_epu32(d, _mm_shuffle_epi32(d, 0xb1))));
}
struct CodeSums {
  int32_t low, high;
};
SCION_KERNEL CodeSums StoreCodes(int8_t* p, F32x16 low, F32x16 high) {
  const __m256i codes =
      _mm256_set_m128i(_mm512_cvtepi32_epi8(_mm512_cvtps_epi32(high)), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(low)));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), codes);
  const __m256i fours = _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_set1_epi8(1), codes), _mm256_set1_epi16(1));
  const __m256i twos = _mm256_add_epi32(fours, _mm256_shuffle_epi32(fours, 0x4e));
  const __m256i sums = _mm256_add_epi32(twos, _mm256_shuffle_epi32(twos, 0xb1));
  return {_mm256_cvtsi256_si32(sums), _mm_cvtsi128_si32(_mm256_extracti128_si256(sums, 1))};
}
template <class Format>
SCION_KERNEL U32x16 StartDots(int32_t bias) {
  return SetBits(bias);
}
template <class Format>
SCION_KERNEL U32x16 AddDots(U32x16 sums, U32x16 w, U32x16 x) {
#if defined(__AVX512VNNI__)
  return _mm512_dpbusd_epi32(sums, w, x);
#else
  // Even and odd bytes as 16-bit integers: no product of vpmaddwd can overflow.
  const __m512i w_even = _mm512_and_si512(w, _mm512_set1_epi32(0x00ff00ff));
  const __m512i w_odd = _mm512_srli_epi16(w, 8);
  const __m512i x_even = _mm512_srai_epi16(_mm512_slli_epi16(x, 8), 8);
  const __m512i x_odd = _mm512_srai_epi16(x, 8);
  sums = _mm512_add_epi32(sums, _mm512_add_epi32(_mm512_madd_epi16(w_even, x_even), _mm512_madd_epi16(w_odd, x_odd)));
  // Now, not later: a compiler that puts a block's additions off runs out of registers for the products.
  __asm__("" : "+v"(sums));
  return sums;
#endif
}
template <class Format>
SCION_KERNEL U32x16 TotalDots(U32x16 sums) {
  return sums;
}

SCION_KERNEL void PrefetchToL2(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }

}  // namespace
}  // namespace scion::kernels

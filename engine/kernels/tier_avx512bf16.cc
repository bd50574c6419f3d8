// The avx512bf16 tier.
#include "engine/kernels/simd_avx512.h"
//
#include "engine/kernels/table.h"

namespace scion::kernels {
namespace {

// One vdpbf16ps per step and line.
struct NativeBf16Dot {
  static constexpr ActivationForm kForm = ActivationForm::kBF16;
  static constexpr size_t kStepActivationBytes = 4;
  using Weights = __m512bh;
  using Activation = __m512bh;

  static int Steps(int in_features) { return (in_features + 1) / 2; }
  template <bool kOnce = false>
  static SCION_KERNEL Weights LoadWeights(const std::byte* line) {
    return (__m512bh)LoadLine<kOnce>(line);
  }
  static SCION_KERNEL Activation Broadcast(const std::byte* x) {
    return (__m512bh)_mm512_set1_epi32(*reinterpret_cast<const int32_t*>(x));
  }
  static SCION_KERNEL F32x16 Accumulate(F32x16 acc, const Weights& w, const Activation& x) {
    return _mm512_dpbf16_ps(acc, w, x);
  }
  static SCION_KERNEL F32x16 StoreAndSum(uint16_t* p, F32x16 low, F32x16 high) {
    const __m512bh pairs = _mm512_cvtne2ps_pbh(high, low);
    _mm512_storeu_si512(p, (__m512i)pairs);
    const __m512bh ones = (__m512bh)_mm512_set1_epi32(0x3f803f80);
    return _mm512_dpbf16_ps(_mm512_setzero_ps(), pairs, ones);
  }
};

}  // namespace

const KernelTable kAvx512Bf16Table = MakeTable<NativeBf16Dot>(Tier::kAvx512Bf16);

}  // namespace scion::kernels

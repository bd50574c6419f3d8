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
  static SCION_KERNEL F32x16 StoreActivations(uint16_t* p, F32x16 x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), (__m256i)_mm512_cvtneps_pbh(x));
    return LoadBf16(p);
  }
};

}  // namespace

const KernelTable kAvx512Bf16Table = MakeTable<NativeBf16Dot>(Tier::kAvx512Bf16);

}  // namespace scion::kernels

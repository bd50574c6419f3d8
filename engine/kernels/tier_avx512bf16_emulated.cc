// The avx512bf16 tier with its two instructions spelled out; see tier_tables.h.
#if defined(__x86_64__)
#include "engine/kernels/simd_avx512.h"
//
#include "engine/kernels/table.h"

namespace scion::kernels {
namespace {

// What Intel's manual says of vdpbf16ps: the odd product is added first, then the even one, each with one rounding. (It
// also flushes denormals, which this does not.)
struct EmulatedBf16Dot {
  static constexpr ActivationForm kForm = ActivationForm::kBF16;
  static constexpr size_t kStepActivationBytes = 4;
  using Weights = U32x16;
  using Activation = U32x16;

  static int Steps(int in_features) { return (in_features + 1) / 2; }
  template <bool kOnce = false>
  static SCION_KERNEL Weights LoadWeights(const std::byte* line) {
    return LoadLine<kOnce>(line);
  }
  static SCION_KERNEL Activation Broadcast(const std::byte* x) {
    return _mm512_set1_epi32(*reinterpret_cast<const int32_t*>(x));
  }
  static SCION_KERNEL F32x16 Even(U32x16 pair) { return FromBits(ShiftLeft<16>(pair)); }
  static SCION_KERNEL F32x16 Odd(U32x16 pair) { return FromBits(AndBits(pair, 0xffff0000u)); }
  static SCION_KERNEL F32x16 Accumulate(F32x16 acc, const Weights& w, const Activation& x) {
    return MulAdd(Even(w), Even(x), MulAdd(Odd(w), Odd(x), acc));
  }
  static SCION_KERNEL F32x16 StoreAndSum(uint16_t* p, F32x16 low, F32x16 high) {
    StoreBf16(p, low);
    StoreBf16(p + 16, high);
    const U32x16 pairs = LoadBits(p);
    return Add(Even(pairs), Odd(pairs));
  }
};

}  // namespace

const KernelTable kEmulatedBf16Table = MakeTable<EmulatedBf16Dot>(Tier::kAvx512Bf16);

}  // namespace scion::kernels
#endif

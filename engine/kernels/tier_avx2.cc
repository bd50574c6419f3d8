// The avx2 tier.
#include "engine/kernels/simd_avx2.h"
//
#include "engine/kernels/table.h"

namespace scion::kernels {

const KernelTable kAvx2Table = MakeTable<WidenedBf16Dot>(Tier::kAvx2);

}  // namespace scion::kernels

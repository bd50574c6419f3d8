// The avx512 tier.
#include "engine/kernels/simd_avx512.h"
//
#include "engine/kernels/table.h"

namespace scion::kernels {

const KernelTable kAvx512Table = MakeTable<WidenedBf16Dot>(Tier::kAvx512);

}  // namespace scion::kernels

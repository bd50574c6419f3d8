// The avx512vnni tier: the text of avx512, where AddDots is one instruction.
#include "engine/kernels/simd_avx512.h"
//
#include "engine/kernels/table.h"

namespace scion::kernels {

const KernelTable kAvx512VnniTable = MakeTable<WidenedBf16Dot>(Tier::kAvx512Vnni);

}  // namespace scion::kernels

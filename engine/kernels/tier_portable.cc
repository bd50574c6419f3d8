// The portable tier.
#include "engine/kernels/simd_portable.h"
//
#include "engine/kernels/table.h"

namespace scion::kernels {

const KernelTable kPortableTable = MakeTable<WidenedBf16Dot>(Tier::kPortable);

}  // namespace scion::kernels

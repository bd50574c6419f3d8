// The tables of the tiers, for tiers.cc and tests; everybody else asks GetKernels.
#pragma once

#include "engine/kernels/kernels.h"

namespace scion::kernels {

extern const KernelTable kPortableTable;
#if defined(__x86_64__)
extern const KernelTable kAvx2Table;
extern const KernelTable kAvx512Table;
extern const KernelTable kAvx512VnniTable;
extern const KernelTable kAvx512Bf16Table;
// The avx512bf16 tier on a machine that only has AVX-512: vdpbf16ps is replaced by the two fused multiply-adds that it
// stands for (by an addition where it multiplies by 1), vcvtne2ps2bf16 by what rounds to bf16 elsewhere; all else is
// the same text. For tests; it is in the library scion_kernels_reference.
extern const KernelTable kEmulatedBf16Table;
#endif

}  // namespace scion::kernels

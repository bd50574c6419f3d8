#include "tests/support/kernel_tables.h"

#include "engine/kernels/tier_tables.h"

namespace scion::test {

std::vector<Kernels> AllKernels() {
  std::vector<Kernels> all;
  for (kernels::Tier tier : kernels::SupportedTiers()) {
    all.push_back({std::string(kernels::TierName(tier)), &kernels::GetKernels(tier)});
  }
#if defined(__x86_64__)
  const kernels::Tier best = kernels::SupportedTiers().back();
  if (best >= kernels::Tier::kAvx512 && best != kernels::Tier::kAvx512Bf16) {
    all.push_back({"avx512bf16emulated", &kernels::kEmulatedBf16Table});
  }
#endif
  return all;
}

}  // namespace scion::test

// Which tiers there are, and which one this process uses.
#include <array>
#include <cstdlib>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/kernels/kernels.h"
#include "engine/kernels/tier_tables.h"

namespace scion::kernels {
namespace {

constexpr char kTierVariable[] = "SCION_CPU_TIER";
constexpr Tier kAllTiers[] = {Tier::kPortable, Tier::kAvx2, Tier::kAvx512, Tier::kAvx512Vnni, Tier::kAvx512Bf16};

bool MachineHas(Tier tier) {
  if (tier == Tier::kPortable) return true;
#if defined(__x86_64__)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  if (!avx2 || tier == Tier::kAvx2) return avx2;
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (!avx512 || tier == Tier::kAvx512) return avx512;
  return __builtin_cpu_supports("avx512vnni") && (tier == Tier::kAvx512Vnni || __builtin_cpu_supports("avx512bf16"));
#else
  return false;
#endif
}

struct TierList {
  std::array<Tier, std::size(kAllTiers)> tiers{};
  size_t count = 0;
};

TierList DetectTiers() {
  TierList list;
  for (Tier t : kAllTiers) {
    if (MachineHas(t)) list.tiers[list.count++] = t;
  }
  return list;
}

std::string TierNames(std::span<const Tier> tiers) {
  std::string names;
  for (Tier t : tiers) absl::StrAppend(&names, names.empty() ? "" : ", ", std::string(TierName(t)));
  return names;
}

}  // namespace

std::string_view TierName(Tier tier) {
  switch (tier) {
    case Tier::kPortable:
      return "portable";
    case Tier::kAvx2:
      return "avx2";
    case Tier::kAvx512:
      return "avx512";
    case Tier::kAvx512Vnni:
      return "avx512vnni";
    case Tier::kAvx512Bf16:
      return "avx512bf16";
  }
  return "?";
}

std::span<const Tier> SupportedTiers() {
  static const TierList list = DetectTiers();
  return {list.tiers.data(), list.count};
}

absl::StatusOr<Tier> ChooseTier() {
  const std::span<const Tier> supported = SupportedTiers();
  const char* wanted = std::getenv(kTierVariable);
  if (wanted == nullptr || *wanted == '\0') return supported.back();
  for (Tier t : supported) {
    if (TierName(t) == wanted) return t;
  }
  for (Tier t : kAllTiers) {
    if (TierName(t) != wanted) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        kTierVariable, "=", wanted, ": this machine lacks the instructions; ", "it can run: ", TierNames(supported)));
  }
  return absl::InvalidArgumentError(
      absl::StrCat(kTierVariable, "=", wanted, " names no tier; ", "this machine can run: ", TierNames(supported)));
}

const KernelTable& GetKernels(Tier tier) {
#if defined(__x86_64__)
  if (tier == Tier::kAvx2) return kAvx2Table;
  if (tier == Tier::kAvx512) return kAvx512Table;
  if (tier == Tier::kAvx512Vnni) return kAvx512VnniTable;
  if (tier == Tier::kAvx512Bf16) return kAvx512Bf16Table;
#endif
  static_cast<void>(tier);
  return kPortableTable;
}

}  // namespace scion::kernels

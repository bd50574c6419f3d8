// What packed weights hold of those on disk.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string_view>

namespace scion {

enum class WeightMode : uint8_t {
  kAsIs,  // every matrix by value, in the packed type that holds its type on disk
  kBF16,  // rounded to bf16
  kF32,   // the reference mode: by value, as fp32
  kQ8,    // rounded to blocks of 32 8-bit codes; a matrix whose rows are no multiple of 32 stays as it is
  kQ4,    // rounded to blocks of 32 4-bit codes, the head to 8 bits; likewise
};
inline constexpr std::array kAllWeightModes = {WeightMode::kAsIs, WeightMode::kBF16, WeightMode::kF32, WeightMode::kQ8,
                                               WeightMode::kQ4};

constexpr std::string_view WeightModeName(WeightMode mode) {
  switch (mode) {
    case WeightMode::kAsIs:
      return "as-is";
    case WeightMode::kBF16:
      return "bf16";
    case WeightMode::kF32:
      return "fp32";
    case WeightMode::kQ8:
      return "q8";
    case WeightMode::kQ4:
      return "q4";
  }
  return "?";
}

constexpr std::optional<WeightMode> ParseWeightMode(std::string_view name) {
  for (WeightMode mode : kAllWeightModes) {
    if (WeightModeName(mode) == name) return mode;
  }
  return std::nullopt;
}

}  // namespace scion

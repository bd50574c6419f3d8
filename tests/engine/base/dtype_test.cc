#include "engine/base/dtype.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

namespace scion {
namespace {

TEST(DTypeTest, WideningHalfIsExactForEveryBitPattern) {
  for (uint32_t h = 0; h < 0x10000; ++h) {
    // The compiler's own half type is the reference.
    const float expected = static_cast<float>(std::bit_cast<_Float16>(static_cast<uint16_t>(h)));
    const float actual = F16ToF32(static_cast<uint16_t>(h));
    if (std::isnan(expected)) {
      EXPECT_TRUE(std::isnan(actual)) << h;
    } else {
      EXPECT_EQ(std::bit_cast<uint32_t>(actual), std::bit_cast<uint32_t>(expected)) << h;
    }
  }
}

TEST(DTypeTest, RoundingToBf16GoesToTheNearestAndTiesToEven) {
  EXPECT_EQ(F32ToBf16(1.0f), 0x3f80);
  EXPECT_EQ(F32ToBf16(1.0f + 0x1p-8f), 0x3f80);             // a tie: down to even
  EXPECT_EQ(F32ToBf16(1.0f + 3 * 0x1p-8f), 0x3f82);         // a tie: up to even
  EXPECT_EQ(F32ToBf16(1.0f + 0x1p-8f + 0x1p-20f), 0x3f81);  // above the tie
  EXPECT_EQ(F32ToBf16(std::numeric_limits<float>::max()), 0x7f80);
  EXPECT_EQ(F32ToBf16(-0.0f), 0x8000);
  EXPECT_TRUE(std::isnan(Bf16ToF32(F32ToBf16(std::bit_cast<float>(0x7f800001u)))));
}

TEST(DTypeTest, EveryBf16SurvivesTheWayThere) {
  for (uint32_t b = 0; b < 0x10000; ++b) {
    const float wide = Bf16ToF32(static_cast<uint16_t>(b));
    if (std::isnan(wide)) continue;
    EXPECT_EQ(F32ToBf16(wide), b);
  }
}

}  // namespace
}  // namespace scion

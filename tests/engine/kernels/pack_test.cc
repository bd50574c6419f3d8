#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "tests/engine/kernels/test_util.h"

namespace scion::kernels {
namespace {

// Where the layout puts w[n, k] of a panel, in elements: written out from the README's picture.
size_t Bf16Index(int n, int k) { return static_cast<size_t>((k / 2) * 128 + (n / 16) * 32 + (n % 16) * 2 + k % 2); }
size_t F32Index(int n, int k, int width = 64) { return static_cast<size_t>(k * width + n); }

template <typename T>
const std::byte* BytesOf(const std::vector<T>& v) {
  return reinterpret_cast<const std::byte*>(v.data());
}

TEST(PackTest, PanelSizes) {
  EXPECT_EQ(PackedPanelBytes(WeightType::kBF16, 4), 4u * 64 * 2);
  EXPECT_EQ(PackedPanelBytes(WeightType::kBF16, 5), 6u * 64 * 2);
  EXPECT_EQ(PackedPanelBytes(WeightType::kF32, 5), 5u * 64 * 4);
  EXPECT_EQ(PackedBytes(WeightType::kF32, 65, 5), 2u * 5 * 64 * 4);
  EXPECT_EQ(PackedPanelBytes(WeightType::kF32, 1 << 24), size_t{1} << 32);
}

TEST(PackTest, Bf16WeightsKeepTheirBitsAndThePaddingIsZero) {
  for (int num_rows : {1, 16, 63, 64}) {
    for (int in : {1, 2, 7, 32}) {
      std::vector<uint16_t> w(static_cast<size_t>(num_rows * in));
      for (size_t i = 0; i < w.size(); ++i) w[i] = static_cast<uint16_t>(0x3f01 + 37 * i);
      const size_t bytes = PackedPanelBytes(WeightType::kBF16, in);
      const AlignedBuffer out = MakeBuffer(bytes);
      std::memset(out.data(), 0xff, bytes);
      PackPanel(DType::kBF16, BytesOf(w), num_rows, in, WeightType::kBF16, out.data());
      for (int n = 0; n < 64; ++n) {
        for (int k = 0; k < (in + 1) / 2 * 2; ++k) {
          const uint16_t want = n < num_rows && k < in ? w[static_cast<size_t>(n * in + k)] : 0;
          ASSERT_EQ(out.as<uint16_t>()[Bf16Index(n, k)], want) << n << ", " << k;
        }
      }
    }
  }
}

TEST(PackTest, F32WeightsKeepTheirBits) {
  constexpr int kIn = 7;
  const AlignedBuffer out = MakeBuffer(PackedPanelBytes(WeightType::kF32, kIn));
  for (const auto& [rows, width] : {std::pair{1, 16}, {16, 16}, {17, 64}, {63, 64}}) {
    const std::vector<float> w = RandomFloats(static_cast<size_t>(rows * kIn), 80);
    std::memset(out.data(), 0xff, out.size());
    PackPanel(DType::kF32, BytesOf(w), rows, kIn, WeightType::kF32, out.data());
    for (int k = 0; k < kIn; ++k) {
      for (int n = 0; n < width; ++n) {
        ASSERT_EQ(out.as<float>()[F32Index(n, k, width)], n < rows ? w[static_cast<size_t>(n * kIn + k)] : 0.0f)
            << rows << " rows";
      }
    }
    for (int i = kIn * width; i < kIn * 64; ++i) ASSERT_EQ(out.as<float>()[i], 0.0f);
  }
}

TEST(PackTest, F32ToBf16RoundsToNearestEven) {
  const std::vector<float> w = {0x1.01p0f,  0x1.03p0f, 0x1.010002p0f,
                                -0x1.01p0f, 0x1p-130f, std::numeric_limits<float>::infinity()};
  const AlignedBuffer out = MakeBuffer(PackedPanelBytes(WeightType::kBF16, 6));
  PackPanel(DType::kF32, BytesOf(w), 1, 6, WeightType::kBF16, out.data());
  const uint16_t want[] = {0x3f80, 0x3f82, 0x3f81, 0xbf80, 0x0008, 0x7f80};
  for (int k = 0; k < 6; ++k) EXPECT_EQ(out.as<uint16_t>()[Bf16Index(0, k)], want[k]) << k;
}

// All 65,536 halves: widening is exact, infinities, zeros and subnormals included.
TEST(PackTest, F16WidensExactly) {
  constexpr int kIn = 1024;
  std::vector<uint16_t> w(64 * kIn);
  for (size_t i = 0; i < w.size(); ++i) w[i] = static_cast<uint16_t>(i);
  const AlignedBuffer out = MakeBuffer(PackedPanelBytes(WeightType::kF32, kIn));
  PackPanel(DType::kF16, BytesOf(w), 64, kIn, WeightType::kF32, out.data());
  for (int n = 0; n < 64; ++n) {
    for (int k = 0; k < kIn; ++k) {
      const uint16_t h = w[static_cast<size_t>(n * kIn + k)];
      const int exponent = h >> 10 & 31;
      const double fraction = h & 0x3ff;
      const double sign = h & 0x8000 ? -1 : 1;
      const float got = out.as<float>()[F32Index(n, k)];
      if (exponent == 31) {
        ASSERT_EQ(std::isnan(got), fraction != 0) << h;
        if (fraction == 0) {
          ASSERT_EQ(got, sign * std::numeric_limits<double>::infinity()) << h;
        }
      } else {
        const double magnitude = exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
        ASSERT_EQ(static_cast<double>(got), sign * magnitude) << h;
        ASSERT_EQ(std::signbit(got), sign < 0) << h;
      }
    }
  }
}

TEST(PackTest, F16ToBf16RoundsOnce) {
  // Largest half, smallest subnormal, a tie to even (1 + 2^-8), infinity.
  const std::vector<uint16_t> w = {0x7bff, 0x0001, 0x3c04, 0xfc00};
  const AlignedBuffer out = MakeBuffer(PackedPanelBytes(WeightType::kBF16, 4));
  PackPanel(DType::kF16, BytesOf(w), 1, 4, WeightType::kBF16, out.data());
  const float want[] = {65536.0f, 0x1p-24f, 1.0f, -std::numeric_limits<float>::infinity()};
  for (int k = 0; k < 4; ++k) EXPECT_EQ(Bf16ToF32(out.as<uint16_t>()[Bf16Index(0, k)]), want[k]) << k;
}

TEST(PackTest, Bf16SourceWidensExactly) {
  const std::vector<uint16_t> w = {0x3f81, 0x0001, 0xff80};
  const AlignedBuffer out = MakeBuffer(PackedPanelBytes(WeightType::kF32, 3));
  PackPanel(DType::kBF16, BytesOf(w), 1, 3, WeightType::kF32, out.data());
  EXPECT_EQ(out.as<float>()[F32Index(0, 0, 16)], 1.0f + 0x1p-7f);
  EXPECT_EQ(out.as<float>()[F32Index(0, 1, 16)], 0x1p-133f);
  EXPECT_EQ(out.as<float>()[F32Index(0, 2, 16)], -std::numeric_limits<float>::infinity());
}

}  // namespace
}  // namespace scion::kernels

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "engine/kernels/reference.h"
#include "tests/engine/kernels/test_util.h"

namespace scion::kernels {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr int kSizes[] = {1, 2, 15, 16, 17, 31, 33, 192, 517, 4096};

class RowOpsTest : public ::testing::TestWithParam<NamedTable> {
 protected:
  const KernelTable& k() const { return *GetParam().table; }
  int Argmax(const std::vector<float>& x) { return k().argmax(x.data(), static_cast<int>(x.size())); }
  float LogSumExp(const std::vector<float>& x) { return k().log_sum_exp(x.data(), static_cast<int>(x.size())); }
};

TEST_P(RowOpsTest, RmsNormMatchesTheReferenceAlsoInPlace) {
  for (int n : kSizes) {
    const std::vector<float> x = RandomFloats(static_cast<size_t>(n), 60);
    const std::vector<float> weight = RandomFloats(static_cast<size_t>(n), 61);
    std::vector<float> out(static_cast<size_t>(n) + 1, -5.0f), in_place = x;
    k().rms_norm(x.data(), weight.data(), 1e-5f, n, out.data());
    k().rms_norm(in_place.data(), weight.data(), 1e-5f, n, in_place.data());
    const std::vector<double> want = reference::RmsNorm(x, weight, 1e-5f);
    for (size_t i = 0; i < x.size(); ++i) {
      ASSERT_NEAR(out[i], want[i], kF32Epsilon * (std::sqrt(n) + 8) * std::abs(want[i])) << n;
    }
    EXPECT_TRUE(SameBytes(in_place.data(), out.data(), x.size() * sizeof(float)));
    EXPECT_EQ(out.back(), -5.0f);
  }
}

TEST_P(RowOpsTest, AddScaledAdds) {
  for (int n : kSizes) {
    const std::vector<float> x = RandomFloats(static_cast<size_t>(n), 62);
    const std::vector<float> before = RandomFloats(static_cast<size_t>(n) + 1, 63);
    std::vector<float> acc = before;
    k().add_scaled(acc.data(), x.data(), 0.3f, n);
    for (size_t i = 0; i < x.size(); ++i) {
      const double want = before[i] + static_cast<double>(0.3f) * x[i];
      ASSERT_NEAR(acc[i], want, kF32Epsilon * 2 * (std::abs(before[i]) + std::abs(x[i])));
    }
    EXPECT_EQ(acc.back(), before.back());
  }
}

TEST_P(RowOpsTest, LogSumExpMatchesTheReference) {
  for (int n : kSizes) {
    for (float scale : {0.0f, 1.0f, 30.0f, 1e4f}) {
      std::vector<float> x = RandomFloats(static_cast<size_t>(n), 64);
      for (float& v : x) v *= scale;
      const double want = reference::LogSumExp(x);
      ASSERT_NEAR(LogSumExp(x), want, kF32Epsilon * (2 * std::sqrt(n) + 8 + std::abs(want))) << n << " x " << scale;
    }
  }
}

TEST_P(RowOpsTest, LogSumExpOfInfinities) {
  EXPECT_EQ(LogSumExp({-kInf, -kInf, -kInf}), -kInf);
  EXPECT_EQ(LogSumExp({-kInf, 2.5f, -kInf}), 2.5f);
  EXPECT_EQ(LogSumExp({0.0f, kInf, -kInf}), kInf);
  EXPECT_TRUE(std::isnan(LogSumExp({0.0f, kNan, 1.0f})));
  EXPECT_TRUE(std::isnan(LogSumExp({kNan, kNan})));
  EXPECT_EQ(LogSumExp({88.5f}), 88.5f);
  EXPECT_EQ(LogSumExp({-1e30f}), -1e30f);
}

TEST_P(RowOpsTest, ArgmaxMatchesTheReference) {
  for (int n : kSizes) {
    for (uint32_t seed = 0; seed < 40; ++seed) {
      std::vector<float> x = RandomFloats(static_cast<size_t>(n), 70 + seed);
      for (float& v : x) {
        if (seed % 2 == 1) v = std::round(v);  // many ties
        if (seed % 4 == 2 && v > 0.5f) v = kNan;
        if (seed % 4 == 3 && v < -0.5f) v = -kInf;
      }
      ASSERT_EQ(Argmax(x), reference::Argmax(x)) << n << ", seed " << seed;
    }
  }
}

TEST_P(RowOpsTest, ArgmaxTakesTheLowestOfTiesAndNeverNan) {
  EXPECT_EQ(Argmax({1.0f}), 0);
  EXPECT_EQ(Argmax({-kInf, -kInf}), 0);
  EXPECT_EQ(Argmax({kNan, -kInf}), 1);
  EXPECT_EQ(Argmax({kNan, kNan, -3.0f, kNan}), 2);
  EXPECT_EQ(Argmax({kInf, kNan, kInf}), 0);
  EXPECT_EQ(Argmax({-0.0f, 0.0f}), 0);
  EXPECT_EQ(Argmax({kNan, kNan, kNan}), 0);
  std::vector<float> x(100, -1.0f);  // padding must not win over negative numbers
  EXPECT_EQ(Argmax(x), 0);
  x[97] = x[99] = -0.5f;
  EXPECT_EQ(Argmax(x), 97);
  x.assign(37, kNan);
  x[36] = -1e30f;
  EXPECT_EQ(Argmax(x), 36);
}

// exp is not in the table; with one large and one small logit, log_sum_exp shows it at every magnitude.
TEST_P(RowOpsTest, ExpIsAccurateOverItsRange) {
  for (float d = 0.0f; d < 16.0f; d += 0.0137f) {
    const std::vector<float> x = {0.0f, -d};
    const double got = std::expm1(static_cast<double>(LogSumExp(x)));
    ASSERT_NEAR(got, std::exp(-static_cast<double>(d)), 6 * kF32Epsilon) << d;
  }
}

INSTANTIATE_TEST_SUITE_P(Tiers, RowOpsTest, ::testing::ValuesIn(AllTables()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace scion::kernels

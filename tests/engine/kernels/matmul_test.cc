#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "engine/kernels/reference.h"
#include "tests/engine/kernels/test_util.h"

namespace scion::kernels {
namespace {

constexpr int kInFeatures[] = {1, 2, 31, 32, 33, 192, 517};
constexpr int kOutFeatures[] = {1, 16, 17, 63, 64, 65, 80, 192, 200};
constexpr int kRows[] = {1, 2, 3, 5, 12, 13, 16, 33, 300};
constexpr WeightType kTypes[] = {WeightType::kBF16, WeightType::kF32, WeightType::kF16};

AlignedBuffer Prepare(const KernelTable& k, WeightType type, const std::vector<float>& x, int rows, int in_features) {
  AlignedBuffer out =
      MakeBuffer(static_cast<size_t>(rows) * k.activation_row_bytes(k.activation_form(type), in_features));
  k.prepare_activations(k.activation_form(type), x.data(), static_cast<size_t>(in_features), nullptr, rows, in_features,
                        out.data());
  return out;
}

std::vector<float> MatMul(const KernelTable& k, const PackedMatrix& w, const std::vector<float>& x, int rows) {
  const AlignedBuffer a = Prepare(k, w.type, x, rows, w.in_features);
  return MatMulOf(k, w, a.data(), rows);
}

std::vector<float> MatMulSwiglu(const KernelTable& k, const PackedMatrix& gate, const PackedMatrix& up,
                                const std::vector<float>& x, int rows) {
  const AlignedBuffer a = Prepare(k, gate.type, x, rows, gate.in_features);
  return Swiglu(k, gate, up, a.data(), rows, 0, NumPanels(gate.out_features));
}

// The activations as this table's matmul sees them.
std::vector<float> Seen(const NamedTable& t, WeightType type, const std::vector<float>& x) {
  return t.bf16_activations && type == WeightType::kBF16 ? RoundedToBf16(x) : x;
}

double Norm(const float* x, int n) {
  double s = 0;
  for (int i = 0; i < n; ++i) s += static_cast<double>(x[i]) * x[i];
  return std::sqrt(s);
}

// A dot product of n terms, each with two roundings: the errors grow with sqrt(n) of the norms' product; 6 standard
// deviations would be 3 * sqrt(2n) halves of a unit.
double DotTolerance(int n, double x_norm, double w_norm) {
  return kF32Epsilon * 4 * std::sqrt(2.0 * n + 1) * x_norm * w_norm + 1e-30;
}

class MatMulTest : public ::testing::TestWithParam<NamedTable> {
 protected:
  const KernelTable& k() const { return *GetParam().table; }
};

TEST_P(MatMulTest, MatchesTheReferenceAtOddSizes) {
  for (WeightType type : kTypes) {
    for (int in : kInFeatures) {
      for (int out : kOutFeatures) {
        const size_t weights = static_cast<size_t>(in) * static_cast<size_t>(out);
        const std::vector<float> w = RandomFloats(weights, 1, type != WeightType::kF32);
        const OwnedMatrix m = Pack(w, out, in, type);
        for (int rows : kRows) {
          const std::vector<float> x = RandomFloats(static_cast<size_t>(rows) * static_cast<size_t>(in), 2);
          const std::vector<float> seen = Seen(GetParam(), type, x);
          const std::vector<double> want = reference::MatMul(seen, w, rows, out, in);
          const std::vector<float> got = MatMul(k(), m.matrix, x, rows);
          for (int r = 0; r < rows; ++r) {
            for (int n = 0; n < out; ++n) {
              const size_t i = static_cast<size_t>(r * out + n);
              ASSERT_NEAR(got[i], want[i],
                          DotTolerance(in, Norm(&seen[static_cast<size_t>(r * in)], in),
                                       Norm(&w[static_cast<size_t>(n * in)], in)))
                  << "in " << in << " out " << out << " rows " << rows << " at " << r << ", " << n;
            }
          }
        }
      }
    }
  }
}

TEST_P(MatMulTest, SwigluMatchesTheReferenceAtOddSizes) {
  for (WeightType type : kTypes) {
    for (int in : {1, 33, 192, 517}) {
      for (int out : {1, 65, 200}) {
        const size_t weights = static_cast<size_t>(in) * static_cast<size_t>(out);
        const std::vector<float> gate = RandomFloats(weights, 1, true);
        const std::vector<float> up = RandomFloats(weights, 2, true);
        const OwnedMatrix gate_m = Pack(gate, out, in, type);
        const OwnedMatrix up_m = Pack(up, out, in, type);
        for (int rows : {1, 5, 13, 300}) {
          std::vector<float> x = RandomFloats(static_cast<size_t>(rows) * static_cast<size_t>(in), 3);
          const std::vector<float> seen = Seen(GetParam(), type, x);
          const std::vector<double> want = reference::MatMulSwiglu(seen, gate, up, rows, out, in);
          const std::vector<float> got = MatMulSwiglu(k(), gate_m.matrix, up_m.matrix, x, rows);
          for (int r = 0; r < rows; ++r) {
            for (int n = 0; n < out; ++n) {
              const size_t i = static_cast<size_t>(r * out + n);
              const double x_norm = Norm(&seen[static_cast<size_t>(r * in)], in);
              const double gate_norm = Norm(&gate[static_cast<size_t>(n * in)], in);
              const double up_norm = Norm(&up[static_cast<size_t>(n * in)], in);
              // |silu'| < 1.1, |silu(g)| <= |g|: the errors of both factors, carried through the product.
              const double tolerance =
                  2.2 * DotTolerance(in, x_norm, gate_norm) * x_norm * up_norm + 1e-6 * std::abs(want[i]) + 1e-30;
              ASSERT_NEAR(got[i], want[i], tolerance) << "in " << in << " out " << out << " at " << r << ", " << n;
            }
          }
        }
      }
    }
  }
}

// Bit for bit what two matrices give that lie apart.
TEST_P(MatMulTest, PanelsOfTwoMatricesMayAlternate) {
  constexpr int kIn = 256, kOut = 200;
  const std::vector<float> gate = RandomFloats(kIn * kOut, 1, true);
  const std::vector<float> up = RandomFloats(kIn * kOut, 2, true);
  for (WeightType type : {WeightType::kBF16, WeightType::kF32, WeightType::kF16, WeightType::kQ8, WeightType::kQ4}) {
    const OwnedMatrix apart[] = {Pack(gate, kOut, kIn, type), Pack(up, kOut, kIn, type)};
    const size_t panel = PackedPanelBytes(type, kIn);
    const AlignedBuffer both = MakeBuffer(2 * PackedBytes(type, kOut, kIn));
    PackedMatrix pair[2];
    for (size_t i = 0; i < 2; ++i) {
      pair[i] = apart[i].matrix;
      pair[i].data = both.data() + i * panel;
      pair[i].panel_stride = 2;
      for (size_t p = 0; p < static_cast<size_t>(NumPanels(kOut)); ++p) {
        std::memcpy(both.data() + (2 * p + i) * panel, apart[i].buffer.data() + p * panel, panel);
      }
    }
    for (int rows : {1, 3, 7, 33}) {
      const std::vector<float> x = RandomFloats(static_cast<size_t>(rows) * kIn, 3);
      EXPECT_EQ(MatMulSwiglu(k(), pair[0], pair[1], x, rows),
                MatMulSwiglu(k(), apart[0].matrix, apart[1].matrix, x, rows))
          << WeightTypeName(type) << ", rows " << rows;
      EXPECT_EQ(MatMul(k(), pair[1], x, rows), MatMul(k(), apart[1].matrix, x, rows))
          << WeightTypeName(type) << ", rows " << rows;
    }
  }
}

TEST_P(MatMulTest, SwigluOfGatesOfAnySize) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  std::vector<float> gates = {0.0f, 1e-30f, -1e-30f, 1e30f, -1e30f, 88.0f, 88.7f, 88.8f, 89.0f, 89.5f, 104.0f};
  for (int i = 0; i < 400; ++i) gates.push_back(-100.0f + 0.5f * static_cast<float>(i));
  gates.push_back(kInf);
  gates.push_back(std::numeric_limits<float>::quiet_NaN());
  const int n = static_cast<int>(gates.size());
  const OwnedMatrix gate = Pack(gates, n, 1, WeightType::kF32);
  const OwnedMatrix up = Pack(std::vector<float>(gates.size(), 0.75f), n, 1, WeightType::kF32);
  const std::vector<float> got = MatMulSwiglu(k(), gate.matrix, up.matrix, {1.0f}, 1);
  for (size_t i = 0; i + 2 < gates.size(); ++i) {
    const double g = gates[i], want = 0.75 * g / (1 + std::exp(-g));
    ASSERT_NEAR(got[i], want, 4 * kF32Epsilon * std::abs(want) + 1e-35) << "gate " << g;
  }
  EXPECT_EQ(got[gates.size() - 2], kInf);
  EXPECT_TRUE(std::isnan(got.back()));
}

// The rule itself, written out for one output element: one accumulator, k ascending; within a pair of bf16 weights the
// even k first, except where vdpbf16ps fixes the opposite.
float OneAccumulator(const NamedTable& t, WeightType type, const float* x, const float* w, int n) {
  const auto add = [&](float acc, int k) {
    if (k >= n) return t.fused ? std::fma(0.0f, 0.0f, acc) : acc + 0.0f * 0.0f;
    if (t.fused) return std::fma(x[k], w[k], acc);
    const float product = x[k] * w[k];
    return acc + product;
  };
  float acc = 0;
  if (type == WeightType::kF32) {
    for (int k = 0; k < n; ++k) acc = add(acc, k);
  } else {
    for (int k = 0; k < n; k += 2) {
      const int first = t.bf16_activations && type == WeightType::kBF16 ? 1 : 0;
      acc = add(add(acc, k + first), k + 1 - first);
    }
  }
  return acc;
}

TEST_P(MatMulTest, EveryOutputIsOneAccumulatorInTheDocumentedOrder) {
  for (WeightType type : kTypes) {
    for (int in : {1, 33, 517, 2500}) {  // the last panel, of 8 features, has two parts of 2500
      constexpr int kOut = 200;
      const std::vector<float> w = RandomFloats(static_cast<size_t>(in * kOut), 4, type != WeightType::kF32);
      const OwnedMatrix m = Pack(w, kOut, in, type);
      for (int rows : {1, 4, 7, 33}) {
        const std::vector<float> x = RandomFloats(static_cast<size_t>(rows * in), 5);
        const std::vector<float> seen = Seen(GetParam(), type, x);
        const std::vector<float> got = MatMul(k(), m.matrix, x, rows);
        for (int r = 0; r < rows; ++r) {
          for (int n = 0; n < kOut; ++n) {
            const float want = OneAccumulator(GetParam(), type, &seen[static_cast<size_t>(r * in)],
                                              &w[static_cast<size_t>(n * in)], in);
            const float y = got[static_cast<size_t>(r * kOut + n)];
            ASSERT_TRUE(SameBytes(&y, &want, sizeof(float)))
                << "in " << in << " rows " << rows << " at " << r << ", " << n << ": " << y << " for " << want;
          }
        }
      }
    }
  }
}

// Rows picked out of a batch by index, in groups of every size up to 40, have the bits that they have in the batch; so
// have columns computed panel by panel.
TEST_P(MatMulTest, RowsHaveTheSameBitsAloneAndInCompany) {
  constexpr int kIn = 517, kOut = 200, kAll = 300;
  for (WeightType type : kTypes) {
    const OwnedMatrix gate = Pack(RandomFloats(kIn * kOut, 6), kOut, kIn, type);
    const OwnedMatrix up = Pack(RandomFloats(kIn * kOut, 7), kOut, kIn, type);
    const std::vector<float> x = RandomFloats(kAll * kIn, 8);
    const std::vector<float> all = MatMul(k(), gate.matrix, x, kAll);
    const std::vector<float> all_swiglu = MatMulSwiglu(k(), gate.matrix, up.matrix, x, kAll);
    std::mt19937 generator(9);
    for (int rows = 1; rows <= 40; ++rows) {
      std::vector<int32_t> index(static_cast<size_t>(rows));
      for (int32_t& i : index) i = static_cast<int32_t>(generator() % kAll);
      AlignedBuffer a =
          MakeBuffer(static_cast<size_t>(rows) * k().activation_row_bytes(k().activation_form(type), kIn));
      k().prepare_activations(k().activation_form(type), x.data(), kIn, index.data(), rows, kIn, a.data());
      constexpr size_t kStride = kOut + 9;
      std::vector<float> y(static_cast<size_t>(rows) * kStride);
      const int cut = 1 + rows % 3;
      for (auto [begin, end] : {std::pair{cut, NumPanels(kOut)}, std::pair{0, cut}}) {
        k().matmul(gate.matrix, a.data(), rows, begin, end, y.data(), kStride, StoreTo::kCache);
      }
      std::vector<float> y_swiglu = Swiglu(k(), gate.matrix, up.matrix, a.data(), rows, 0, cut);
      const std::vector<float> rest = Swiglu(k(), gate.matrix, up.matrix, a.data(), rows, cut, NumPanels(kOut));
      for (size_t i = 0; i < rest.size(); ++i) {
        if (i % kOut >= static_cast<size_t>(cut * kPanelWidth)) y_swiglu[i] = rest[i];
      }
      for (size_t r = 0; r < index.size(); ++r) {
        const size_t at = static_cast<size_t>(index[r]) * kOut;
        ASSERT_TRUE(SameBytes(&y[r * kStride], &all[at], kOut * sizeof(float))) << "row " << r << " of " << rows;
        ASSERT_TRUE(SameBytes(&y_swiglu[r * kOut], &all_swiglu[at], kOut * sizeof(float)))
            << "swiglu, row " << r << " of " << rows;
      }
    }
  }
}

TEST_P(MatMulTest, WritesTheColumnsOfItsPanelsOnly) {
  constexpr int kIn = 33, kOut = 200, kRowCount = 14;
  constexpr size_t kStride = kOut + 70;
  for (WeightType type : kTypes) {
    const OwnedMatrix m = Pack(RandomFloats(kIn * kOut, 10), kOut, kIn, type);
    const AlignedBuffer a = Prepare(k(), type, RandomFloats(kRowCount * kIn, 11), kRowCount, kIn);
    for (int panel = 0; panel < NumPanels(kOut); ++panel) {
      std::vector<float> y(kRowCount * kStride, -77.0f);
      k().matmul(m.matrix, a.data(), kRowCount, panel, panel + 1, y.data(), kStride, StoreTo::kCache);
      const std::vector<float> y_swiglu = Swiglu(k(), m.matrix, m.matrix, a.data(), kRowCount, panel, panel + 1);
      for (size_t r = 0; r < kRowCount; ++r) {
        for (size_t n = 0; n < kStride; ++n) {
          const bool ours = n / kPanelWidth == static_cast<size_t>(panel) && n < kOut;
          ASSERT_EQ(y[r * kStride + n] != -77.0f, ours) << "panel " << panel << " row " << r << " column " << n;
          if (n >= kOut) continue;
          ASSERT_EQ(y_swiglu[r * kOut + n] != -77.0f, ours) << "panel " << panel << " row " << r << " column " << n;
        }
      }
    }
  }
}

TEST_P(MatMulTest, LeavesTheSameInMemoryAsInCaches) {
  constexpr int kIn = 33, kOut = 200, kRowCount = 14;
  for (WeightType type : kTypes) {
    const OwnedMatrix m = Pack(RandomFloats(kIn * kOut, 10), kOut, kIn, type);
    const AlignedBuffer a = Prepare(k(), type, RandomFloats(kRowCount * kIn, 11), kRowCount, kIn);
    // Rows of whole cache lines, which a tier may store past its caches, and rows and a place that are not.
    for (const size_t stride : {size_t{208}, size_t{200}}) {
      for (const size_t first : {size_t{0}, size_t{16}, size_t{1}}) {
        const size_t floats = first + kRowCount * stride;
        std::vector<AlignedBuffer> ys;
        for (const StoreTo to : {StoreTo::kCache, StoreTo::kMemory}) {
          ys.push_back(MakeBuffer(floats * sizeof(float)));
          std::fill_n(ys.back().as<float>(), floats, -77.0f);
          k().matmul(m.matrix, a.data(), kRowCount, 0, NumPanels(kOut), ys.back().as<float>() + first, stride, to);
        }
        ASSERT_NE(ys[0].as<float>()[floats - stride], -77.0f);
        ASSERT_TRUE(SameBytes(ys[1].as<float>(), ys[0].as<float>(), floats * sizeof(float)))
            << "stride " << stride << " from " << first;
      }
    }
  }
}

// What swiglu leaves for the next matmul is, to the bit, what preparing its fp32 makes.
TEST_P(MatMulTest, SwigluIsPreparedForTheNextMatrix) {
  constexpr int kIn = 64, kRowCount = 13;
  for (WeightType type : {WeightType::kBF16, WeightType::kF32, WeightType::kQ8}) {
    for (int out : {1, 15, 17, 31, 33, 48, 64, 65, 90, 200}) {
      const size_t weights = static_cast<size_t>(kIn * out);
      const OwnedMatrix gate = Pack(RandomFloats(weights, 15), out, kIn, type);
      const OwnedMatrix up = Pack(RandomFloats(weights, 16), out, kIn, type);
      std::vector<float> x = RandomFloats(kRowCount * kIn, 17);
      x[5 * kIn] = HUGE_VALF;  // times the panel's padding: not a number, and none of the row's values
      const AlignedBuffer a = Prepare(k(), type, x, kRowCount, kIn);
      const std::vector<float> y = Swiglu(k(), gate.matrix, up.matrix, a.data(), kRowCount, 0, NumPanels(out));
      for (ActivationForm form : {ActivationForm::kF32, ActivationForm::kBF16, ActivationForm::kInt8}) {
        const size_t bytes = kRowCount * k().activation_row_bytes(form, out);
        const AlignedBuffer want = MakeBuffer(bytes), got = MakeBuffer(bytes);
        k().prepare_activations(form, y.data(), static_cast<size_t>(out), nullptr, kRowCount, out, want.data());
        k().matmul_swiglu(gate.matrix, up.matrix, a.data(), kRowCount, 0, NumPanels(out), form, got.data());
        EXPECT_TRUE(SameBytes(got.data(), want.data(), bytes))
            << WeightTypeName(type) << ", out " << out << ", form " << static_cast<int>(form);
      }
    }
  }
}

// Rows prepared one by one lie where they lie when prepared together: a caller may spread the work.
TEST_P(MatMulTest, ActivationsOfARowDoNotDependOnTheOthers) {
  for (WeightType type : kTypes) {
    for (int in : kInFeatures) {
      const size_t row_bytes = k().activation_row_bytes(k().activation_form(type), in);
      EXPECT_EQ(row_bytes % 64, 0u);
      const std::vector<float> x = RandomFloats(static_cast<size_t>(7 * in), 12);
      const AlignedBuffer together = Prepare(k(), type, x, 7, in);
      const AlignedBuffer apart = MakeBuffer(7 * row_bytes);
      for (int r = 0; r < 7; ++r) {
        k().prepare_activations(k().activation_form(type), x.data() + r * in, 0, nullptr, 1, in,
                                apart.data() + static_cast<size_t>(r) * row_bytes);
      }
      EXPECT_TRUE(SameBytes(together.data(), apart.data(), 7 * row_bytes));
    }
  }
}

TEST_P(MatMulTest, NanStaysInItsRow) {
  constexpr int kIn = 33, kOut = 65, kRowCount = 13;
  for (WeightType type : kTypes) {
    const OwnedMatrix m = Pack(RandomFloats(kIn * kOut, 13), kOut, kIn, type);
    std::vector<float> x = RandomFloats(kRowCount * kIn, 14);
    const std::vector<float> clean = MatMul(k(), m.matrix, x, kRowCount);
    x[5 * kIn + 32] = std::nanf("");
    const std::vector<float> y = MatMul(k(), m.matrix, x, kRowCount);
    for (size_t r = 0; r < kRowCount; ++r) {
      for (size_t n = 0; n < kOut; ++n) {
        if (r == 5) {
          EXPECT_TRUE(std::isnan(y[r * kOut + n]));
        } else {
          EXPECT_EQ(y[r * kOut + n], clean[r * kOut + n]);
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Tiers, MatMulTest, ::testing::ValuesIn(AllTables()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace scion::kernels

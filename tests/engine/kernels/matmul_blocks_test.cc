// Matmul on blocked weights: what is stored, what is computed, and that company changes no bit.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <utility>

#include "engine/kernels/ggml_blocks.h"
#include "tests/engine/kernels/test_util.h"

namespace scion::kernels {
namespace {

constexpr DType kBlockTypes[] = {DType::kQ8_0, DType::kQ4_0, DType::kQ4_1, DType::kQ5_0,
                                 DType::kQ5_1, DType::kQ4K,  DType::kQ5K,  DType::kQ6K};

// Rows of blocks of arbitrary codes; the fp16 scales are finite and of moderate size.
std::vector<std::byte> RandomBlocks(DType type, int rows, int in_features, uint32_t seed) {
  std::mt19937 generator(seed);
  const size_t row_bytes = DTypeRowBytes(type, static_cast<uint64_t>(in_features));
  std::vector<std::byte> out(static_cast<size_t>(rows) * row_bytes);
  for (std::byte& b : out) b = static_cast<std::byte>(generator());
  const auto set_half = [&](size_t at) {
    const uint16_t half = static_cast<uint16_t>((generator() & 0x83ff) | 0x1800 | (generator() & 0x0400));
    std::memcpy(&out[at], &half, sizeof(half));
  };
  for (size_t at = 0; at < out.size(); at += DTypeBytes(type)) {
    set_half(type == DType::kQ6K ? at + 208 : at);
    if (type == DType::kQ4_1 || type == DType::kQ5_1 || type == DType::kQ4K || type == DType::kQ5K) set_half(at + 2);
  }
  return out;
}

struct BlockMatrix {
  std::vector<float> values;  // [out_features, in_features]
  OwnedMatrix packed;
};

BlockMatrix RandomMatrix(DType type, int out_features, int in_features, uint32_t seed) {
  const std::vector<std::byte> blocks = RandomBlocks(type, out_features, in_features, seed);
  const size_t row_bytes = DTypeRowBytes(type, static_cast<uint64_t>(in_features));
  BlockMatrix m;
  m.values.resize(static_cast<size_t>(out_features) * static_cast<size_t>(in_features));
  for (int n = 0; n < out_features; ++n) {
    DequantizeRow(type, blocks.data() + static_cast<size_t>(n) * row_bytes, in_features,
                  &m.values[static_cast<size_t>(n * in_features)]);
  }
  const WeightType packed = *ExactWeightType(type);
  m.packed.buffer = MakeBuffer(PackedBytes(packed, out_features, in_features));
  for (int p = 0; p < NumPanels(out_features); ++p) {
    PackPanel(type, blocks.data() + static_cast<size_t>(p * kPanelWidth) * row_bytes,
              std::min(kPanelWidth, out_features - p * kPanelWidth), in_features, packed,
              m.packed.buffer.data() + static_cast<size_t>(p) * PackedPanelBytes(packed, in_features));
  }
  m.packed.matrix = {m.packed.buffer.data(), out_features, in_features, packed};
  return m;
}

struct Int8Activations {
  std::vector<double> values;  // scale * code, as the kernels see them
  AlignedBuffer prepared;
};

// The rule of rounding, written out: a block's scale is its largest magnitude over 127.
Int8Activations Prepare(const KernelTable& k, const std::vector<float>& x, int rows, int in_features) {
  Int8Activations a;
  const size_t row_bytes = k.activation_row_bytes(ActivationForm::kInt8, in_features);
  a.prepared = MakeBuffer(static_cast<size_t>(rows) * row_bytes);
  k.prepare_activations(ActivationForm::kInt8, x.data(), static_cast<size_t>(in_features), nullptr, rows, in_features,
                        a.prepared.data());
  a.values.resize(x.size());
  for (size_t begin = 0; begin < x.size(); begin += kBlockElements) {
    float largest = 0;
    for (size_t i = begin; i < begin + kBlockElements; ++i) largest = std::max(largest, std::fabs(x[i]));
    const float inverse = largest > 0 ? 127.0f / largest : 0.0f;
    const float scale = largest * (1.0f / 127.0f);
    for (size_t i = begin; i < begin + kBlockElements; ++i) {
      a.values[i] = static_cast<double>(scale) * std::nearbyint(x[i] * inverse);
    }
  }
  return a;
}

std::vector<float> MatMul(const KernelTable& k, const PackedMatrix& w, const AlignedBuffer& prepared, int rows) {
  std::vector<float> y(static_cast<size_t>(rows) * static_cast<size_t>(w.out_features));
  k.matmul(w, prepared.data(), rows, 0, NumPanels(w.out_features), y.data(), static_cast<size_t>(w.out_features));
  return y;
}

class MatMulBlocksTest : public ::testing::TestWithParam<NamedTable> {
 protected:
  const KernelTable& k() const { return *GetParam().table; }
};

// Against double precision on the dequantised weights and the rounded activations: only the additions of block sums
// round.
TEST_P(MatMulBlocksTest, MatchesTheReferenceAtOddSizes) {
  for (DType type : kBlockTypes) {
    for (int in : {DTypeBlockElements(type), 3 * 256, 1024 + 256}) {
      for (int out : {1, 63, 65, 200}) {
        const BlockMatrix m = RandomMatrix(type, out, in, 1);
        for (int rows : {1, 2, 3, 4, 5, 6, 7, 13, 100}) {
          const std::vector<float> x = RandomFloats(static_cast<size_t>(rows * in), 2);
          const Int8Activations a = Prepare(k(), x, rows, in);
          const std::vector<float> got = MatMul(k(), m.packed.matrix, a.prepared, rows);
          for (int r = 0; r < rows; ++r) {
            for (int n = 0; n < out; ++n) {
              double want = 0, magnitude = 0;
              for (int i = 0; i < in; ++i) {
                const double product =
                    a.values[static_cast<size_t>(r * in + i)] * m.values[static_cast<size_t>(n * in + i)];
                want += product;
                magnitude += std::fabs(product);
              }
              ASSERT_NEAR(got[static_cast<size_t>(r * out + n)], want, 1e-6 * magnitude + 1e-12)
                  << DTypeName(type) << " in " << in << " out " << out << " rows " << rows << " at " << r << ", " << n;
            }
          }
        }
      }
    }
  }
}

TEST_P(MatMulBlocksTest, RowsHaveTheSameBitsAloneAndInCompany) {
  constexpr int kIn = 1024, kOut = 200, kAll = 300;
  for (DType type : kBlockTypes) {
    const BlockMatrix gate = RandomMatrix(type, kOut, kIn, 3);
    const BlockMatrix up = RandomMatrix(type, kOut, kIn, 4);
    const std::vector<float> x = RandomFloats(kAll * kIn, 5);
    const Int8Activations a = Prepare(k(), x, kAll, kIn);
    const size_t row_bytes = k().activation_row_bytes(ActivationForm::kInt8, kIn);
    const std::vector<float> all = MatMul(k(), gate.packed.matrix, a.prepared, kAll);
    std::vector<float> all_swiglu(all.size());
    k().matmul_swiglu(gate.packed.matrix, up.packed.matrix, a.prepared.data(), kAll, 0, NumPanels(kOut),
                      all_swiglu.data(), kOut);
    for (int rows = 1; rows <= 40; ++rows) {
      const int first = (rows * 37) % (kAll - rows);
      std::vector<float> y(static_cast<size_t>(rows * kOut)), y_swiglu = y;
      const std::byte* from = a.prepared.data() + static_cast<size_t>(first) * row_bytes;
      for (auto [begin, end] : {std::pair{1, NumPanels(kOut)}, std::pair{0, 1}}) {
        k().matmul(gate.packed.matrix, from, rows, begin, end, y.data(), kOut);
        k().matmul_swiglu(gate.packed.matrix, up.packed.matrix, from, rows, begin, end, y_swiglu.data(), kOut);
      }
      const size_t at = static_cast<size_t>(first * kOut);
      ASSERT_TRUE(SameBytes(y.data(), &all[at], y.size() * sizeof(float))) << DTypeName(type) << ", rows " << rows;
      ASSERT_TRUE(SameBytes(y_swiglu.data(), &all_swiglu[at], y.size() * sizeof(float)))
          << "swiglu, " << DTypeName(type) << ", rows " << rows;
    }
  }
}

// Integers are exact: all tiers that fuse multiply and add agree to the last bit.
TEST_P(MatMulBlocksTest, FusingTiersAgree) {
  constexpr int kIn = 768, kOut = 130, kRows = 9;
  if (!GetParam().fused) return;
  for (DType type : kBlockTypes) {
    const BlockMatrix m = RandomMatrix(type, kOut, kIn, 6);
    const std::vector<float> x = RandomFloats(kRows * kIn, 7);
    const std::vector<float> got = MatMul(k(), m.packed.matrix, Prepare(k(), x, kRows, kIn).prepared, kRows);
    for (const NamedTable& t : AllTables()) {
      if (!t.fused) continue;
      const std::vector<float> other =
          MatMul(*t.table, m.packed.matrix, Prepare(*t.table, x, kRows, kIn).prepared, kRows);
      EXPECT_TRUE(SameBytes(got.data(), other.data(), got.size() * sizeof(float))) << DTypeName(type) << ", " << t.name;
    }
  }
}

TEST_P(MatMulBlocksTest, WhatIsNotFiniteStaysInItsRowAndShows) {
  constexpr int kIn = 256, kOut = 65, kRows = 9;
  for (const float bad : {std::nanf(""), HUGE_VALF, -HUGE_VALF}) {
    const BlockMatrix m = RandomMatrix(DType::kQ4_0, kOut, kIn, 8);
    std::vector<float> x = RandomFloats(kRows * kIn, 9);
    const std::vector<float> clean = MatMul(k(), m.packed.matrix, Prepare(k(), x, kRows, kIn).prepared, kRows);
    x[5 * kIn + 17] = bad;
    const std::vector<float> y = MatMul(k(), m.packed.matrix, Prepare(k(), x, kRows, kIn).prepared, kRows);
    for (size_t r = 0; r < kRows; ++r) {
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

TEST_P(MatMulBlocksTest, AnActivationBlockIsRoundedByItsLargestMagnitude) {
  std::vector<float> x(64, 0.0f);
  x[0] = 1.0f;
  x[1] = -2.0f;
  x[2] = 2.0f * 63.5f / 127.0f;   // a tie: to even
  x[3] = -2.0f * 0.49f / 127.0f;  // rounds to none
  const Int8Activations a = Prepare(k(), x, 1, 64);
  const int8_t* codes = reinterpret_cast<const int8_t*>(a.prepared.data());
  EXPECT_EQ(codes[0], 64);
  EXPECT_EQ(codes[1], -127);
  EXPECT_EQ(codes[2], 64);
  EXPECT_EQ(codes[3], 0);
  for (int i = 4; i < 32; ++i) EXPECT_EQ(codes[i], 0) << i;
}

INSTANTIATE_TEST_SUITE_P(Tiers, MatMulBlocksTest, ::testing::ValuesIn(AllTables()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace scion::kernels

// Matmul on blocked weights: what is stored, what is computed, and that company changes no bit.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <utility>

#include "engine/kernels/ggml_blocks.h"
#include "engine/kernels/packed_blocks.h"
#include "tests/engine/kernels/test_util.h"

namespace scion::kernels {
namespace {

constexpr DType kBlockTypes[] = {DType::kQ8_0, DType::kQ4_0, DType::kQ4_1, DType::kQ5_0,
                                 DType::kQ5_1, DType::kQ4K,  DType::kQ5K,  DType::kQ6K};

// Rows of blocks of arbitrary codes, or of bytes drawn from `bytes`; the fp16 scales are finite and of moderate size.
std::vector<std::byte> RandomBlocks(DType type, int rows, int in_features, uint32_t seed,
                                    const std::vector<uint8_t>& bytes = {}) {
  std::mt19937 generator(seed);
  const size_t row_bytes = DTypeRowBytes(type, static_cast<uint64_t>(in_features));
  std::vector<std::byte> out(static_cast<size_t>(rows) * row_bytes);
  for (std::byte& b : out) {
    const uint32_t random = generator();
    b = static_cast<std::byte>(bytes.empty() ? random : bytes[random % bytes.size()]);
  }
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

BlockMatrix RandomMatrix(DType type, int out_features, int in_features, uint32_t seed,
                         const std::vector<uint8_t>& bytes = {}) {
  const std::vector<std::byte> blocks = RandomBlocks(type, out_features, in_features, seed, bytes);
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
  return MatMulOf(k, w, prepared.data(), rows);
}

class MatMulBlocksTest : public ::testing::TestWithParam<NamedTable> {
 protected:
  const KernelTable& k() const { return *GetParam().table; }
};

// Against double precision on the dequantised weights and the rounded activations: only the additions of block sums
// round.
void ExpectMatchesReference(const BlockMatrix& m, const Int8Activations& a, const std::vector<float>& got, int rows) {
  const int in = m.packed.matrix.in_features;
  const int out = m.packed.matrix.out_features;
  for (int r = 0; r < rows; ++r) {
    for (int n = 0; n < out; ++n) {
      double want = 0, magnitude = 0;
      for (int i = 0; i < in; ++i) {
        const double product = a.values[static_cast<size_t>(r * in + i)] * m.values[static_cast<size_t>(n * in + i)];
        want += product;
        magnitude += std::fabs(product);
      }
      ASSERT_NEAR(got[static_cast<size_t>(r * out + n)], want, 1e-6 * magnitude + 1e-12)
          << "in " << in << " out " << out << " rows " << rows << " at " << r << ", " << n;
    }
  }
}

TEST_P(MatMulBlocksTest, MatchesTheReferenceAtOddSizes) {
  for (DType type : kBlockTypes) {
    for (int in : {DTypeBlockElements(type), 3 * 256, 1024 + 256}) {
      for (int out : {1, 63, 65, 200}) {
        const BlockMatrix m = RandomMatrix(type, out, in, 1);
        for (int rows : {1, 2, 3, 4, 5, 6, 7, 13, 100}) {
          const std::vector<float> x = RandomFloats(static_cast<size_t>(rows * in), 2);
          const Int8Activations a = Prepare(k(), x, rows, in);
          const std::vector<float> got = MatMul(k(), m.packed.matrix, a.prepared, rows);
          ASSERT_NO_FATAL_FAILURE(ExpectMatchesReference(m, a, got, rows)) << DTypeName(type);
        }
      }
    }
  }
}

// The largest codes on both sides: two products of an unsigned and a signed byte exceed 16 bits, 32 of them too, and
// the magnitude of -128 exceeds 7 bits. Sums that saturate or wrap are off by about as much as they should be.
TEST_P(MatMulBlocksTest, DotProductsOfExtremeCodesAreExact) {
  constexpr int kIn = 512, kOut = 65, kRows = 7;
  // Activations of one magnitude, so that every code is 127, 0 or -127: all positive, all negative, alternating in two
  // ways, half zeros, then random.
  std::vector<float> x(kRows * kIn);
  std::mt19937 generator(10);
  for (int i = 0; i < kIn; ++i) {
    const float row[kRows] = {1.0f,
                              -1.0f,
                              i % 2 == 0 ? 1.0f : -1.0f,
                              i % 4 < 2 ? -1.0f : 1.0f,
                              i % 32 < 16 ? 0.0f : 1.0f,
                              static_cast<float>(generator() % 3) - 1.0f,
                              generator() % 2 == 0 ? 1.0f : -1.0f};
    for (int r = 0; r < kRows; ++r) x[static_cast<size_t>(r * kIn + i)] = row[r];
  }
  const Int8Activations a = Prepare(k(), x, kRows, kIn);
  const std::vector<uint8_t> all_bytes[] = {
      {0x00}, {0xff}, {0x80}, {0x7f}, {0x81}, {0x00, 0xff}, {0x80, 0x7f, 0x81, 0xff}};
  for (DType type : kBlockTypes) {
    for (const std::vector<uint8_t>& bytes : all_bytes) {
      const BlockMatrix m = RandomMatrix(type, kOut, kIn, 11, bytes);
      const std::vector<float> got = MatMul(k(), m.packed.matrix, a.prepared, kRows);
      ASSERT_NO_FATAL_FAILURE(ExpectMatchesReference(m, a, got, kRows))
          << DTypeName(type) << " of bytes like " << int{bytes[0]};
    }
  }
}

// A tier may rely on BlockFormat's bound; arbitrary blocks do not go beyond.
template <WeightType kType>
void ExpectCodesUpTo(DType type, int largest) {
  using Format = BlockFormat<kType>;
  EXPECT_EQ(Format::kMaxCode, largest) << DTypeName(type);
  const BlockMatrix m = RandomMatrix(type, kPanelWidth, 1024, 12);
  ASSERT_EQ(m.packed.matrix.type, kType);
  std::set<int> codes;
  for (size_t block = 0; block < 1024 / kBlockElements; ++block) {
    const size_t unit = block / Format::kBlocksPerUnit;
    const std::byte* of_block = m.packed.matrix.data + (unit + 1) * Format::kSuperBytes + block * Format::kBytes;
    for (size_t i = 0; i < Format::kScales; ++i) codes.insert(static_cast<int>(of_block[i]));
  }
  EXPECT_LE(*codes.rbegin(), largest) << DTypeName(type);
}

TEST(BlockFormatTest, CodesLieWithinTheBoundOfTheirFormat) {
  ExpectCodesUpTo<WeightType::kQ8>(DType::kQ8_0, 255);
  ExpectCodesUpTo<WeightType::kQ8>(DType::kQ5_0, 255);
  ExpectCodesUpTo<WeightType::kQ8Min>(DType::kQ5_1, 31);
  ExpectCodesUpTo<WeightType::kQ8Super>(DType::kQ5K, 31);
}

TEST(BlockFormatTest, BytesOfAWeight) {
  constexpr size_t kValues = kPanelWidth * 256;
  EXPECT_EQ(PackedBytes(WeightType::kQ8, kPanelWidth, 256), kValues + kValues / 32 * 2);
  EXPECT_EQ(PackedBytes(WeightType::kQ4, kPanelWidth, 256), kValues / 2 + kValues / 32 * 2);
  EXPECT_EQ(PackedBytes(WeightType::kQ8Min, kPanelWidth, 256), kValues + kValues / 32 * 4);
  EXPECT_EQ(PackedBytes(WeightType::kQ4Min, kPanelWidth, 256), kValues / 2 + kValues / 32 * 4);
  EXPECT_EQ(PackedBytes(WeightType::kQ6, kPanelWidth, 256), kValues * 7 / 8);
  // 0.578 and 1.078 bytes; 0.5625 and 0.6875 on disk.
  EXPECT_EQ(PackedBytes(WeightType::kQ4Super, kPanelWidth, 256), kValues / 2 + kValues / 32 * 2 + kValues / 256 * 4);
  EXPECT_EQ(PackedBytes(WeightType::kQ8Super, kPanelWidth, 256), kValues + kValues / 32 * 2 + kValues / 256 * 4);
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
    const std::vector<float> all_swiglu =
        Swiglu(k(), gate.packed.matrix, up.packed.matrix, a.prepared.data(), kAll, 0, NumPanels(kOut));
    for (int rows = 1; rows <= 40; ++rows) {
      const int first = (rows * 37) % (kAll - rows);
      std::vector<float> y(static_cast<size_t>(rows * kOut));
      const std::byte* from = a.prepared.data() + static_cast<size_t>(first) * row_bytes;
      for (auto [begin, end] : {std::pair{1, NumPanels(kOut)}, std::pair{0, 1}}) {
        k().matmul(gate.packed.matrix, from, rows, begin, end, y.data(), kOut, StoreTo::kCache);
      }
      const std::vector<float> y_swiglu =
          Swiglu(k(), gate.packed.matrix, up.packed.matrix, from, rows, 0, NumPanels(kOut));
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

// Of magnitudes that have no inverse, or none that is precise, nothing is left; codes stay within 127 all the same.
TEST_P(MatMulBlocksTest, TheSmallestActivationsAreZero) {
  for (float largest : {0x1p-149f, 0x1p-130f, 0x1p-126f, 0x1p-119f}) {
    std::vector<float> x(32, largest / 2);
    x[7] = -largest;
    const Int8Activations a = Prepare(k(), x, 1, 32);
    const int8_t* codes = reinterpret_cast<const int8_t*>(a.prepared.data());
    for (int i = 0; i < 32; ++i)
      EXPECT_EQ(codes[i], largest < 0x1p-120f ? 0 : i == 7 ? -127 : 64) << largest << " " << i;
  }
}

TEST_P(MatMulBlocksTest, AnActivationBlockThatIsNotFiniteHasNoScale) {
  for (float bad : {std::nanf(""), -std::nanf(""), HUGE_VALF, -HUGE_VALF}) {
    for (size_t at : {0, 5, 15, 16, 31}) {
      std::vector<float> x(64, 1.0f);
      x[at] = bad;
      const Int8Activations a = Prepare(k(), x, 1, 64);
      float scale[2];
      std::memcpy(&scale[0], a.prepared.data() + kBlockElements, sizeof(float));
      std::memcpy(&scale[1], a.prepared.data() + 64 + kBlockElements, sizeof(float));
      EXPECT_TRUE(std::isnan(scale[0])) << bad << " at " << at;
      EXPECT_EQ(scale[1], 1.0f / 127.0f);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Tiers, MatMulBlocksTest, ::testing::ValuesIn(AllTables()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace scion::kernels

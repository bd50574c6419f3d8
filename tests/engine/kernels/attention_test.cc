#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <numeric>

#include "engine/kernels/reference.h"
#include "tests/engine/kernels/test_util.h"

namespace scion::kernels {
namespace {

// A block pool of one layer, and a sequence whose blocks lie in it in a shuffled order.
struct Cache {
  AlignedBuffer k, v;
  KvPlanes planes;
  std::vector<int32_t> block_table;

  Cache(KvType type, int num_kv_heads, int head_dim, int blocks, uint32_t seed)
      : block_table(static_cast<size_t>(blocks)) {
    // Between two blocks lies what is another plane's.
    const size_t stride = static_cast<size_t>(num_kv_heads * head_dim * kKvBlockTokens) * KvTypeBytes(type) + 192;
    k = MakeBuffer(stride * static_cast<size_t>(blocks));
    v = MakeBuffer(stride * static_cast<size_t>(blocks));
    std::iota(block_table.begin(), block_table.end(), 0);
    std::shuffle(block_table.begin(), block_table.end(), std::mt19937(seed));
    planes = {k.data(), v.data(), stride, num_kv_heads, head_dim, type};
  }
};

// Keys and values of a sequence, [tokens, num_kv_heads, head_dim] each.
struct Sequence {
  int tokens, num_kv_heads, head_dim;
  std::vector<float> k, v;

  Sequence(int tokens, int num_kv_heads, int head_dim, uint32_t seed)
      : tokens(tokens), num_kv_heads(num_kv_heads), head_dim(head_dim) {
    const size_t n = static_cast<size_t>(tokens * num_kv_heads * head_dim);
    k = RandomFloats(n, seed);
    v = RandomFloats(n, seed + 1);
  }

  void WriteTo(const KernelTable& kernels, const Cache& cache) const {
    const size_t stride = static_cast<size_t>(num_kv_heads * head_dim);
    for (int t = 0; t < tokens; t += kKvBlockTokens) {
      const size_t at = static_cast<size_t>(t) * stride;
      kernels.write_kv(cache.planes, cache.block_table[static_cast<size_t>(t / kKvBlockTokens)], 0,
                       std::min(tokens - t, kKvBlockTokens), k.data() + at, v.data() + at, stride);
    }
  }

  // [tokens, head_dim] of one head, as the cache holds it.
  std::vector<float> Head(const std::vector<float>& x, int head, KvType type) const {
    std::vector<float> out;
    for (int t = 0; t < tokens; ++t) {
      const float* row = x.data() + (static_cast<ptrdiff_t>(t) * num_kv_heads + head) * head_dim;
      out.insert(out.end(), row, row + head_dim);
    }
    if (type == KvType::kBF16) return RoundedToBf16(out);
    if (type == KvType::kF16) {
      for (float& f : out) f = F16ToF32(F32ToF16(f));
    }
    return out;
  }
};

class AttentionTest : public ::testing::TestWithParam<NamedTable> {
 protected:
  const KernelTable& kernels() const { return *GetParam().table; }

  std::vector<float> Attend(const Cache& cache, int position, int kv_head, int group, const std::vector<float>& q) {
    std::vector<float> out(q.size(), -99.0f);
    kernels().attend(cache.planes, cache.block_table.data(), position, 1, kv_head, 1, group, q.data(), 0,
                     1.0f / std::sqrt(static_cast<float>(cache.planes.head_dim)), out.data(), 0);
    return out;
  }
};

TEST_P(AttentionTest, MatchesTheReference) {
  struct Shape {
    int num_kv_heads, group, head_dim;
  };
  for (KvType type : kAllKvTypes) {
    for (Shape s : {Shape{1, 1, 16}, Shape{2, 2, 32}, Shape{3, 3, 48}, Shape{2, 4, 64}, Shape{1, 5, 80},
                    Shape{2, 7, 96}, Shape{1, 8, 128}, Shape{2, 9, 256}, Shape{1, 16, 112}, Shape{1, 64, 16}}) {
      const Sequence sequence(301, s.num_kv_heads, s.head_dim, 20);
      const Cache cache(type, s.num_kv_heads, s.head_dim, 11, 3);
      sequence.WriteTo(kernels(), cache);
      // What a tier rounds is taken out of the comparison: queries that are bf16 already, and a bound for the weights.
      const std::vector<float> q = RandomFloats(static_cast<size_t>(s.group * s.head_dim), 22, true);
      const bool rounds_weights = type == KvType::kBF16 && GetParam().bf16_activations;
      const int head = s.num_kv_heads - 1;
      const std::vector<float> k = sequence.Head(sequence.k, head, type);
      const std::vector<float> v = sequence.Head(sequence.v, head, type);
      const double scale = 1.0f / std::sqrt(static_cast<float>(s.head_dim));
      for (int position : {0, 1, 14, 15, 16, 30, 31, 32, 33, 63, 64, 100, 300}) {
        const std::vector<float> got = Attend(cache, position, head, s.group, q);
        for (int g = 0; g < s.group; ++g) {
          const std::span<const float> q_head(q.data() + g * s.head_dim, static_cast<size_t>(s.head_dim));
          const std::vector<double> want = reference::Attend(q_head, k, v, position + 1, scale);
          // A score s has an error of about 2^-24 sqrt(head_dim) |q||k| scale, which moves its weight by as much
          // (relative); |q|, |k| ~ sqrt(head_dim), |v| < 5. Then the sums over at most 301 tokens.
          // Weights rounded to bf16 are off by 2^-9 of themselves at most, and all of them together are 1.
          const double tolerance =
              kF32Epsilon * 4 * 5 * (s.head_dim + 2 * std::sqrt(301.0) + 16) + (rounds_weights ? 0x1p-9 * 5 : 0.0);
          for (int d = 0; d < s.head_dim; ++d) {
            ASSERT_NEAR(got[static_cast<size_t>(g * s.head_dim + d)], want[static_cast<size_t>(d)], tolerance)
                << "head_dim " << s.head_dim << " group " << s.group << " position " << position << " head " << g;
          }
        }
      }
    }
  }
}

TEST_P(AttentionTest, ALargeScoreDoesNotOverflow) {
  const Sequence sequence(40, 1, 16, 24);
  const Cache cache(KvType::kF32, 1, 16, 2, 3);
  sequence.WriteTo(kernels(), cache);
  std::vector<float> q = RandomFloats(16, 25);
  for (float& x : q) x *= 1000.0f;
  const std::vector<float> got = Attend(cache, 39, 0, 1, q);
  const std::vector<double> want = reference::Attend(q, sequence.k, sequence.v, 40, 0.25);
  for (size_t d = 0; d < 16; ++d) EXPECT_NEAR(got[d], want[d], 1e-2);
}

// Tokens with the score 0 and one after them with the score `last`; the values tell which is which.
TEST_P(AttentionTest, AWeightIsThePowerOfItsScore) {
  constexpr int kHeadDim = 16;
  std::vector<float> q(kHeadDim, 0.0f);
  q[0] = 4.0f;  // 1 over the scale of scores
  for (int before : {1, 32}) {
    for (int i = -400; i <= 400; ++i) {
      const float last = static_cast<float>(i * std::abs(i)) / 1600.0f;  // up to 100, the closer the smaller
      Sequence sequence(before + 1, 1, kHeadDim, 26);
      std::ranges::fill(sequence.k, 0.0f);
      std::ranges::fill(sequence.v, i > 0 ? 1.0f : 0.0f);
      sequence.k[static_cast<size_t>(before * kHeadDim)] = last;
      std::ranges::fill(std::span(sequence.v).last(kHeadDim), i > 0 ? 0.0f : 1.0f);
      const Cache cache(KvType::kF32, 1, kHeadDim, 2, 3);
      sequence.WriteTo(kernels(), cache);
      const std::vector<float> got = Attend(cache, before, 0, 1, q);
      // Of the side with the lower score, which nothing else can hide.
      const double power = std::exp(-std::abs(static_cast<double>(last)));
      const double few = i > 0 ? before * power : power, many = i > 0 ? 1.0 : before;
      const double want = power < 0x1p-126 ? 0.0 : few / (few + many);
      // Scores are rounded, and rounded again as a multiple of log2(e).
      const double tolerance = kF32Epsilon * (6 + 2 * std::abs(static_cast<double>(last))) * want;
      for (float d : got) ASSERT_NEAR(d, want, tolerance) << before << " tokens, then one of score " << last;
    }
  }
}

// Also as rounded: what is summed is what the values are multiplied with.
TEST_P(AttentionTest, WeightsAreOneInAll) {
  constexpr int kHeadDim = 32, kTokens = 300, kGroup = 3;
  for (KvType type : kAllKvTypes) {
    Sequence sequence(kTokens, 1, kHeadDim, 27);
    std::ranges::fill(sequence.v, 1.0f);
    const Cache cache(type, 1, kHeadDim, 10, 3);
    sequence.WriteTo(kernels(), cache);
    const std::vector<float> q = RandomFloats(kGroup * kHeadDim, 28);
    for (int position : {0, 1, 2, 17, 31, 32, 40, 299}) {
      for (float one : Attend(cache, position, 0, kGroup, q)) {
        ASSERT_NEAR(one, 1.0, 2 * std::sqrt(position + 16.0) * kF32Epsilon) << "position " << position;
      }
    }
  }
}

TEST_P(AttentionTest, AScoreThatIsNotANumberStaysVisible) {
  constexpr int kHeadDim = 32, kTokens = 70;
  for (KvType type : kAllKvTypes) {
    for (int token : {0, 20, 40, 69}) {
      Sequence sequence(kTokens, 1, kHeadDim, 29);
      sequence.k[static_cast<size_t>(token * kHeadDim)] = std::numeric_limits<float>::quiet_NaN();
      const Cache cache(type, 1, kHeadDim, 3, 3);
      sequence.WriteTo(kernels(), cache);
      const std::vector<float> q = RandomFloats(kHeadDim, 30);
      for (int position : {19, 20, 39, 40, 64, 69}) {
        for (float x : Attend(cache, position, 0, 1, q)) {
          ASSERT_EQ(std::isnan(x), position >= token) << "token " << token << " position " << position;
        }
      }
    }
  }
}

TEST_P(AttentionTest, TheEmulatedTierHasTheBitsOfTheNative) {
  if (!GetParam().bf16_activations) return;  // of the others there is one each
  const Sequence sequence(100, 1, 64, 33);
  const Cache cache(KvType::kBF16, 1, 64, 4, 3);
  sequence.WriteTo(kernels(), cache);
  const std::vector<float> q = RandomFloats(3 * 64, 34);
  const std::vector<float> got = Attend(cache, 98, 0, 3, q);
  for (const NamedTable& t : AllTables()) {
    if (!t.bf16_activations) continue;
    std::vector<float> other(q.size());
    t.table->attend(cache.planes, cache.block_table.data(), 98, 1, 0, 1, 3, q.data(), 0, 0.125f, other.data(), 0);
    EXPECT_TRUE(SameBytes(got.data(), other.data(), got.size() * sizeof(float))) << t.name;
  }
}

// Other blocks of the pool, other heads, where the blocks lie, the rest of the last block (NaN here), the other query
// heads of the call: none of it moves a bit.
TEST_P(AttentionTest, BitsDependOnPositionAndCachedTokensOnly) {
  constexpr int kGroup = 9, kHeadDim = 80;
  for (KvType type : kAllKvTypes) {
    const Sequence whole(150, 2, kHeadDim, 30);
    const Cache first(type, 2, kHeadDim, 5, 3);
    whole.WriteTo(kernels(), first);
    const std::vector<float> q = RandomFloats(kGroup * kHeadDim, 32);
    for (int position : {0, 15, 16, 31, 32, 77, 149}) {
      const std::vector<float> want = Attend(first, position, 1, kGroup, q);
      for (float x : want) ASSERT_TRUE(std::isfinite(x));

      const Cache second(type, 2, kHeadDim, 9, 8);
      std::memset(second.k.data(), 0xff, second.k.size());
      std::memset(second.v.data(), 0xff, second.v.size());
      Sequence part = whole;
      part.tokens = position + 1;
      for (int t = 0; t < part.tokens; ++t) {  // head 0 holds other numbers
        for (int d = 0; d < kHeadDim; ++d) part.k[static_cast<size_t>(t * 2 * kHeadDim + d)] += 1.0f;
      }
      part.WriteTo(kernels(), second);
      for (int g = 0; g < kGroup; ++g) {
        const size_t at = static_cast<size_t>(g * kHeadDim);
        const std::vector<float> one(q.begin() + g * kHeadDim, q.begin() + (g + 1) * kHeadDim);
        const std::vector<float> alone = Attend(second, position, 1, 1, one);
        ASSERT_TRUE(SameBytes(alone.data(), &want[at], kHeadDim * sizeof(float)))
            << "position " << position << " head " << g;
      }
      const std::vector<float> in_company = Attend(second, position, 1, kGroup, q);
      ASSERT_TRUE(SameBytes(in_company.data(), want.data(), want.size() * sizeof(float))) << "position " << position;
    }
  }
}

// Tokens of a chunk that go through the cache together, from every place of a tile, have the bits that each has alone;
// and floats between the rows are left as they were.
TEST_P(AttentionTest, RowsTogetherHaveTheBitsOfEachAlone) {
  constexpr int kHeadDim = 48, kTokens = 150;
  for (KvType type : kAllKvTypes) {
    const Sequence sequence(kTokens, 2, kHeadDim, 60);
    const Cache cache(type, 2, kHeadDim, 5, 3);
    sequence.WriteTo(kernels(), cache);
    for (int group : {1, 2, 3, 5, 8, 9}) {
      const size_t width = static_cast<size_t>(group * kHeadDim);
      const size_t q_stride = width + 7, out_stride = width + 5;
      const std::vector<float> q = RandomFloats(40 * q_stride, 61);
      for (auto [position, rows] : {std::pair{0, 1}, {0, 8}, {0, 40}, {27, 9}, {31, 2}, {32, 5}, {60, 40}, {149, 1}}) {
        std::vector<float> out(static_cast<size_t>(rows) * out_stride, -99.0f);
        const float scale = 1.0f / std::sqrt(static_cast<float>(kHeadDim));
        kernels().attend(cache.planes, cache.block_table.data(), position, rows, 1, 1, group, q.data(), q_stride, scale,
                         out.data(), out_stride);
        for (int r = 0; r < rows; ++r) {
          const std::vector<float> one(q.begin() + static_cast<ptrdiff_t>(static_cast<size_t>(r) * q_stride),
                                       q.begin() + static_cast<ptrdiff_t>(static_cast<size_t>(r) * q_stride + width));
          const std::vector<float> alone = Attend(cache, position + r, 1, group, one);
          const float* row = &out[static_cast<size_t>(r) * out_stride];
          ASSERT_TRUE(SameBytes(alone.data(), row, width * sizeof(float)))
              << "group " << group << " position " << position << " row " << r << " of " << rows;
          for (size_t i = width; i < out_stride; ++i) ASSERT_EQ(row[i], -99.0f);
        }
      }
    }
  }
}

// So have kv heads that are asked for together.
TEST_P(AttentionTest, KvHeadsTogetherHaveTheBitsOfEachAlone) {
  constexpr int kHeadDim = 48, kHeads = 6, kFirst = 1;
  const float scale = 1.0f / std::sqrt(static_cast<float>(kHeadDim));
  for (KvType type : kAllKvTypes) {
    const Sequence sequence(100, kHeads, kHeadDim, 70);
    const Cache cache(type, kHeads, kHeadDim, 4, 3);
    sequence.WriteTo(kernels(), cache);
    for (int group : {1, 2, 3, 5, 9}) {
      const size_t group_floats = static_cast<size_t>(group * kHeadDim);
      const size_t stride = 5 * group_floats + 7;
      const std::vector<float> q = RandomFloats(8 * stride, 71);
      for (int heads : {1, 2, 3, 5}) {
        for (auto [position, rows] : {std::pair{0, 1}, {31, 1}, {70, 1}, {95, 1}, {30, 2}, {64, 3}, {60, 8}}) {
          std::vector<float> out(8 * stride, -99.0f);
          kernels().attend(cache.planes, cache.block_table.data(), position, rows, kFirst, heads, group, q.data(),
                           stride, scale, out.data(), stride);
          for (int r = 0; r < rows; ++r) {
            for (int h = 0; h < heads; ++h) {
              const size_t at = static_cast<size_t>(r) * stride + static_cast<size_t>(h) * group_floats;
              const auto begin = q.begin() + static_cast<ptrdiff_t>(at);
              const std::vector<float> one(begin, begin + static_cast<ptrdiff_t>(group_floats));
              const std::vector<float> alone = Attend(cache, position + r, kFirst + h, group, one);
              ASSERT_TRUE(SameBytes(alone.data(), &out[at], group_floats * sizeof(float)))
                  << "group " << group << " position " << position << " row " << r << " of " << rows << " head " << h
                  << " of " << heads;
            }
            for (size_t i = static_cast<size_t>(heads) * group_floats; i < stride; ++i) {
              ASSERT_EQ(out[static_cast<size_t>(r) * stride + i], -99.0f);
            }
          }
        }
      }
    }
  }
}

TEST_P(AttentionTest, WriteKvFillsItsSlotsOnly) {
  constexpr int kHeads = 3, kHeadDim = 48, kBlock = 1, kWidth = kHeads * kHeadDim;
  struct Case {
    int first, count;
    KvType type;
  };
  std::vector<Case> cases;
  for (KvType type : kAllKvTypes) {
    for (auto [first, count] : {std::pair{13, 1}, {13, 2}, {13, 8}, {16, 15}, {0, 32}, {31, 1}}) {
      cases.push_back({first, count, type});
    }
  }
  for (const auto& [first, count, type] : cases) {
    SCOPED_TRACE(testing::Message() << KvTypeName(type) << ", " << count << " tokens from " << first);
    const Cache cache(type, kHeads, kHeadDim, 3, 3);
    std::memset(cache.k.data(), 0xee, cache.k.size());
    std::memset(cache.v.data(), 0xee, cache.v.size());
    const Sequence sequence(count, kHeads, kHeadDim, 40);
    kernels().write_kv(cache.planes, kBlock, first, count, sequence.k.data(), sequence.v.data(), kWidth);
    size_t k_written = 0, v_written = 0;
    const size_t element = KvTypeBytes(type);
    const bool bf16 = type == KvType::kBF16;
    const auto read = [&](const AlignedBuffer& plane, size_t index) {
      uint32_t bits = 0;
      std::memcpy(&bits, plane.data() + kBlock * cache.planes.block_stride + index * element, element);
      const uint16_t half = static_cast<uint16_t>(bits);
      return type == KvType::kF32 ? std::bit_cast<float>(bits) : bf16 ? Bf16ToF32(half) : F16ToF32(half);
    };
    const auto rounded = [&](float x) {
      return type == KvType::kF32 ? x : bf16 ? Bf16ToF32(F32ToBf16(x)) : F16ToF32(F32ToF16(x));
    };
    // Of two rows of the reduced dimension the elements lie side by side in bf16, and 16 by 16 in fp16.
    const auto place = [&](int step, int n, int width) {
      if (type == KvType::kF32) return step * width + n;
      if (bf16) return (step / 2 * width + n) * 2 + step % 2;
      return step / 2 * width * 2 + (n / 16 * 2 + step % 2) * 16 + n % 16;
    };
    for (int i = 0; i < count * kWidth; ++i) {
      const int slot = first + i / kWidth, d = i % kHeadDim;
      const int head = i % kWidth / kHeadDim * kHeadDim * kKvBlockTokens;
      const size_t at = static_cast<size_t>(i);
      ASSERT_EQ(read(cache.k, static_cast<size_t>(head + place(d, slot, kKvBlockTokens))), rounded(sequence.k[at]));
      ASSERT_EQ(read(cache.v, static_cast<size_t>(head + place(slot, d, kHeadDim))), rounded(sequence.v[at]));
    }
    uint32_t untouched = 0;
    std::memset(&untouched, 0xee, element);
    for (size_t i = 0; i < cache.k.size() / element; ++i) {
      k_written += std::memcmp(cache.k.data() + i * element, &untouched, element) != 0;
      v_written += std::memcmp(cache.v.data() + i * element, &untouched, element) != 0;
    }
    EXPECT_EQ(k_written, static_cast<size_t>(count * kWidth));
    EXPECT_EQ(v_written, static_cast<size_t>(count * kWidth));
  }
}

TEST_P(AttentionTest, CacheRoundsToNearestEven) {
  const Cache cache(KvType::kBF16, 1, 16, 1, 3);
  // 1 + 2^-8 lies half-way between two bf16, the lower of which is even; 1 + 3 * 2^-8 half-way below an even one.
  std::vector<float> x(16, 0x1.01p0f);
  x[1] = 0x1.03p0f;
  x[2] = 0x1.010002p0f;
  x[3] = -0x1.01p0f;
  x[4] = std::numeric_limits<float>::infinity();
  x[5] = std::bit_cast<float>(0x7f800001u);  // a NaN whose payload lies in the lower half only
  x[6] = std::numeric_limits<float>::max();
  kernels().write_kv(cache.planes, 0, 0, 1, x.data(), x.data(), x.size());
  const auto v = [&](size_t d) { return cache.v.as<uint16_t>()[2 * d]; };  // beside those of the next token
  EXPECT_EQ(v(0), 0x3f80);
  EXPECT_EQ(v(1), 0x3f82);
  EXPECT_EQ(v(2), 0x3f81);
  EXPECT_EQ(v(3), 0xbf80);
  EXPECT_EQ(v(4), 0x7f80);
  EXPECT_TRUE(std::isnan(Bf16ToF32(v(5))));
  EXPECT_EQ(v(6), 0x7f80);
}

TEST_P(AttentionTest, AHalfPrecisionCacheRoundsToNearestEvenAndSaturates) {
  const Cache cache(KvType::kF16, 1, 16, 1, 3);
  std::vector<float> x(16, 0x1.002p0f);  // half-way between 1 and the next half, 1 + 2^-10
  x[1] = 0x1.006p0f;
  x[2] = 0x1.002002p0f;
  x[3] = 65519.0f;  // rounds to the largest half
  x[4] = 65520.0f;  // would round to infinity
  x[5] = -1e30f;
  x[6] = std::numeric_limits<float>::infinity();
  x[7] = std::numeric_limits<float>::quiet_NaN();
  x[8] = 0x1p-24f;  // the smallest half
  kernels().write_kv(cache.planes, 0, 0, 1, x.data(), x.data(), x.size());
  const auto v = [&](size_t d) { return cache.v.as<uint16_t>()[d]; };
  EXPECT_EQ(v(0), 0x3c00);
  EXPECT_EQ(v(1), 0x3c02);
  EXPECT_EQ(v(2), 0x3c01);
  EXPECT_EQ(v(3), 0x7bff);
  EXPECT_EQ(v(4), 0x7bff);
  EXPECT_EQ(v(5), 0xfbff);
  EXPECT_EQ(v(6), 0x7bff);
  EXPECT_TRUE(std::isnan(F16ToF32(v(7))));
  EXPECT_EQ(v(8), 0x0001);
}

TEST_P(AttentionTest, RopeMatchesTheReference) {
  for (int head_dim : {16, 32, 48, 64, 80, 128, 256}) {
    const size_t n = static_cast<size_t>(head_dim);
    std::vector<float> cos(n / 2), sin(n / 2);
    for (size_t i = 0; i < n / 2; ++i) {
      cos[i] = std::cos(0.37f * static_cast<float>(i + 1));
      sin[i] = std::sin(0.37f * static_cast<float>(i + 1));
    }
    const std::vector<float> heads = RandomFloats(3 * n, 50);
    std::vector<float> got = heads;
    kernels().rope(got.data(), 3, head_dim, cos.data(), sin.data());
    for (size_t h = 0; h < 3; ++h) {
      const std::vector<double> want = reference::Rope({heads.data() + h * n, n}, cos, sin);
      for (size_t d = 0; d < n; ++d) {
        const double size = std::abs(heads[h * n + d]) + std::abs(heads[h * n + (d + n / 2) % n]);
        ASSERT_NEAR(got[h * n + d], want[d], 2 * kF32Epsilon * size + 1e-30);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Tiers, AttentionTest, ::testing::ValuesIn(AllTables()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace scion::kernels

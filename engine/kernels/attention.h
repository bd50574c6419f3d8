// RoPE, the write into the KV cache, and attention of a few tokens of one sequence. Included after a simd_*.h; see
// there.
//
// A head's keys in a block are a panel of two lines, its values one of head_dim / 16, and both are multiplied by the
// dot policies of matmul: a policy that takes its activations in bf16 gets queries and softmax weights rounded to bf16.
//
// Attention walks over the tiles of kKvBlockTokens tokens with an online softmax, of powers of two: queries are
// multiplied by log2(e), too. All that an answer depends on is the position and the cached bytes of positions up to it:
// a score is one accumulator over d ascending, the values are added in order of tokens, a token beyond the position has
// the weight 2^-inf = 0 in the softmax's sum, and its value is not read. Tokens and heads that share keys go through a
// tile together, which changes nothing of that.
#pragma once

#include <cstring>

#include "engine/kernels/dots.h"
#include "engine/kernels/kernels.h"
#include "engine/kernels/tiling.h"
#include "engine/kernels/vector_math.h"

namespace scion::kernels {
namespace {

constexpr int kMaxAttendHeadDim = 256;
constexpr int kTileLinesOfKeys = kKvBlockTokens / 16;

inline void Rope(float* heads, int num_heads, int head_dim, const float* cos, const float* sin) {
  const int half = head_dim / 2;
  for (int h = 0; h < num_heads; ++h) {
    float* low = heads + static_cast<ptrdiff_t>(h) * head_dim;
    float* high = low + half;
    for (int i = 0; i < half; i += 16) {
      const int n = half - i < 16 ? half - i : 16;
      const F32x16 c = LoadPartial(cos + i, n);
      const F32x16 s = LoadPartial(sin + i, n);
      const F32x16 a = LoadPartial(low + i, n);
      const F32x16 b = LoadPartial(high + i, n);
      StorePartial(low + i, NegMulAdd(b, s, Mul(a, c)), n);
      StorePartial(high + i, MulAdd(a, s, Mul(b, c)), n);
    }
  }
}

// How keys and values of one type lie in a block, and by which policies they are multiplied. At: where element (step,
// n) of a panel of `width` outputs lies, in units of elements. FirstOfPairs: a line of values without the second of
// each pair. BDot: the tier's policy for bf16.
template <class BDot>
struct Bf16Kv {
  using Element = uint16_t;
  using KDot = WidenedBf16Dot;
  using VDot = BDot;
  static SCION_KERNEL ptrdiff_t At(int step, int n, int width) {
    return static_cast<ptrdiff_t>(step / 2) * width * 2 + n * 2 + step % 2;
  }
  static SCION_KERNEL void Round(Element* p, F32x16 x) { StoreBf16(p, x); }
  static SCION_KERNEL void FirstOfPairs(const std::byte* line, std::byte* out) {
    Store(out, FromBits(AndBits(LoadBits(line), 0x0000ffffu)));
  }
};

struct F16Kv {
  using Element = uint16_t;
  using KDot = F16Dot;
  using VDot = F16Dot;
  static SCION_KERNEL ptrdiff_t At(int step, int n, int width) {
    return static_cast<ptrdiff_t>(step / 2) * width * 2 + n / 16 * 32 + step % 2 * 16 + n % 16;
  }
  static SCION_KERNEL void Round(Element* p, F32x16 x) {
    constexpr float kLargest = 65504.0f;
    StoreF16(p, Max(Set1(-kLargest), Min(Set1(kLargest), x)));  // in this order a NaN stays one
  }
  static SCION_KERNEL void FirstOfPairs(const std::byte* line, std::byte* out) {
    std::memcpy(out, line, kLineBytes / 2);
    std::memset(out + kLineBytes / 2, 0, kLineBytes / 2);
  }
};

struct F32Kv {
  using Element = float;
  using KDot = F32Dot;
  using VDot = F32Dot;
  static SCION_KERNEL ptrdiff_t At(int step, int n, int width) { return static_cast<ptrdiff_t>(step) * width + n; }
  static SCION_KERNEL void Round(Element* p, F32x16 x) { Store(p, x); }
};

// Sixteen values of a head of all tokens at a time: a cache line of keys belongs to 16 tokens, one of bf16 or fp16
// values to two, and is filled while it is at hand.
template <class Kv>
inline void WriteKvAs(const KvPlanes& planes, int32_t block, int slot, int tokens, const float* k, const float* v,
                      size_t stride) {
  using Element = typename Kv::Element;
  const size_t base = static_cast<size_t>(block) * planes.block_stride;
  const int head_dim = planes.head_dim;
  for (int h = 0; h < planes.num_kv_heads; ++h) {
    const ptrdiff_t head = static_cast<ptrdiff_t>(h) * head_dim;
    Element* k_head = reinterpret_cast<Element*>(planes.k + base) + head * kKvBlockTokens;
    Element* v_head = reinterpret_cast<Element*>(planes.v + base) + head * kKvBlockTokens;
    for (int d = 0; d < head_dim; d += 16) {
      Element rounded[kKvBlockTokens][16];
      for (int t = 0; t < tokens; ++t) Kv::Round(rounded[t], Load(k + static_cast<size_t>(t) * stride + head + d));
      Element* k_to = k_head + Kv::At(d, 0, kKvBlockTokens);
      for (int i = 0; i < 16; ++i) {
        for (int t = 0; t < tokens; ++t) k_to[Kv::At(i, slot + t, kKvBlockTokens)] = rounded[t][i];
      }
      Element* v_to = v_head + Kv::At(0, d, 16);
      for (int t = 0; t < tokens; ++t) {
        Kv::Round(rounded[t], Load(v + static_cast<size_t>(t) * stride + head + d));
        Element* to = v_to + Kv::At(slot + t, 0, head_dim);
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) to[Kv::At(0, i, 16)] = rounded[t][i];
      }
    }
  }
}

inline void WriteKv(const KvPlanes& planes, int32_t block, int slot, int tokens, const float* k, const float* v,
                    size_t stride) {
  switch (planes.type) {
    case KvType::kBF16:
      return WriteKvAs<Bf16Kv<WidenedBf16Dot>>(planes, block, slot, tokens, k, v, stride);
    case KvType::kF16:
      return WriteKvAs<F16Kv>(planes, block, slot, tokens, k, v, stride);
    case KvType::kF32:
      return WriteKvAs<F32Kv>(planes, block, slot, tokens, k, v, stride);
  }
}

// Of a dot policy: values of the reduced dimension in a step, and bytes of a query's weights of a tile in its form.
template <class Dot>
constexpr int kStepValues = static_cast<int>(Dot::kStepActivationBytes / (Dot::kForm == ActivationForm::kBF16 ? 2 : 4));
template <class Dot>
constexpr size_t kTileWeightBytes = kKvBlockTokens / kStepValues<Dot>* Dot::kStepActivationBytes;

// Stores 32 values in the form that the policy takes, and returns the sum of two in each lane, as they are there: lanes
// i and i + 16, or a pair.
template <class Dot>
SCION_KERNEL F32x16 StoreAndSum(F32x16 low, F32x16 high, std::byte* out) {
  if constexpr (Dot::kForm == ActivationForm::kBF16) {
    return Dot::StoreAndSum(reinterpret_cast<uint16_t*>(out), low, high);
  } else {
    Store(out, low);
    Store(out + kLineBytes, high);
    return Add(low, high);
  }
}

// sums [kCount][kLines] += rows x, `x_bytes` apart, times the kLines lines at `panel` of `steps` steps, which lie
// `step_bytes` apart. Fetches as many lines at `next` meanwhile, and those at `again`, of which most are on their way:
// the processor drops a prefetch when too many lines are.
template <class Dot, int kCount, int kLines>
SCION_KERNEL void AccumulateSteps(const std::byte* panel, const std::byte* next, const std::byte* again,
                                  size_t step_bytes, int steps, const std::byte* x, size_t x_bytes,
                                  F32x16 (&sums)[kCount][kLines]) {
  for (int s = 0; s < steps; ++s) {
    typename Dot::Weights w[kLines];
#pragma GCC unroll 4
    for (int l = 0; l < kLines; ++l) {
      w[l] = Dot::LoadWeights(panel + static_cast<size_t>(l) * kLineBytes);
      PrefetchToL2(next + static_cast<size_t>(l) * kLineBytes);
      PrefetchToL2(again + static_cast<size_t>(l) * kLineBytes);
    }
#pragma GCC unroll 8
    for (int i = 0; i < kCount; ++i) {
      const typename Dot::Activation a = Dot::Broadcast(x + static_cast<size_t>(i) * x_bytes);
#pragma GCC unroll 4
      for (int l = 0; l < kLines; ++l) sums[i][l] = Dot::Accumulate(sums[i][l], w[l], a);
    }
    panel += step_bytes;
    next += step_bytes;
    again += step_bytes;
    x += Dot::kStepActivationBytes;
  }
}

// Queries that go through the tiles together: rows of head_dim values each, and their softmax so far.
struct Queries {
  alignas(64) float q[kAttendHeads * kMaxAttendHeadDim];    // times the scale of scores and log2(e)
  alignas(64) float out[kAttendHeads * kMaxAttendHeadDim];  // not yet divided by sum
  float largest[kAttendHeads];
  alignas(64) float sum[kAttendHeads * 16];  // by lane
};

// One head's keys and values of a block, and of the block that comes after.
struct KvTile {
  const std::byte* k;
  const std::byte* v;
  const std::byte* next_k;
  const std::byte* next_v;
};

// scores [kCount, kKvBlockTokens] = q k
template <class Dot, int kCount>
inline void ScoreTile(const KvTile& tile, int head_dim, const float* q, float* scores) {
  static_assert(Dot::kForm == ActivationForm::kF32);
  F32x16 sums[kCount][kTileLinesOfKeys];
#pragma GCC unroll 8
  for (int i = 0; i < kCount; ++i) {
#pragma GCC unroll 4
    for (int l = 0; l < kTileLinesOfKeys; ++l) sums[i][l] = Set1(0.0f);
  }
  AccumulateSteps<Dot, kCount, kTileLinesOfKeys>(tile.k, tile.next_k, tile.v, kTileLinesOfKeys * kLineBytes,
                                                 head_dim / kStepValues<Dot>, reinterpret_cast<const std::byte*>(q),
                                                 static_cast<size_t>(head_dim) * sizeof(float), sums);
#pragma GCC unroll 8
  for (int i = 0; i < kCount; ++i) {
#pragma GCC unroll 4
    for (int l = 0; l < kTileLinesOfKeys; ++l) Store(scores + i * kKvBlockTokens + l * 16, sums[i][l]);
  }
}

template <class Dot, int kCount>
inline void ScoreTileUpTo(int count, const KvTile& tile, int head_dim, const float* q, float* scores) {
  if (count == kCount) {
    ScoreTile<Dot, kCount>(tile, head_dim, q, scores);
  } else if constexpr (kCount > 1) {
    ScoreTileUpTo<Dot, kCount - 1>(count, tile, head_dim, q, scores);
  }
}

// Lines [line, line + kLines) of out = out * rescale + weights v, over the first `tokens` tokens.
template <class Kv, int kCount, int kLines>
SCION_KERNEL void AddValues(const KvTile& tile, int head_dim, int line, int tokens, const std::byte* weights,
                            const float* rescale, float* out) {
  using Dot = typename Kv::VDot;
  constexpr int kValues = kStepValues<Dot>;
  constexpr size_t kWeightBytes = kTileWeightBytes<Dot>;
  const size_t step_bytes = static_cast<size_t>(head_dim / 16) * kLineBytes;
  const size_t at = static_cast<size_t>(line) * kLineBytes;
  out += line * 16;
  F32x16 sums[kCount][kLines];
#pragma GCC unroll 8
  for (int i = 0; i < kCount; ++i) {
#pragma GCC unroll 4
    for (int l = 0; l < kLines; ++l) sums[i][l] = Mul(Load(out + i * head_dim + l * 16), Set1(rescale[i]));
  }
  const int whole = tokens / kValues;
  AccumulateSteps<Dot, kCount, kLines>(tile.v + at, tile.next_v + at, tile.next_k + at, step_bytes, whole, weights,
                                       kWeightBytes, sums);
  if constexpr (kValues > 1) {
    if (tokens % kValues != 0) {
      // The other half of the last pairs is nobody's yet.
      alignas(64) std::byte last[kLines * kLineBytes];
      for (size_t l = 0; l < kLines; ++l) {
        Kv::FirstOfPairs(tile.v + at + static_cast<size_t>(whole) * step_bytes + l * kLineBytes, last + l * kLineBytes);
      }
      AccumulateSteps<Dot, kCount, kLines>(
          last, last, last, 0, 1, weights + static_cast<size_t>(whole) * Dot::kStepActivationBytes, kWeightBytes, sums);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kCount; ++i) {
#pragma GCC unroll 4
    for (int l = 0; l < kLines; ++l) Store(out + i * head_dim + l * 16, sums[i][l]);
  }
}

// Adds the first `tokens` of a tile to the queries [first, first + kCount). `scores`: theirs, used up.
template <class Kv, int kCount>
inline void AttendTile(const KvTile& tile, int head_dim, int tokens, float* scores, int first, Queries& queries) {
  using Dot = typename Kv::VDot;
  constexpr int kLines = 16 / kCount < kAttendLines ? (kCount > 8 ? 1 : 16 / kCount) : kAttendLines;
  float* out = queries.out + first * head_dim;
  const F32x16 minus_infinity = Set1(-__builtin_inff());
  alignas(64) float rescale[16] = {};
  for (int i = 0; i < kCount; ++i) {
    float& largest = queries.largest[first + i];
    float* w = scores + i * kKvBlockTokens;
    F32x16 low = Load(w), high = Load(w + 16);
    if (tokens < kKvBlockTokens) {
      low = Select(FirstLanes(tokens), low, minus_infinity);
      high = Select(FirstLanes(tokens - 16), high, minus_infinity);
      Store(w, low);
      Store(w + 16, high);
    }
    const float tile_largest = ReduceMax(Max(low, Max(high, minus_infinity)));
    const float now = tile_largest > largest ? tile_largest : largest;
    rescale[i] = largest - now;
    largest = now;
  }
  Store(rescale, Exp2OfNonPositive(Load(rescale)));
  constexpr size_t kWeightBytes = kTileWeightBytes<Dot>;
  alignas(64) std::byte prepared[kCount * kWeightBytes];
  for (size_t i = 0; i < kCount; ++i) {
    const size_t at = static_cast<size_t>(first) + i;
    const F32x16 largest = Set1(queries.largest[at]);
    const float* w = scores + i * kKvBlockTokens;
    const F32x16 low = Exp2OfNonPositive(Sub(Load(w), largest));
    const F32x16 high = Exp2OfNonPositive(Sub(Load(w + 16), largest));
    const F32x16 both = StoreAndSum<Dot>(low, high, prepared + i * kWeightBytes);
    float* sum = queries.sum + at * 16;
    Store(sum, MulAdd(Load(sum), Set1(rescale[i]), both));  // of the weights as rounded: they are 1 in all
  }
  int line = 0;
  for (; line + kLines <= head_dim / 16; line += kLines) {
    AddValues<Kv, kCount, kLines>(tile, head_dim, line, tokens, prepared, rescale, out);
  }
  for (; line < head_dim / 16; ++line) AddValues<Kv, kCount, 1>(tile, head_dim, line, tokens, prepared, rescale, out);
}

template <class Kv, int kCount>
inline void AttendTileUpTo(int count, const KvTile& tile, int head_dim, int tokens, float* scores, int first,
                           Queries& queries) {
  if (count == kCount) {
    AttendTile<Kv, kCount>(tile, head_dim, tokens, scores, first, queries);
  } else if constexpr (kCount > 1) {
    AttendTileUpTo<Kv, kCount - 1>(count, tile, head_dim, tokens, scores, first, queries);
  }
}

// Rows of one sequence at `position`, position + 1, ..., of each `heads` query heads for each of `kv_heads` kv heads;
// kv_heads * rows * heads <= kAttendHeads. Blocks outside, kv heads inside: heads lie side by side in a block, and the
// longer the memory is read in one go, the faster.
template <class Kv>
inline void AttendQueries(const KvPlanes& planes, const int32_t* block_table, int position, int rows, int kv_head,
                          int kv_heads, int heads, const float* q, size_t q_stride, float scale, float* out,
                          size_t out_stride) {
  const int head_dim = planes.head_dim;
  const size_t head_bytes = static_cast<size_t>(head_dim * kKvBlockTokens) * sizeof(typename Kv::Element);
  const size_t head_offset = static_cast<size_t>(kv_head) * head_bytes;
  const int group_floats = heads * head_dim;
  const F32x16 to_log2 = Set1(scale * 1.44269504f);
  Queries queries;
  alignas(64) float scores[kAttendHeads * kKvBlockTokens];
  for (int g = 0; g < kv_heads; ++g) {
    for (int r = 0; r < rows; ++r) {
      const float* from = q + static_cast<size_t>(r) * q_stride + g * group_floats;
      float* to = queries.q + (g * rows + r) * group_floats;
      for (int i = 0; i < group_floats; i += 16) Store(to + i, Mul(Load(from + i), to_log2));
    }
  }
  const int count = rows * heads;
  for (int i = 0; i < kv_heads * rows * group_floats; i += 16) Store(queries.out + i, Set1(0.0f));
  for (int i = 0; i < kv_heads * count; ++i) {
    queries.largest[i] = -__builtin_inff();
    Store(queries.sum + i * 16, Set1(0.0f));
  }
  for (int begin = 0; begin < position + rows; begin += kKvBlockTokens) {
    const int block = begin / kKvBlockTokens;
    const int next_block = begin + kKvBlockTokens < position + rows ? block + 1 : block;
    const size_t base = static_cast<size_t>(block_table[block]) * planes.block_stride + head_offset;
    const size_t next_base = static_cast<size_t>(block_table[next_block]) * planes.block_stride + head_offset;
    for (int g = 0; g < kv_heads; ++g) {
      const size_t at = base + static_cast<size_t>(g) * head_bytes;
      const size_t next = g + 1 < kv_heads ? at + head_bytes : next_base;
      const KvTile tile = {planes.k + at, planes.v + at, planes.k + next, planes.v + next};
      const int first = g * count;
      ScoreTileUpTo<typename Kv::KDot, kAttendHeads>(count, tile, head_dim, queries.q + first * head_dim, scores);
      if (begin + kKvBlockTokens <= position + 1) {
        AttendTileUpTo<Kv, kAttendHeads>(count, tile, head_dim, kKvBlockTokens, scores, first, queries);
        continue;
      }
      // Rows that end within the tile see different numbers of its tokens.
      for (int r = 0; r < rows; ++r) {
        const int tokens = position + r - begin + 1 < kKvBlockTokens ? position + r - begin + 1 : kKvBlockTokens;
        if (tokens > 0) {
          AttendTileUpTo<Kv, kAttendHeads>(heads, tile, head_dim, tokens, scores + r * heads * kKvBlockTokens,
                                           first + r * heads, queries);
        }
      }
    }
  }
  for (int g = 0; g < kv_heads; ++g) {
    for (int r = 0; r < rows; ++r) {
      float* to = out + static_cast<size_t>(r) * out_stride + g * group_floats;
      for (int h = 0; h < heads; ++h) {
        const int i = (g * rows + r) * heads + h;
        const F32x16 sum = Set1(ReduceAdd(Load(queries.sum + i * 16)));
        for (int d = 0; d < head_dim; d += 16) {
          Store(to + h * head_dim + d, Div(Load(queries.out + i * head_dim + d), sum));
        }
      }
    }
  }
}

// BDot: the tier's policy for bf16.
template <class BDot>
inline void Attend(const KvPlanes& planes, const int32_t* block_table, int position, int rows, int kv_head,
                   int num_kv_heads, int group_size, const float* q, size_t q_stride, float scale, float* out,
                   size_t out_stride) {
  const int heads_at_once = SmallerOf(group_size, kAttendHeads);
  const int rows_at_once = SmallerOf(rows, kAttendHeads / heads_at_once);
  const int kv_heads_at_once = heads_at_once == group_size ? kAttendHeads / (heads_at_once * rows_at_once) : 1;
  for (int g = 0; g < num_kv_heads; g += kv_heads_at_once) {
    const int kv_heads = SmallerOf(kv_heads_at_once, num_kv_heads - g);
    for (int r = 0; r < rows; r += rows_at_once) {
      const int count = SmallerOf(rows_at_once, rows - r);
      for (int h = 0; h < group_size; h += heads_at_once) {
        const int heads = SmallerOf(heads_at_once, group_size - h);
        const size_t at = static_cast<size_t>((g * group_size + h) * planes.head_dim);
        const float* row_q = q + static_cast<size_t>(r) * q_stride + at;
        float* row_out = out + static_cast<size_t>(r) * out_stride + at;
        const auto attend = [&]<class Kv>(Kv) {
          AttendQueries<Kv>(planes, block_table, position + r, count, kv_head + g, kv_heads, heads, row_q, q_stride,
                            scale, row_out, out_stride);
        };
        switch (planes.type) {
          case KvType::kBF16:
            attend(Bf16Kv<BDot>());
            break;
          case KvType::kF16:
            attend(F16Kv());
            break;
          case KvType::kF32:
            attend(F32Kv());
            break;
        }
      }
    }
  }
}

}  // namespace
}  // namespace scion::kernels

// RoPE, the write into the KV cache, and attention of a few tokens of one sequence. Included after a simd_*.h; see
// there.
//
// Attention walks over the tiles of kKvBlockTokens tokens with an online softmax. All that an answer depends on is the
// position and the cached bytes of positions up to it: a score is one accumulator over d ascending, the values are
// added token by token, a token beyond the position has the weight exp(-inf) = 0 in the softmax's sum, and its value is
// not read. Tokens and heads that share keys go through a tile together, which changes nothing of that.
#pragma once

#include "engine/kernels/kernels.h"
#include "engine/kernels/vector_math.h"

namespace scion::kernels {
namespace {

constexpr int kMaxAttendHeadDim = 256;
constexpr size_t kKvLineBytes = 64;

struct Bf16Kv {
  using Element = uint16_t;
  static SCION_KERNEL F32x16 LoadKv(const Element* p) { return LoadBf16(p); }
  static SCION_KERNEL void StoreKv(Element* p, F32x16 x) { StoreBf16(p, x); }
};

struct F32Kv {
  using Element = float;
  static SCION_KERNEL F32x16 LoadKv(const Element* p) { return Load(p); }
  static SCION_KERNEL void StoreKv(Element* p, F32x16 x) { Store(p, x); }
};

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

template <class Kv>
inline void WriteKvAs(const KvPlanes& planes, int32_t block, int slot, const float* k, const float* v) {
  using Element = typename Kv::Element;
  const size_t base = static_cast<size_t>(block) * planes.block_bytes;
  Element* k_block = reinterpret_cast<Element*>(planes.k + base);
  Element* v_block = reinterpret_cast<Element*>(planes.v + base);
  const int head_dim = planes.head_dim;
  for (int h = 0; h < planes.num_kv_heads; ++h) {
    const ptrdiff_t head = static_cast<ptrdiff_t>(h) * head_dim;
    for (int d = 0; d < head_dim; d += 16) {
      Element column[16];
      Kv::StoreKv(column, Load(k + head + d));
      for (int i = 0; i < 16; ++i) k_block[(head + d + i) * kKvBlockTokens + slot] = column[i];
      Kv::StoreKv(v_block + (static_cast<ptrdiff_t>(h) * kKvBlockTokens + slot) * head_dim + d, Load(v + head + d));
    }
  }
}

inline void WriteKv(const KvPlanes& planes, int32_t block, int slot, const float* k, const float* v) {
  if (planes.type == KvType::kBF16) {
    WriteKvAs<Bf16Kv>(planes, block, slot, k, v);
  } else {
    WriteKvAs<F32Kv>(planes, block, slot, k, v);
  }
}

// scores [kHeads, kKvBlockTokens] = q k. Fetches `next` meanwhile, as many keys.
template <class Kv, int kHeads>
SCION_KERNEL void ScoreTile(const typename Kv::Element* k, const typename Kv::Element* next, int head_dim,
                            const float* q, float* scores) {
  F32x16 low[kHeads], high[kHeads];
  for (int h = 0; h < kHeads; ++h) low[h] = high[h] = Set1(0.0f);
  for (int d = 0; d < head_dim; ++d) {
    const F32x16 k_low = Kv::LoadKv(k + d * kKvBlockTokens);
    const F32x16 k_high = Kv::LoadKv(k + d * kKvBlockTokens + 16);
    for (size_t l = 0; l < kKvBlockTokens * sizeof(*k); l += kKvLineBytes) {
      PrefetchToL2(reinterpret_cast<const std::byte*>(next + d * kKvBlockTokens) + l);
    }
#pragma GCC unroll 8
    for (int h = 0; h < kHeads; ++h) {
      const F32x16 x = Set1(q[h * head_dim + d]);
      low[h] = MulAdd(k_low, x, low[h]);
      high[h] = MulAdd(k_high, x, high[h]);
    }
  }
  for (int h = 0; h < kHeads; ++h) {
    Store(scores + h * kKvBlockTokens, low[h]);
    Store(scores + h * kKvBlockTokens + 16, high[h]);
  }
}

// out[:, d .. d + 16 kLines) = out * rescale + weights v. Fetches as many values of `next` meanwhile.
template <class Kv, int kHeads, int kLines>
SCION_KERNEL void AddValues(const typename Kv::Element* v, const typename Kv::Element* next, int head_dim, int tokens,
                            const float* weights, const float* rescale, float* out) {
  F32x16 acc[kHeads][kLines];
  for (int h = 0; h < kHeads; ++h) {
    for (int l = 0; l < kLines; ++l) acc[h][l] = Mul(Load(out + h * head_dim + l * 16), Set1(rescale[h]));
  }
  for (int t = 0; t < tokens; ++t) {
    F32x16 value[kLines];
    for (int l = 0; l < kLines; ++l) value[l] = Kv::LoadKv(v + t * head_dim + l * 16);
    for (size_t l = 0; l < kLines * 16 * sizeof(*v); l += kKvLineBytes) {
      PrefetchToL2(reinterpret_cast<const std::byte*>(next + t * head_dim) + l);
    }
#pragma GCC unroll 8
    for (int h = 0; h < kHeads; ++h) {
      const F32x16 w = Set1(weights[h * kKvBlockTokens + t]);
#pragma GCC unroll 4
      for (int l = 0; l < kLines; ++l) acc[h][l] = MulAdd(value[l], w, acc[h][l]);
    }
  }
  for (int h = 0; h < kHeads; ++h) {
    for (int l = 0; l < kLines; ++l) Store(out + h * head_dim + l * 16, acc[h][l]);
  }
}

// Queries that go through the tiles together: [n, head_dim] each of q and out, and their softmax so far.
struct Queries {
  alignas(64) float q[kAttendHeads * kMaxAttendHeadDim];
  alignas(64) float out[kAttendHeads * kMaxAttendHeadDim];  // not yet divided by sum
  float largest[kAttendHeads];
  float sum[kAttendHeads];
};

// One head's keys and values of a block, and of the block that comes after.
template <class Kv>
struct KvTile {
  const typename Kv::Element* k;
  const typename Kv::Element* v;
  const typename Kv::Element* next_k;
  const typename Kv::Element* next_v;
};

// One tile, of which all queries [first, first + kCount) see the first `tokens`.
template <class Kv, int kCount>
inline void AttendTile(const KvTile<Kv>& tile, int head_dim, int tokens, float scale, int first, Queries& queries) {
  constexpr int kLines = 16 / kCount < 4 ? (kCount > 8 ? 1 : 16 / kCount) : 4;
  const float* q = queries.q + first * head_dim;
  float* out = queries.out + first * head_dim;
  const F32x16 minus_infinity = Set1(-__builtin_inff());
  alignas(64) float weights[kCount * kKvBlockTokens];
  float rescale[kCount];
  ScoreTile<Kv, kCount>(tile.k, tile.next_k, head_dim, q, weights);
  for (int h = 0; h < kCount; ++h) {
    float& largest = queries.largest[first + h];
    float& sum = queries.sum[first + h];
    float* w = weights + h * kKvBlockTokens;
    F32x16 low = Select(FirstLanes(tokens), Mul(Load(w), Set1(scale)), minus_infinity);
    F32x16 high = Select(FirstLanes(tokens - 16), Mul(Load(w + 16), Set1(scale)), minus_infinity);
    const float tile_largest = ReduceMax(Max(low, Max(high, minus_infinity)));
    const float now = tile_largest > largest ? tile_largest : largest;
    low = Exp(Sub(low, Set1(now)));
    high = Exp(Sub(high, Set1(now)));
    rescale[h] = FirstLane(Exp(Set1(largest - now)));
    sum = sum * rescale[h] + ReduceAdd(Add(low, high));
    largest = now;
    Store(w, low);
    Store(w + 16, high);
  }
  int d = 0;
  for (; d + 16 * kLines <= head_dim; d += 16 * kLines) {
    AddValues<Kv, kCount, kLines>(tile.v + d, tile.next_v + d, head_dim, tokens, weights, rescale, out + d);
  }
  for (; d < head_dim; d += 16)
    AddValues<Kv, kCount, 1>(tile.v + d, tile.next_v + d, head_dim, tokens, weights, rescale, out + d);
}

template <class Kv, int kCount>
inline void AttendTileUpTo(int count, const KvTile<Kv>& tile, int head_dim, int tokens, float scale, int first,
                           Queries& queries) {
  if (count == kCount) {
    AttendTile<Kv, kCount>(tile, head_dim, tokens, scale, first, queries);
  } else if constexpr (kCount > 1) {
    AttendTileUpTo<Kv, kCount - 1>(count, tile, head_dim, tokens, scale, first, queries);
  }
}

// Rows of one sequence at `position`, position + 1, ..., `heads` query heads of each; rows * heads <= kAttendHeads.
template <class Kv>
inline void AttendQueries(const KvPlanes& planes, const int32_t* block_table, int position, int rows, int kv_head,
                          int heads, const float* q, size_t q_stride, float scale, float* out, size_t out_stride) {
  using Element = typename Kv::Element;
  const int head_dim = planes.head_dim;
  const ptrdiff_t head_offset = static_cast<ptrdiff_t>(kv_head) * head_dim * kKvBlockTokens;
  const size_t row_floats = static_cast<size_t>(heads * head_dim);
  Queries queries;
  for (int r = 0; r < rows; ++r) {
    for (size_t i = 0; i < row_floats; i += 16) {
      Store(queries.q + static_cast<size_t>(r) * row_floats + i, Load(q + static_cast<size_t>(r) * q_stride + i));
      Store(queries.out + static_cast<size_t>(r) * row_floats + i, Set1(0.0f));
    }
  }
  for (int i = 0; i < rows * heads; ++i) {
    queries.largest[i] = -__builtin_inff();
    queries.sum[i] = 0.0f;
  }
  for (int begin = 0; begin < position + rows; begin += kKvBlockTokens) {
    const int block = begin / kKvBlockTokens;
    const int next_block = begin + kKvBlockTokens < position + rows ? block + 1 : block;
    const size_t base = static_cast<size_t>(block_table[block]) * planes.block_bytes;
    const size_t next = static_cast<size_t>(block_table[next_block]) * planes.block_bytes;
    const KvTile<Kv> tile = {.k = reinterpret_cast<const Element*>(planes.k + base) + head_offset,
                             .v = reinterpret_cast<const Element*>(planes.v + base) + head_offset,
                             .next_k = reinterpret_cast<const Element*>(planes.k + next) + head_offset,
                             .next_v = reinterpret_cast<const Element*>(planes.v + next) + head_offset};
    if (begin + kKvBlockTokens <= position + 1) {
      AttendTileUpTo<Kv, kAttendHeads>(rows * heads, tile, head_dim, kKvBlockTokens, scale, 0, queries);
      continue;
    }
    // Rows that end within the tile see different numbers of its tokens.
    for (int r = 0; r < rows; ++r) {
      const int tokens = position + r - begin + 1 < kKvBlockTokens ? position + r - begin + 1 : kKvBlockTokens;
      if (tokens > 0) AttendTileUpTo<Kv, kAttendHeads>(heads, tile, head_dim, tokens, scale, r * heads, queries);
    }
  }
  for (int r = 0; r < rows; ++r) {
    for (int h = 0; h < heads; ++h) {
      const int i = r * heads + h;
      for (int d = 0; d < head_dim; d += 16) {
        Store(out + static_cast<size_t>(r) * out_stride + h * head_dim + d,
              Div(Load(queries.out + i * head_dim + d), Set1(queries.sum[i])));
      }
    }
  }
}

inline void Attend(const KvPlanes& planes, const int32_t* block_table, int position, int rows, int kv_head,
                   int group_size, const float* q, size_t q_stride, float scale, float* out, size_t out_stride) {
  const int rows_at_once = group_size >= kAttendHeads ? 1 : kAttendHeads / group_size;
  for (int r = 0; r < rows; r += rows_at_once) {
    const int count = rows - r < rows_at_once ? rows - r : rows_at_once;
    for (int h = 0; h < group_size; h += kAttendHeads) {
      const int heads = group_size - h < kAttendHeads ? group_size - h : kAttendHeads;
      const size_t at = static_cast<size_t>(h * planes.head_dim);
      const float* row_q = q + static_cast<size_t>(r) * q_stride + at;
      float* row_out = out + static_cast<size_t>(r) * out_stride + at;
      if (planes.type == KvType::kBF16) {
        AttendQueries<Bf16Kv>(planes, block_table, position + r, count, kv_head, heads, row_q, q_stride, scale, row_out,
                              out_stride);
      } else {
        AttendQueries<F32Kv>(planes, block_table, position + r, count, kv_head, heads, row_q, q_stride, scale, row_out,
                             out_stride);
      }
    }
  }
}

}  // namespace
}  // namespace scion::kernels

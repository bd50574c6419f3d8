// y = x W^T on packed panels, and its fused SwiGLU pair. Included after a simd_*.h; see there.
//
// An output element is one fp32 accumulator that runs over k in ascending order. Blocking only decides when it rests in
// memory (exactly, as the fp32 it is), never what is added to what: hence one row alone and the same row among 300 have
// the same bits.
//
//   row block   up to kMaxBlockRows rows, whose activations stay in L2 while the panels pass
//   panel       64 output features, streamed front to back
//   k block     kBlockSteps steps of the panel, which stay in L1 while the row tiles pass
//   row tile    kTileRows x kTileLines*16 accumulators in registers
#pragma once

#include "engine/kernels/dots.h"
#include "engine/kernels/kernels.h"
#include "engine/kernels/vector_math.h"

namespace scion::kernels {
namespace {

constexpr size_t kLineBytes = 64;
constexpr size_t kStepBytes = kPanelWidth * sizeof(float);
constexpr int kPanelLines = kPanelWidth / 16;
constexpr int kBlockSteps = 64;
constexpr int kMaxBlockRows = 96;
constexpr size_t kBlockActivationBytes = 384 * 1024;
// How far ahead of its own reads a single pass over a panel asks for weights.
constexpr size_t kPrefetchBytes = 8192;

SCION_KERNEL int SmallerOf(int a, int b) { return a < b ? a : b; }

// An odd number of cache lines: rows of a tile then fall into different sets of the L1 cache.
SCION_KERNEL size_t RowBytes(size_t bytes) {
  const size_t lines = (bytes + kLineBytes - 1) / kLineBytes;
  return (lines | 1) * kLineBytes;
}

template <bool kBf16>
SCION_KERNEL size_t PreparedRowBytes(int in_features) {
  return RowBytes(static_cast<size_t>(in_features) * (kBf16 ? 2 : 4));
}

// Pads with zeros up to a whole vector, hence also up to a whole step.
template <bool kBf16>
SCION_KERNEL void PrepareRow(const float* x, int in_features, std::byte* out) {
  for (int i = 0; i < in_features; i += 16) {
    const F32x16 v = in_features - i >= 16 ? Load(x + i) : LoadPartial(x + i, in_features - i);
    if constexpr (kBf16) {
      StoreBf16(reinterpret_cast<uint16_t*>(out) + i, v);
    } else {
      Store(reinterpret_cast<float*>(out) + i, v);
    }
  }
}

// What a pass over a block of weights asks for ahead of time: whole lines from `at`, going on by `step_bytes` with each
// step. Reading past the end of a matrix is not an issue: a prefetch never faults.
struct PrefetchStream {
  const std::byte* at;
  size_t step_bytes;
};

// Adds `steps` steps to the accumulators of kRows rows x kLines lines. `sums`: rows of kPanelWidth floats.
template <class Dot, int kRows, int kLines>
inline void AccumulateTile(const std::byte* weights, int steps, const std::byte* x, size_t x_row_bytes, bool first,
                           PrefetchStream prefetch, float* sums) {
  F32x16 acc[kRows][kLines];
  for (int r = 0; r < kRows; ++r) {
    for (int l = 0; l < kLines; ++l) acc[r][l] = first ? Set1(0.0f) : Load(sums + r * kPanelWidth + l * 16);
  }
  for (int s = 0; s < steps; ++s) {
    typename Dot::Weights w[kLines];
    for (int l = 0; l < kLines; ++l) {
      w[l] = Dot::LoadWeights(weights + static_cast<size_t>(l) * kLineBytes);
      Prefetch(prefetch.at + static_cast<size_t>(l) * kLineBytes);
    }
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const typename Dot::Activation a = Dot::Broadcast(x + static_cast<size_t>(r) * x_row_bytes);
#pragma GCC unroll 4
      for (int l = 0; l < kLines; ++l) acc[r][l] = Dot::Accumulate(acc[r][l], w[l], a);
    }
    weights += kStepBytes;
    x += Dot::kStepActivationBytes;
    prefetch.at += prefetch.step_bytes;
  }
  for (int r = 0; r < kRows; ++r) {
    for (int l = 0; l < kLines; ++l) Store(sums + r * kPanelWidth + l * 16, acc[r][l]);
  }
}

constexpr int PassLines(int rows) { return rows <= kFullWidthRows ? kPanelLines : kTileLines; }
constexpr int Passes(int rows) { return kPanelLines / PassLines(rows); }

// All lines of a row tile; rows <= kRows.
template <class Dot, int kRows>
inline void AccumulateRows(int rows, const std::byte* weights, int steps, const std::byte* x, size_t x_row_bytes,
                           bool first, PrefetchStream prefetch, float* sums) {
  if (rows != kRows) {
    if constexpr (kRows > 1) {
      AccumulateRows<Dot, kRows - 1>(rows, weights, steps, x, x_row_bytes, first, prefetch, sums);
    }
    return;
  }
  constexpr int kLines = PassLines(kRows);
  for (int l = 0; l < kPanelLines; l += kLines) {
    AccumulateTile<Dot, kRows, kLines>(weights + static_cast<size_t>(l) * kLineBytes, steps, x, x_row_bytes, first,
                                       prefetch, sums + l * 16);
    prefetch.at += static_cast<size_t>(steps) * prefetch.step_bytes;
  }
}

// sums [rows, kPanelWidth] = x panel^T, rows <= kMaxBlockRows.
template <class Dot>
inline void MultiplyPanel(const std::byte* panel, int steps, const std::byte* x, size_t x_row_bytes, int rows,
                          float* sums) {
  if (rows <= kFullWidthRows) {
    AccumulateRows<Dot, kTileRows>(rows, panel, steps, x, x_row_bytes, true, {panel + kPrefetchBytes, kStepBytes},
                                   sums);
    return;
  }
  // The first passes over a block fetch the next block, evenly: memory works while the others compute.
  const int passes = rows / kTileRows * Passes(kTileRows) + (rows % kTileRows != 0 ? Passes(rows % kTileRows) : 0);
  const size_t share = passes >= 4 ? kStepBytes / 4 : passes >= 2 ? kStepBytes / 2 : kStepBytes;
  for (int s = 0; s < steps; s += kBlockSteps) {
    const std::byte* block = panel + static_cast<size_t>(s) * kStepBytes;
    const std::byte* block_x = x + static_cast<size_t>(s) * Dot::kStepActivationBytes;
    const int block_steps = SmallerOf(kBlockSteps, steps - s);
    PrefetchStream prefetch = {block + static_cast<size_t>(block_steps) * kStepBytes, share};
    for (int r = 0; r < rows; r += kTileRows) {
      const int tile_rows = SmallerOf(kTileRows, rows - r);
      AccumulateRows<Dot, kTileRows>(tile_rows, block, block_steps, block_x + static_cast<size_t>(r) * x_row_bytes,
                                     x_row_bytes, s == 0, prefetch, sums + r * kPanelWidth);
      prefetch.at += static_cast<size_t>(Passes(tile_rows) * block_steps) * share;
    }
  }
}

SCION_KERNEL void StoreLine(float* y, F32x16 x, int columns) {
  if (columns >= 16) {
    Store(y, x);
  } else if (columns > 0) {
    StorePartial(y, x, columns);
  }
}

// With `up`: y = silu(x gate^T) * (x up^T); without: y = x gate^T.
template <class Dot>
inline void MultiplyPanels(const PackedMatrix& gate, const PackedMatrix* up, const std::byte* activations, int rows,
                           int panel_begin, int panel_end, float* y, size_t y_stride) {
  const int steps = Dot::Steps(gate.in_features);
  const size_t panel_bytes = static_cast<size_t>(steps) * kStepBytes;
  const size_t x_row_bytes = PreparedRowBytes<Dot::kBf16Activations>(gate.in_features);
  const int tiles = SmallerOf(kMaxBlockRows, static_cast<int>(kBlockActivationBytes / x_row_bytes)) / kTileRows;
  const int block_rows = (tiles < 4 ? 4 : tiles) * kTileRows;
  alignas(64) float sums[kMaxBlockRows * kPanelWidth];
  alignas(64) float up_sums[kMaxBlockRows * kPanelWidth];
  for (int row = 0; row < rows; row += block_rows) {
    const int n = SmallerOf(block_rows, rows - row);
    const std::byte* x = activations + static_cast<size_t>(row) * x_row_bytes;
    for (int panel = panel_begin; panel < panel_end; ++panel) {
      const size_t at = static_cast<size_t>(panel) * panel_bytes;
      MultiplyPanel<Dot>(gate.data + at, steps, x, x_row_bytes, n, sums);
      if (up != nullptr) MultiplyPanel<Dot>(up->data + at, steps, x, x_row_bytes, n, up_sums);
      const int columns = SmallerOf(kPanelWidth, gate.out_features - panel * kPanelWidth);
      for (int r = 0; r < n; ++r) {
        float* out = y + static_cast<size_t>(row + r) * y_stride + static_cast<size_t>(panel) * kPanelWidth;
        for (int c = 0; c < kPanelWidth; c += 16) {
          F32x16 v = Load(sums + r * kPanelWidth + c);
          if (up != nullptr) v = Mul(Silu(v), Load(up_sums + r * kPanelWidth + c));
          StoreLine(out + c, v, columns - c);
        }
      }
    }
  }
}

// ---- The entries of the table; BDot is the tier's policy for bf16 weights
// --------------------------------------------

template <class BDot>
size_t ActivationRowBytes(WeightType type, int in_features) {
  return BDot::kBf16Activations && type == WeightType::kBF16 ? PreparedRowBytes<true>(in_features)
                                                             : PreparedRowBytes<false>(in_features);
}

template <class BDot>
void PrepareActivations(WeightType type, const float* x, size_t x_stride, const int32_t* row_index, int rows,
                        int in_features, std::byte* out) {
  const size_t row_bytes = ActivationRowBytes<BDot>(type, in_features);
  for (int r = 0; r < rows; ++r) {
    const float* row = x + static_cast<size_t>(row_index != nullptr ? row_index[r] : r) * x_stride;
    std::byte* to = out + static_cast<size_t>(r) * row_bytes;
    if (BDot::kBf16Activations && type == WeightType::kBF16) {
      PrepareRow<true>(row, in_features, to);
    } else {
      PrepareRow<false>(row, in_features, to);
    }
  }
}

template <class BDot>
void MatMul(const PackedMatrix& w, const std::byte* activations, int rows, int panel_begin, int panel_end, float* y,
            size_t y_stride) {
  if (w.type == WeightType::kBF16) {
    MultiplyPanels<BDot>(w, nullptr, activations, rows, panel_begin, panel_end, y, y_stride);
  } else {
    MultiplyPanels<F32Dot>(w, nullptr, activations, rows, panel_begin, panel_end, y, y_stride);
  }
}

template <class BDot>
void MatMulSwiglu(const PackedMatrix& gate, const PackedMatrix& up, const std::byte* activations, int rows,
                  int panel_begin, int panel_end, float* y, size_t y_stride) {
  if (gate.type == WeightType::kBF16) {
    MultiplyPanels<BDot>(gate, &up, activations, rows, panel_begin, panel_end, y, y_stride);
  } else {
    MultiplyPanels<F32Dot>(gate, &up, activations, rows, panel_begin, panel_end, y, y_stride);
  }
}

}  // namespace
}  // namespace scion::kernels

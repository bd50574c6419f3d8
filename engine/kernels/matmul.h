// y = x W^T on packed panels, and its fused SwiGLU pair. Included after a simd_*.h; see there.
#pragma once

#include <type_traits>

#include "engine/kernels/dots.h"
#include "engine/kernels/kernels.h"
#include "engine/kernels/matmul_blocks.h"
#include "engine/kernels/tiling.h"
#include "engine/kernels/vector_math.h"

namespace scion::kernels {
namespace {

// ---- Prepared activations ----

// An odd number of cache lines: rows of a tile then fall into different sets of the L1 cache.
SCION_KERNEL size_t OddLines(size_t bytes) {
  const size_t lines = (bytes + kLineBytes - 1) / kLineBytes;
  return (lines | 1) * kLineBytes;
}

inline size_t ActivationRowBytes(ActivationForm form, int in_features) {
  const size_t k = static_cast<size_t>(in_features);
  switch (form) {
    case ActivationForm::kF32:
      return OddLines(k * 4);
    case ActivationForm::kBF16:
      return OddLines(k * 2);
    case ActivationForm::kInt8:
      return OddLines((k + kBlockElements - 1) / kBlockElements * sizeof(ActivationBlock));
  }
  return 0;
}

// Pads with zeros up to a whole vector, hence also up to a whole step.
template <bool kBf16>
SCION_KERNEL void PrepareFloatRow(const float* x, int in_features, std::byte* out) {
  for (int i = 0; i < in_features; i += 16) {
    const F32x16 v = in_features - i >= 16 ? Load(x + i) : LoadPartial(x + i, in_features - i);
    if constexpr (kBf16) {
      StoreBf16(reinterpret_cast<uint16_t*>(out) + i, v);
    } else {
      Store(reinterpret_cast<float*>(out) + i, v);
    }
  }
}

inline void PrepareActivations(ActivationForm form, const float* x, size_t x_stride, const int32_t* row_index, int rows,
                               int in_features, std::byte* out) {
  const size_t row_bytes = ActivationRowBytes(form, in_features);
  for (int r = 0; r < rows; ++r) {
    const float* row = x + static_cast<size_t>(row_index != nullptr ? row_index[r] : r) * x_stride;
    std::byte* to = out + static_cast<size_t>(r) * row_bytes;
    if (form == ActivationForm::kInt8) {
      PrepareInt8Row(row, in_features, to);
    } else if (form == ActivationForm::kBF16) {
      PrepareFloatRow<true>(row, in_features, to);
    } else {
      PrepareFloatRow<false>(row, in_features, to);
    }
  }
}

// ---- Panels of floats ----

// A unit is a step: 256 bytes, or of a narrow panel 64.
template <class Dot, int kLinesOfUnit = kPanelLines>
struct FloatPanels {
  static constexpr ActivationForm kForm = Dot::kForm;
  static constexpr int kRowsOfTile = kTileRows;
  static constexpr int kUnitLines = kLinesOfUnit;
  static constexpr int kLinesOfTile = SmallerOf(kTileLines, kUnitLines);
  static constexpr int kFullWidth = kFullWidthRows;
  static constexpr size_t kUnitBytes = kUnitLines * kLineBytes;
  static constexpr size_t kUnitActivationBytes = Dot::kStepActivationBytes;
  static constexpr bool kAsksTwice = false;

  static SCION_KERNEL size_t StreamAhead(int /*rows*/) { return 0; }
  static SCION_KERNEL int Units(int in_features) { return Dot::Steps(in_features); }

  // Adds `units` steps to the accumulators of kRows rows x kLines lines. `sums`: rows of kPanelWidth floats.
  template <int kRows, int kLines, bool kOnce>
  static inline void AccumulateTile(const std::byte* weights, int line, int units, const std::byte* x,
                                    size_t x_row_bytes, bool first, PrefetchStream& prefetch, float* sums) {
    F32x16 acc[kRows][kLines];
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int l = 0; l < kLines; ++l) acc[r][l] = first ? Set1(0.0f) : Load(sums + r * kPanelWidth + l * 16);
    }
    PrefetchStream ahead = prefetch;
    weights += static_cast<size_t>(line) * kLineBytes;
    for (int u = 0; u < units; ++u) {
      typename Dot::Weights w[kLines];
#pragma GCC unroll 4
      for (int l = 0; l < kLines; ++l) {
        w[l] = Dot::template LoadWeights<kOnce>(weights + static_cast<size_t>(l) * kLineBytes);
      }
      PrefetchNext<kUnitLines>(ahead);
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        const typename Dot::Activation a = Dot::Broadcast(x + static_cast<size_t>(r) * x_row_bytes);
#pragma GCC unroll 4
        for (int l = 0; l < kLines; ++l) acc[r][l] = Dot::Accumulate(acc[r][l], w[l], a);
      }
      weights += kUnitBytes;
      x += Dot::kStepActivationBytes;
    }
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int l = 0; l < kLines; ++l) Store(sums + r * kPanelWidth + l * 16, acc[r][l]);
    }
    prefetch = ahead;
  }
};

// ---- Matrices ----

// MultiplyPanel on a panel of so many features; see there.
template <class Panels>
inline void MultiplyOnePanel(const std::byte* panel, const std::byte* next, int units, const std::byte* x,
                             size_t x_row_bytes, int rows, int columns, bool once, float* sums) {
  if constexpr (std::is_same_v<Panels, FloatPanels<F32Dot>>) {
    if (columns <= kNarrowWidth) {
      using Narrow = FloatPanels<F32Dot, kNarrowWidth / 16>;
      return MultiplyPanel<Narrow>(panel, next, units, x, x_row_bytes, rows, columns, once, sums);
    }
  }
  MultiplyPanel<Panels>(panel, next, units, x, x_row_bytes, rows, columns, once, sums);
}

SCION_KERNEL void StoreLine(float* y, F32x16 x, int columns, StoreTo to) {
  if (columns >= 16) {
    if (to == StoreTo::kMemory) {
      StorePastCaches(y, x);
    } else {
      Store(y, x);
    }
  } else if (columns > 0) {
    StorePartial(y, x, columns);
  }
}

// Where a product goes: 32 features of a row from `column` on, of which there are n > 0; the others are 0.
struct FloatRows {
  float* y;
  size_t stride;
  StoreTo to;
  SCION_KERNEL void Put(int row, int column, int n, F32x16 low, F32x16 high) const {
    float* at = y + static_cast<size_t>(row) * stride + column;
    StoreLine(at, low, n, to);
    StoreLine(at + 16, high, n - 16, to);
  }
};

// Activations for a matrix with these features as its input.
struct PreparedRows {
  ActivationForm form;
  std::byte* out;
  size_t row_bytes;
  SCION_KERNEL void Put(int row, int column, int n, F32x16 low, F32x16 high) const {
    std::byte* to = out + static_cast<size_t>(row) * row_bytes;
    if (form == ActivationForm::kInt8) {
      PrepareBlock(low, high, reinterpret_cast<ActivationBlock*>(to) + column / kBlockElements);
    } else if (form == ActivationForm::kBF16) {
      StoreBf16(reinterpret_cast<uint16_t*>(to) + column, low);
      if (n > 16) StoreBf16(reinterpret_cast<uint16_t*>(to) + column + 16, high);
    } else {
      Store(reinterpret_cast<float*>(to) + column, low);
      if (n > 16) Store(reinterpret_cast<float*>(to) + column + 16, high);
    }
  }
};

// With `up`: silu(x gate^T) * (x up^T); without: x gate^T.
template <class Panels, class Output>
inline void MultiplyPanels(const PackedMatrix& gate, const PackedMatrix* up, const std::byte* activations, int rows,
                           int panel_begin, int panel_end, const Output& output) {
  constexpr int kTile = Panels::kRowsOfTile;
  const int units = Panels::Units(gate.in_features);
  const size_t panel_bytes = static_cast<size_t>(units) * Panels::kUnitBytes;
  const size_t step = panel_bytes * static_cast<size_t>(gate.panel_stride);
  const size_t x_row_bytes = ActivationRowBytes(Panels::kForm, gate.in_features);
  const int tiles = SmallerOf(kMaxBlockRows, static_cast<int>(kBlockActivationBytes / x_row_bytes)) / kTile;
  const int block_rows = (tiles < 4 ? 4 : tiles) * kTile;
  alignas(64) float sums[kMaxBlockRows * kPanelWidth];
  alignas(64) float up_sums[kMaxBlockRows * kPanelWidth];
  for (int row = 0; row < rows; row += block_rows) {
    const int n = SmallerOf(block_rows, rows - row);
    const std::byte* x = activations + static_cast<size_t>(row) * x_row_bytes;
    for (int panel = panel_begin; panel < panel_end; ++panel) {
      const std::byte* weights = gate.data + static_cast<size_t>(panel) * step;
      const int columns = SmallerOf(kPanelWidth, gate.out_features - panel * kPanelWidth);
      if (up == nullptr) {
        MultiplyOnePanel<Panels>(weights, weights + step, units, x, x_row_bytes, n, columns, gate.past_caches, sums);
      } else {
        const std::byte* up_weights =
            up->data + static_cast<size_t>(panel) * panel_bytes * static_cast<size_t>(up->panel_stride);
        MultiplyOnePanel<Panels>(weights, up_weights, units, x, x_row_bytes, n, columns, gate.past_caches, sums);
        MultiplyOnePanel<Panels>(up_weights, weights + step, units, x, x_row_bytes, n, columns, up->past_caches,
                                 up_sums);
      }
      // Of some rows all products, then all that is stored: each of the two has a long chain from a row's values to its
      // result, and the processor doesn't look ahead far enough for several of both.
      for (int first = 0; first < n; first += kTile) {
        const int end = SmallerOf(first + kTile, n);
        for (int r = first; up != nullptr && r < end; ++r) {
          for (int c = 0; c < columns; c += 16) {
            float* at = sums + r * kPanelWidth + c;
            Store(at, Mul(Silu(Load(at)), Load(up_sums + r * kPanelWidth + c)));
          }
        }
        const auto product = [&](int r, int c) {
          if (c >= columns) return Set1(0.0f);
          const F32x16 v = Load(sums + r * kPanelWidth + c);
          return columns - c >= 16 ? v : Select(FirstLanes(columns - c), v, Set1(0.0f));
        };
        for (int r = first; r < end; ++r) {
          for (int c = 0; c < columns; c += 32) {
            output.Put(row + r, panel * kPanelWidth + c, columns - c, product(r, c), product(r, c + 16));
          }
        }
      }
    }
  }
}

// ---- The entries of the table; BDot is the tier's policy for bf16 weights ----

template <class BDot>
ActivationForm ActivationFormOf(WeightType type) {
  switch (type) {
    case WeightType::kBF16:
      return BDot::kForm;
    case WeightType::kF32:
    case WeightType::kF16:
      return ActivationForm::kF32;
    default:
      return ActivationForm::kInt8;
  }
}

template <class BDot, class Output>
inline void Multiply(const PackedMatrix& gate, const PackedMatrix* up, const std::byte* activations, int rows,
                     int panel_begin, int panel_end, const Output& output) {
  const auto multiply = [&]<class Panels>() {
    MultiplyPanels<Panels>(gate, up, activations, rows, panel_begin, panel_end, output);
  };
  switch (gate.type) {
    case WeightType::kBF16:
      return multiply.template operator()<FloatPanels<BDot>>();
    case WeightType::kF32:
      return multiply.template operator()<FloatPanels<F32Dot>>();
    case WeightType::kF16:
      return multiply.template operator()<FloatPanels<F16Dot>>();
    default:
      return ForBlockedType(gate.type, [&]<WeightType kType>() { multiply.template operator()<BlockPanels<kType>>(); });
  }
}

template <class BDot>
void MatMul(const PackedMatrix& w, const std::byte* activations, int rows, int panel_begin, int panel_end, float* y,
            size_t y_stride, StoreTo to) {
  const bool whole_lines =
      reinterpret_cast<uintptr_t>(y) % kLineBytes == 0 && y_stride * sizeof(float) % kLineBytes == 0;
  if (!whole_lines) to = StoreTo::kCache;
  Multiply<BDot>(w, nullptr, activations, rows, panel_begin, panel_end,
                 FloatRows{.y = y, .stride = y_stride, .to = to});
  if (to == StoreTo::kMemory) FinishStoresPastCaches();
}

template <class BDot>
void MatMulSwiglu(const PackedMatrix& gate, const PackedMatrix& up, const std::byte* activations, int rows,
                  int panel_begin, int panel_end, ActivationForm form, std::byte* out) {
  Multiply<BDot>(gate, &up, activations, rows, panel_begin, panel_end,
                 PreparedRows{.form = form, .out = out, .row_bytes = ActivationRowBytes(form, gate.out_features)});
}

}  // namespace
}  // namespace scion::kernels

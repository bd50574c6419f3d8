// How matmul walks over a panel and the rows, whatever the weights are. Included after a simd_*.h; see there.
//
// An output element is one fp32 accumulator that runs over k in ascending order. Blocking only decides when it rests in
// memory (exactly, as the fp32 it is), never what is added to what: hence one row alone and the same row among 300 have
// the same bits.
//
//   row block   up to kMaxBlockRows rows, whose activations stay in L2 while the panels pass
//   panel       64 output features, streamed front to back
//   pass        Panels::kPassUnits units of the panel, which stay in L1 while the row tiles pass
//   row tile    Panels::kRowsOfTile x kLinesOfTile*16 accumulators in registers
//
// `Panels` says what a panel consists of: Units(in_features) units of kUnitBytes, each multiplied with
// kUnitActivationBytes of a prepared row, by AccumulateTile.
#pragma once

#include "engine/kernels/kernels.h"

namespace scion::kernels {
namespace {

constexpr size_t kLineBytes = 64;
constexpr int kPanelLines = kPanelWidth / 16;
constexpr int kMaxBlockRows = 96;
constexpr size_t kBlockActivationBytes = 384 * 1024;
// How far ahead of its own reads a single pass over a panel asks for weights.
constexpr size_t kPrefetchBytes = 8192;

SCION_KERNEL int SmallerOf(int a, int b) { return a < b ? a : b; }

// What a pass over a panel asks for ahead of time: whole lines from `at`, going on by `step_bytes` with each step.
// Reading past the end of a matrix is not an issue: a prefetch never faults.
struct PrefetchStream {
  const std::byte* at;
  size_t step_bytes;
};

template <class Panels>
constexpr int PassLines(int rows) {
  return rows <= Panels::kFullWidth ? kPanelLines : Panels::kLinesOfTile;
}
template <class Panels>
constexpr int Passes(int rows) {
  return kPanelLines / PassLines<Panels>(rows);
}

// All lines of a row tile; rows <= kRows.
template <class Panels, int kRows>
inline void AccumulateRows(int rows, const std::byte* weights, int units, const std::byte* x, size_t x_row_bytes,
                           bool first, PrefetchStream prefetch, float* sums) {
  if (rows != kRows) {
    if constexpr (kRows > 1) {
      AccumulateRows<Panels, kRows - 1>(rows, weights, units, x, x_row_bytes, first, prefetch, sums);
    }
    return;
  }
  constexpr int kLines = PassLines<Panels>(kRows);
  for (int line = 0; line < kPanelLines; line += kLines) {
    Panels::template AccumulateTile<kRows, kLines>(weights, line, units, x, x_row_bytes, first, prefetch,
                                                   sums + line * 16);
    prefetch.at += static_cast<size_t>(units * Panels::kUnitSteps) * prefetch.step_bytes;
  }
}

// Whole lines, so that `divisor` times as many steps cover a unit.
template <class Panels>
constexpr size_t PrefetchShare(int divisor) {
  const size_t bytes = Panels::kUnitBytes / static_cast<size_t>(Panels::kUnitSteps * divisor);
  return (bytes + kLineBytes - 1) / kLineBytes * kLineBytes;
}

// sums [rows, kPanelWidth] = x panel^T, rows <= kMaxBlockRows.
template <class Panels>
inline void MultiplyPanel(const std::byte* panel, int units, const std::byte* x, size_t x_row_bytes, int rows,
                          float* sums) {
  constexpr int kTile = Panels::kRowsOfTile;
  if (rows <= Panels::kFullWidth) {
    AccumulateRows<Panels, kTile>(rows, panel, units, x, x_row_bytes, true,
                                  {panel + kPrefetchBytes, PrefetchShare<Panels>(1)}, sums);
    return;
  }
  // The first passes over a block fetch the next block, evenly: memory works while the others compute.
  const int passes = rows / kTile * Passes<Panels>(kTile) + (rows % kTile != 0 ? Passes<Panels>(rows % kTile) : 0);
  const size_t share = passes >= 4   ? PrefetchShare<Panels>(4)
                       : passes >= 2 ? PrefetchShare<Panels>(2)
                                     : PrefetchShare<Panels>(1);
  for (int u = 0; u < units; u += Panels::kPassUnits) {
    const std::byte* pass = panel + static_cast<size_t>(u) * Panels::kUnitBytes;
    const std::byte* pass_x = x + static_cast<size_t>(u) * Panels::kUnitActivationBytes;
    const int pass_units = SmallerOf(Panels::kPassUnits, units - u);
    PrefetchStream prefetch = {pass + static_cast<size_t>(pass_units) * Panels::kUnitBytes, share};
    for (int r = 0; r < rows; r += kTile) {
      const int tile_rows = SmallerOf(kTile, rows - r);
      AccumulateRows<Panels, kTile>(tile_rows, pass, pass_units, pass_x + static_cast<size_t>(r) * x_row_bytes,
                                    x_row_bytes, u == 0, prefetch, sums + r * kPanelWidth);
      prefetch.at += static_cast<size_t>(Passes<Panels>(tile_rows) * pass_units * Panels::kUnitSteps) * share;
    }
  }
}

}  // namespace
}  // namespace scion::kernels

// How matmul walks over a panel and the rows, whatever the weights are. Included after a simd_*.h; see there.
//
// An output element is one fp32 accumulator that runs over k in ascending order. Blocking only decides when it rests in
// memory (exactly, as the fp32 it is), never what is added to what: hence one row alone and the same row among 300 have
// the same bits.
//
//   row block   up to kMaxBlockRows rows, whose activations stay in L2 while the panels pass
//   panel       64 output features, streamed front to back
//   part        equal shares of the panel, at most kPassBytes, which stay in L2 while the row tiles pass
//   row tile    at most Panels::kRowsOfTile x kLinesOfTile*16 accumulators in registers, or kFullWidth x kUnitLines*16
//
// `Panels` says what a panel consists of: Units(in_features) units of kUnitBytes, in which kUnitLines lines lie side by
// side, each multiplied with kUnitActivationBytes of a prepared row, by AccumulateTile (kOnce: no other tile reads
// these weights). StreamAhead(rows): how many bytes ahead to fetch where a part is passed over once, or 0. kAsksTwice:
// whether each of two passes asks for all that comes next.
#pragma once

#include "engine/kernels/kernels.h"

namespace scion::kernels {
namespace {

constexpr size_t kLineBytes = 64;
constexpr int kPanelLines = kPanelWidth / 16;
constexpr size_t kStepBytes = kPanelLines * kLineBytes;
constexpr int kMaxBlockRows = 96;
constexpr size_t kBlockActivationBytes = 384 * 1024;
// A part of a panel that stays in L2, beside the part that is fetched meanwhile, while the row tiles pass.
constexpr size_t kPassBytes = 128 * 1024;
// Few rows wait for memory, which answers sooner the less is fetched ahead; more rows pay for starting so many parts.
constexpr int kFewRows = 16;
constexpr size_t kFewRowsPassBytes = 18 * 1024;
// More rows than these compute for so long that what they ask for does come.
constexpr int kManyRows = 64;

SCION_KERNEL constexpr int SmallerOf(int a, int b) { return a < b ? a : b; }

// What a tile asks for ahead of time: for every four lines that it passes, the next `lines` from `at`; none, one, two
// or four. Reading past the end of a matrix is not an issue: a prefetch never faults.
struct PrefetchStream {
  const std::byte* at;
  int lines;
};

// Where a tile passes kLines lines. A stream of four never runs away from the tile: it asks for as many as pass.
template <int kLines>
SCION_KERNEL void PrefetchNext(PrefetchStream& stream) {
  constexpr int kTogether = kLines < 4 ? 1 : kLines / 4;
  const int count = kLines < 4 ? (stream.lines * kLines + 3) / 4 : stream.lines;
  for (int i = 0; i < count; ++i) {
#pragma GCC unroll 2
    for (int l = 0; l < kTogether; ++l) PrefetchToL2(stream.at + static_cast<size_t>(l) * kLineBytes);
    stream.at += kTogether * kLineBytes;
  }
}

template <class Panels>
constexpr int PassLines(int rows) {
  return rows <= Panels::kFullWidth ? Panels::kUnitLines : Panels::kLinesOfTile;
}
template <class Panels>
constexpr int Passes(int rows) {
  return Panels::kUnitLines / PassLines<Panels>(rows);
}

// The first `lines` lines of a row tile, or a few more; rows <= kRows.
template <class Panels, int kRows, bool kOnce>
inline void AccumulateRows(int rows, int lines, const std::byte* weights, int units, const std::byte* x,
                           size_t x_row_bytes, bool first, PrefetchStream& prefetch, float* sums) {
  if (rows != kRows) {
    if constexpr (kRows > 1) {
      AccumulateRows<Panels, kRows - 1, kOnce>(rows, lines, weights, units, x, x_row_bytes, first, prefetch, sums);
    }
    return;
  }
  constexpr int kLines = PassLines<Panels>(kRows);
  for (int line = 0; line < lines; line += kLines) {
    Panels::template AccumulateTile<kRows, kLines, kOnce>(weights, line, units, x, x_row_bytes, first, prefetch,
                                                          sums + line * 16);
  }
}

// A part of a panel and the rows' activations for it: `units` units.
struct PanelPart {
  const std::byte* weights;
  const std::byte* x;
  int units;
  bool first;  // of its panel
};

// One pass over a part: weights come from memory as they are needed. The processor's own prefetchers see one ascending
// stream, as long as its lines are first touched in order, and do best alone but where Panels::StreamAhead says
// otherwise. kOnce: lines are loaded as if never to be needed again, which is 2 to 7% faster where they come from
// memory and 5% slower where the caches would have kept them (measured on Zen 4).
template <class Panels, bool kOnce>
inline void StreamPart(const PanelPart& part, size_t x_row_bytes, int rows, int lines, float* sums) {
  const size_t ahead = Panels::StreamAhead(rows);
  PrefetchStream prefetch = {part.weights + ahead, ahead > 0 ? kPanelLines : 0};
  AccumulateRows<Panels, Panels::kFullWidth, kOnce>(rows, lines, part.weights, part.units, part.x, x_row_bytes,
                                                    part.first, prefetch, sums);
}

// Several passes over a part, in row tiles that differ by one row at most: they fetch what comes next while they
// compute, so that it will be found in L2. The processor drops a prefetch when too many lines are on their way to it;
// so once all has been asked for, it is asked for again.
template <class Panels>
inline void ReusePart(const PanelPart& part, size_t x_row_bytes, int rows, int tiles, int lines, const std::byte* next,
                      float* sums) {
  const int passes = tiles * Passes<Panels>(rows / tiles);
  const std::byte* end = next + static_cast<size_t>(part.units) * Panels::kUnitBytes;
  const int ahead = passes > 4 ? 1 : passes == 2 && Panels::kAsksTwice ? kPanelLines : 2;
  PrefetchStream prefetch = {next, ahead};
  for (int t = 0; t < tiles; ++t) {
    const int r = rows * t / tiles;
    AccumulateRows<Panels, Panels::kRowsOfTile, false>(rows * (t + 1) / tiles - r, lines, part.weights, part.units,
                                                       part.x + static_cast<size_t>(r) * x_row_bytes, x_row_bytes,
                                                       part.first, prefetch, sums + r * kPanelWidth);
    if (prefetch.at >= end) prefetch = {next, rows <= kManyRows ? ahead : 0};
  }
}

// The first `columns` of sums [rows, kPanelWidth] = x panel^T, rows <= kMaxBlockRows; what is in the others has no
// meaning. `next`: the panel that will be read after this one. once: until the next step the caches lose it anyway.
template <class Panels>
inline void MultiplyPanel(const std::byte* panel, const std::byte* next, int units, const std::byte* x,
                          size_t x_row_bytes, int rows, int columns, bool once, float* sums) {
  static_assert(Panels::kUnitBytes <= kFewRowsPassBytes);
  const int lines = (columns + 15) / 16;
  if constexpr (Panels::kFullWidth > 0) {
    if (rows <= Panels::kFullWidth) {
      const PanelPart part = {.weights = panel, .x = x, .units = units, .first = true};
      if (once) {
        StreamPart<Panels, true>(part, x_row_bytes, rows, lines, sums);
      } else {
        StreamPart<Panels, false>(part, x_row_bytes, rows, lines, sums);
      }
      return;
    }
  }
  const int most_units = static_cast<int>((rows <= kFewRows ? kFewRowsPassBytes : kPassBytes) / Panels::kUnitBytes);
  // Twice over a part in the order in which it lies is better than over one half of its lines and then the other.
  const int tiles = rows <= 2 * Panels::kFullWidth ? 2 : (rows + Panels::kRowsOfTile - 1) / Panels::kRowsOfTile;
  const int parts = (units + most_units - 1) / most_units;
  for (int p = 0; p < parts; ++p) {
    const int begin = units * p / parts;
    const int end = units * (p + 1) / parts;
    const PanelPart part = {.weights = panel + static_cast<size_t>(begin) * Panels::kUnitBytes,
                            .x = x + static_cast<size_t>(begin) * Panels::kUnitActivationBytes,
                            .units = end - begin,
                            .first = p == 0};
    const std::byte* then = end == units ? next : panel + static_cast<size_t>(end) * Panels::kUnitBytes;
    ReusePart<Panels>(part, x_row_bytes, rows, tiles, lines, then, sums);
  }
}

}  // namespace
}  // namespace scion::kernels

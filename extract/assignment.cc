#include "extract/assignment.h"

#include <algorithm>
#include <limits>
#include <span>

namespace scion {

std::vector<int> SolveAssignment(const FloatMatrix& cost) {
  const size_t n = static_cast<size_t>(cost.rows);
  constexpr size_t kNone = std::numeric_limits<size_t>::max();
  std::vector<double> row_price(n, 0.0), column_price(n, 0.0), distance(n);
  std::vector<size_t> row_of(n, kNone), previous(n);  // of each column
  std::vector<size_t> column_of(n, kNone);
  std::vector<char> done(n);
  for (size_t start = 0; start < n; ++start) {
    // The shortest way, in reduced costs, from the row `start` to a column that no row has yet (Dijkstra).
    std::ranges::fill(distance, std::numeric_limits<double>::infinity());
    std::ranges::fill(done, 0);
    size_t row = start, column = kNone, free_column = kNone;
    double reached = 0;
    while (free_column == kNone) {
      const std::span<const float> costs = cost.row(static_cast<int>(row));
      size_t nearest = kNone;
      for (size_t c = 0; c < n; ++c) {
        if (done[c]) continue;
        const double through = reached + static_cast<double>(costs[c]) - row_price[row] - column_price[c];
        if (through < distance[c]) {
          distance[c] = through;
          previous[c] = row;
        }
        if (nearest == kNone || distance[c] < distance[nearest]) nearest = c;
      }
      column = nearest;
      reached = distance[column];
      done[column] = 1;
      if (row_of[column] == kNone) {
        free_column = column;
      } else {
        row = row_of[column];
      }
    }
    // Prices change so that reduced costs stay at least zero, and are zero along the way.
    row_price[start] += reached;
    for (size_t c = 0; c < n; ++c) {
      if (!done[c] || c == free_column) continue;
      row_price[row_of[c]] += reached - distance[c];
      column_price[c] -= reached - distance[c];
    }
    for (size_t c = free_column;;) {
      const size_t r = previous[c], had = column_of[r];
      row_of[c] = r;
      column_of[r] = c;
      if (r == start) break;
      c = had;
    }
  }
  return {column_of.begin(), column_of.end()};
}

}  // namespace scion

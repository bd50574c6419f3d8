// The assignment problem: which column each row gets, so that the sum of costs is least.
#pragma once

#include <vector>

#include "extract/float_matrix.h"

namespace scion {

// cost [n, n], finite. Returns the column of each row, a permutation. Shortest augmenting paths (Jonker and Volgenant
// 1987), O(n^3) at worst; of equal solutions always the same one.
std::vector<int> SolveAssignment(const FloatMatrix& cost);

}  // namespace scion

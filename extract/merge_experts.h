// The experts of one sparse layer as one FFN: neurons are matched across experts, and like ones merged.
//
// A neuron of an expert is a row of gate, a row of up and a column of down. Experts that began as copies of one FFN
// have each neuron in its own place; others have theirs in any order, and are put in the order of the first expert by
// the assignment that makes the sum of squared distances least (the three parts, each divided by its root mean square).
#pragma once

#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "extract/layerwise_forward.h"
#include "extract/matrix_ops.h"

namespace scion {

// Some of the experts' neurons of one place, merged: the mean, weighted by the experts' shares.
struct MergedFfn {
  FfnMatrices ffn;                        // [width * intermediate_size, ...]
  std::vector<std::vector<int>> experts;  // of each neuron: those that it stands for, ascending; never empty
};

// Puts every expert's neurons in the order of the first expert's. Experts have one shape.
absl::Status AlignNeurons(std::span<FfnMatrices> experts, MatrixOps& ops);

// experts: aligned. share [experts]: of the tokens; positive, summing to 1. The result has at most `width` neurons for
// each of an expert's, width in [1, experts]: all neurons are candidates, and the two of a place whose merging costs
// least are merged (Ward's criterion on gate, up and down, weighted by shares) until so many are left.
// 1: means over all experts; `experts`: every neuron as it is.
// is_gated: whether a neuron will be silent for the tokens of other experts. Then its column of down is the mean of
// those it stands for; if not, it is scaled by their part of all tokens.
MergedFfn MergeExperts(std::span<const FfnMatrices> experts, std::span<const double> share, int width, bool is_gated);

}  // namespace scion

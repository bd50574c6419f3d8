// Compares a cut with its source byte by byte: every tensor, config.json, tokenizer and the other companions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/base/json.h"
#include "engine/model/checkpoint.h"
#include "extract/difference.h"
#include "extract/progress.h"

namespace scion {

struct ByteComparison {
  int tensors = 0;
  uint64_t bytes = 0;  // of tensor data
  std::vector<Difference> differences;
};

// What is wrong with a tensor of the cut that should be `expected` of the whole; empty if nothing is. whole_name: what
// the answer calls the whole. An error: the whole can't be read, or Cancelled after RequestCancel.
absl::StatusOr<std::string> CompareTensor(const Checkpoint& whole, const TensorInfo& expected, const Checkpoint& cut,
                                          const TensorInfo& tensor, std::string_view whole_name,
                                          std::vector<std::byte>& buffer, Progress& progress);

// Every tensor of the cut must be in the whole, in the same part (trunk or domain), with the same dtype, shape and
// bytes, and every tensor of the whole's parts that the cut has must be in the cut. One difference per tensor: its
// first element. The error is the whole's: it can't be read.
absl::StatusOr<ByteComparison> CompareTensors(const Checkpoint& whole, const Checkpoint& cut, Progress& progress);

// config.json must be what a cut of these domains has, as JSON values; the companions must have the source's bytes.
absl::StatusOr<std::vector<Difference>> CompareCompanions(const Checkpoint& whole, const Checkpoint& cut);
// The halves of it. what: of which `expected` is the config.json, "a cut of the source".
std::vector<Difference> CompareConfig(const Json& expected, const Checkpoint& cut, std::string_view what);
absl::StatusOr<std::vector<Difference>> CompareCompanionFiles(const Checkpoint& whole, const Checkpoint& cut);

}  // namespace scion

// Compares an upcycled model, or a cut of one, with its dense parent: every expert's bytes are the parent's FFN of that
// layer, everything else has its own name there.
#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "engine/model/checkpoint.h"
#include "extract/compare_bytes.h"
#include "extract/difference.h"
#include "extract/progress.h"

namespace scion {

// Whether `model` has domains where `dense` has none: what Upcycle makes of it.
bool IsUpcycled(const Checkpoint& dense, const Checkpoint& model);

// As CompareTensors, by the parent's names and, for a GGUF file, in the engine's order of rows. Route tables have no
// parent: they are checked when the model is opened.
absl::StatusOr<ByteComparison> CompareWithParent(const Checkpoint& dense, const Checkpoint& model, Progress& progress);

// config.json must be what Upcycle makes of the parent's for these domains and layers, as JSON values; the companions
// must have the parent's bytes, the tokenizer those that a GGUF parent's vocabulary gives.
absl::StatusOr<std::vector<Difference>> CompareParentCompanions(const Checkpoint& dense, const Checkpoint& model);

}  // namespace scion

// Whether the tensors of a checkpoint are those that its spec asks for.
#pragma once

#include "absl/status/status.h"
#include "engine/model/checkpoint.h"

namespace scion {

// Every tensor of the spec is present, in a file of the trunk or of its domain, of the right shape and dtype; no
// domain's tensor lies in another's file; no domain, GGUF file or gate-routed model has a tensor that the spec does not
// ask for; every entry of the route tables is an expert of its group. Norms and gates are floats, matrices floats or
// blocks. Reads the route tables, in pieces. DataLoss names file and tensor.
absl::Status CheckTensors(const Checkpoint& checkpoint);

}  // namespace scion

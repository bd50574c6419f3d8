// The data of an export's tensors, streamed out of the source: rows put in the order that the format has, converted,
// handed over in batches of about a MiB.
#pragma once

#include <cstddef>
#include <span>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "engine/model/checkpoint.h"
#include "extract/export_plan.h"
#include "extract/progress.h"

namespace scion {

using ByteSink = absl::FunctionRef<absl::Status(std::span<const std::byte>)>;

// Needs two batches of memory, each of a row at least. DataLoss, naming file, tensor and row: the source can't be read,
// or a weight is too large for its type. Cancelled after RequestCancel. And the sink's errors.
absl::Status WriteExportTensor(const Checkpoint& checkpoint, const ExportTensor& tensor, ByteSink sink,
                               Progress& progress);

}  // namespace scion

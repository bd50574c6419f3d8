// Reads a file once, front to back: hashes all of it and each tensor's data, and writes a copy on the way if asked. One
// thread reads, others hash, the caller's writes, so that a copy takes little longer than one without hashes.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/base/file.h"
#include "engine/model/checkpoint.h"
#include "extract/new_file.h"
#include "extract/progress.h"

namespace scion {

struct FileDigest {
  uint64_t bytes = 0;
  std::string sha256;
  std::vector<std::pair<std::string, std::string>> tensor_sha256;  // name, hash; in the order of the offsets
};

// `tensors`: those of the file, by offset, not overlapping, inside the file. `copy`: receives every byte, or null.
// DataLoss if the file has shrunk since it was opened; Cancelled after RequestCancel.
absl::StatusOr<FileDigest> DigestFile(const ReadOnlyFile& file, std::span<const TensorInfo> tensors, NewFile* copy,
                                      Progress& progress);

// Makes the DigestFile that runs now, and all later ones, end with Cancelled. For signal handlers.
void RequestCancel();
// For whatever else takes long.
bool CancelRequested();

}  // namespace scion

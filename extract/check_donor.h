// Whether a domain of one model can be put into another: what both share must be the same.
#pragma once

#include "absl/status/status.h"
#include "engine/model/checkpoint.h"
#include "extract/progress.h"

namespace scion {

// FailedPrecondition, naming the tensor, key or file: the donor's trunk is not the model's byte for byte (files that
// are one and the same, by device and inode, need no comparing), the domain's experts or routes have another shape than
// the model asks for, the two compute differently by what config.json says, or their tokenizers are not the same. Other
// errors: a file that can't be read; Cancelled after RequestCancel. Needs a few MiB.
absl::Status CheckDonor(const Checkpoint& model, const Checkpoint& donor, int donor_domain, Progress& progress);

// Bytes of the model's trunk that CheckDonor compares: 0 if it is the donor's own.
uint64_t TrunkBytesToCompare(const Checkpoint& model, const Checkpoint& donor);

}  // namespace scion

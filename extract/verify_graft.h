// Proves that a graft is its model in all that the model had, and its donor in the domain that was put in.
#pragma once

#include "absl/status/statusor.h"
#include "extract/verify.h"

namespace scion {

// options.graft must be set; `cut` is the grafted model. The bytes of every tensor first: trunk and the other domains
// against the model, the grafted domain against the donor; nothing missing, nothing beyond. Then the bits of the logits
// of every domain. Errors as Verify's, and the donor's.
absl::StatusOr<VerifyReport> VerifyGraft(const VerifyOptions& options);

}  // namespace scion

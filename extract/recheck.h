// Looks again, later, at what a certificate of `verify` speaks of: whether its files are still the ones that were
// compared.
#pragma once

#include <cstdio>
#include <filesystem>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "extract/difference.h"

namespace scion {

struct RecheckReport {
  // Files that changed or are gone, with the models' places; and that the certificate itself says "differs", if so.
  std::vector<Difference> differences;
  std::string time;  // of the certificate
  int files = 0;     // hashed
};

// Hashes every file that the certificate lists, of cut, model and donor, where it says that they lie (seen from the
// certificate). NotFound: no certificate. DataLoss: not a certificate, or one that names no places or paths outside.
absl::StatusOr<RecheckReport> Recheck(const std::filesystem::path& certificate, std::FILE* log);

}  // namespace scion

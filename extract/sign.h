// Writes scion.lock.json for a directory that has none, or anew for one whose files were changed on purpose.
#pragma once

#include <cstdio>
#include <filesystem>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "engine/model/lock_file.h"

namespace scion {

struct SignOptions {
  std::filesystem::path model;
  bool replace = false;  // an existing lock; without it that is an AlreadyExists
  std::string version;   // of this program, for the lineage
  absl::Time now;
  std::FILE* log = nullptr;  // progress; null for none
};

// The lock that was written, atomically. An old lock's lineage and generations are kept. The model must open.
// FailedPrecondition: another run is changing it.
absl::StatusOr<LockFile> Sign(const SignOptions& options);

}  // namespace scion

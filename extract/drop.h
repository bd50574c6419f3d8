// Takes a domain out of a model where it lies. Its file stays, remembered by the lock, so that `rollback` can put it
// back; `gc` removes it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace scion {

struct DropOptions {
  std::filesystem::path model;
  std::string domain;
  std::string version;  // of this program, for the lineage
  absl::Time now;
};

struct DropResult {
  std::string file;  // relative, of the dropped domain
  uint64_t bytes = 0;
  std::vector<std::string> domains;  // that are left
  std::string default_domain;        // as it was, or if that was dropped the first that is left
};

// NotFound: no such model or domain (lists those that there are). FailedPrecondition: the last domain, or as
// ModelTransaction::Begin. Other errors as ModelTransaction's; none leaves anything changed unless it says so.
absl::StatusOr<DropResult> Drop(const DropOptions& options);

}  // namespace scion

// Removes data files that no generation in use needs (the verb gc): earlier generations, which are forgotten with it,
// and files in domains/ that the lock does not know.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace scion {

struct CollectGarbageOptions {
  std::filesystem::path model;
  int keep = 0;          // earlier generations of each domain, the latest
  bool dry_run = false;  // only says what it would do
  std::string version;   // of this program, for the lineage
  absl::Time now;
};

struct CollectGarbageResult {
  struct File {
    std::string path;  // relative
    uint64_t bytes = 0;
  };
  std::vector<File> removed;  // by path; nothing is written if there is none
};

// Errors as ModelTransaction's; none leaves anything changed unless it says so.
absl::StatusOr<CollectGarbageResult> CollectGarbage(const CollectGarbageOptions& options);

}  // namespace scion

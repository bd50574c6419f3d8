// Puts an earlier generation of a domain back in its place: after a graft that replaced it, or after a drop. The
// generation that it replaces is remembered in turn.
#pragma once

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace scion {

struct RollbackOptions {
  std::filesystem::path model;
  std::string domain;
  std::optional<uint64_t> to;  // a generation; nothing: the last before the one in use, of a dropped domain the last
  std::string version;         // of this program, for the lineage
  absl::Time now;
  std::FILE* log = nullptr;  // progress; null for none
};

struct RollbackResult {
  std::optional<uint64_t> from;  // nothing: the domain had been dropped
  uint64_t to = 1;
  std::string file;  // relative
};

// NotFound: no such model; no generation of the domain to go back to (says which there are). DataLoss: the file is not
// what it was. Other errors as ModelTransaction's; none leaves anything changed unless it says so.
absl::StatusOr<RollbackResult> Rollback(const RollbackOptions& options);

}  // namespace scion

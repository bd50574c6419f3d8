// The life of a model, out of its lock: what came from where, when, by which version; which generations there are.
#pragma once

#include <filesystem>
#include <string>

#include "absl/status/statusor.h"
#include "engine/base/json.h"
#include "engine/model/lock_file.h"

namespace scion {

// {"directory", "lock_sha256", "lineage": [{"verb", "time", "version", "source", "source_lock_sha256", "domains"}],
//  "domains": [{"name", "generations": [{"generation", "file", "bytes", "in_use"}]}]}, lineage oldest first, domains by
// name, dropped ones included. Reads nothing but the lock. FailedPrecondition without one.
absl::StatusOr<Json> LineageLog(const std::filesystem::path& model);

// What it says of the domains.
Json GenerationsJson(const LockFile& lock);

// The same for people; ends with a newline.
std::string LineageLogText(const Json& log);

}  // namespace scion

// What a new file and a new directory share on their way into being: built under another name beside their place,
// locked while their maker lives, renamed when they are whole.
#pragma once

#include <filesystem>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace scion {

// Where `target` is built: `.NAME.scion-partial` beside it.
std::filesystem::path StagingPath(const std::filesystem::path& target);

// The target without a slash at its end. AlreadyExists, naming it, if there is anything at it.
absl::StatusOr<std::filesystem::path> CheckNewTarget(const std::filesystem::path& given);

// Locks what was opened at StagingPath(target). FailedPrecondition if another process is building it.
absl::Status LockStaging(int fd, const std::filesystem::path& target);

// Renames StagingPath(target) to the target, never replacing anything. AlreadyExists if something has come to be there.
absl::Status RenameIntoPlace(const std::filesystem::path& target);

// Makes the new name durable; the message says that the target is in place.
absl::Status SyncNewName(const std::filesystem::path& target);

}  // namespace scion

// Compares every file of a directory with its lock: sizes, hashes, and no weights beside those that the lock lists.
#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

#include "engine/model/lock_file.h"
#include "extract/difference.h"
#include "extract/progress.h"

namespace scion {

// Empty if all is as the lock says. A damaged tensor is named where its file's header is still sound. A file that can't
// be read is a difference too.
std::vector<Difference> CheckAgainstLock(const std::filesystem::path& directory, const LockFile& lock,
                                         Progress& progress);

// Bytes that CheckAgainstLock will read.
uint64_t LockedBytes(const LockFile& lock);

}  // namespace scion

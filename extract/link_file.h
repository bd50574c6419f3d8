// A file under a second name, without a copy of its bytes.
#pragma once

#include <cstdint>
#include <filesystem>

#include "absl/status/statusor.h"
#include "engine/base/file.h"

namespace scion {

enum class LinkKind : uint8_t {
  kReflink,   // a file of its own that shares the blocks until one of the two is written to
  kHardLink,  // another name of the same file
};

// A reflink where the file system can (Btrfs, XFS, bcachefs), else a hard link; synced either way. AlreadyExists if
// there is anything at `path`. FailedPrecondition, with the reason, if the file system can do neither or is another
// one than the file's. Errors name the path.
absl::StatusOr<LinkKind> LinkFile(const ReadOnlyFile& file, const std::filesystem::path& path);

}  // namespace scion

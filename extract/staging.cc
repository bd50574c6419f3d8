#include "extract/staging.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <system_error>

#include "engine/base/atomic_file.h"
#include "engine/base/file.h"
#include "engine/base/status.h"

namespace scion {
namespace {

namespace fs = std::filesystem;

absl::Status ExistsError(const fs::path& target) {
  return absl::AlreadyExistsError(
      absl::StrCat(target.string(), " exists already; it is left as it is. Choose another place, or remove it first"));
}

// Whether what was opened is still at `path`, not something that its maker has renamed or removed.
bool IsAt(int fd, const fs::path& path) {
  struct stat opened, named;
  return ::fstat(fd, &opened) == 0 && ::lstat(path.c_str(), &named) == 0 && opened.st_dev == named.st_dev &&
         opened.st_ino == named.st_ino;
}

}  // namespace

fs::path StagingPath(const fs::path& target) {
  return target.parent_path() / absl::StrCat(".", target.filename().string(), ".scion-partial");
}

absl::StatusOr<fs::path> CheckNewTarget(const fs::path& given) {
  // "cut/" means "cut".
  const fs::path target = given.has_filename() ? given : given.parent_path();
  std::error_code error;
  if (fs::symlink_status(target, error).type() != fs::file_type::not_found) {
    if (error) return ErrnoStatus(error.value(), "look up", target);
    return ExistsError(target);
  }
  return target;
}

absl::Status LockStaging(int fd, const fs::path& target) {
  const fs::path path = StagingPath(target);
  if (::flock(fd, LOCK_EX | LOCK_NB) == 0 && IsAt(fd, path)) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat(target.string(), ": another run is writing it at this moment (", path.string(), " is locked)"));
}

absl::Status RenameIntoPlace(const fs::path& target) {
  const fs::path path = StagingPath(target);
  if (::renameat2(AT_FDCWD, path.c_str(), AT_FDCWD, target.c_str(), RENAME_NOREPLACE) == 0) return absl::OkStatus();
  // A filesystem without RENAME_NOREPLACE.
  if (errno == EEXIST) return ExistsError(target);
  if (errno != EINVAL && errno != ENOSYS) return ErrnoStatus(errno, "rename to", target);
  // Rename replaces a file made since Create, but no directory that holds anything.
  std::error_code error;
  if (fs::symlink_status(target, error).type() != fs::file_type::not_found) return ExistsError(target);
  if (::rename(path.c_str(), target.c_str()) != 0) return ErrnoStatus(errno, "rename to", target);
  return absl::OkStatus();
}

absl::Status SyncNewName(const fs::path& target) {
  const fs::path parent = target.parent_path();
  return Annotate(FsyncDirectory(parent.empty() ? fs::path(".") : parent),
                  absl::StrCat(target.string(), " is in place, but may not survive a power failure"));
}

}  // namespace scion

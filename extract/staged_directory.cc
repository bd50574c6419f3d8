#include "extract/staged_directory.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <system_error>
#include <utility>

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

fs::path DirectoryAbove(const fs::path& path) {
  const fs::path parent = path.parent_path();
  return parent.empty() ? fs::path(".") : parent;
}

// Whether the open directory is still the one at `path`, not one that its maker has renamed or removed.
bool IsAt(int fd, const fs::path& path) {
  struct stat opened, named;
  return ::fstat(fd, &opened) == 0 && ::lstat(path.c_str(), &named) == 0 && opened.st_dev == named.st_dev &&
         opened.st_ino == named.st_ino;
}

absl::Status RemoveContents(const fs::path& directory) {
  std::error_code error;
  for (fs::directory_iterator it(directory, error), end; !error && it != end; it.increment(error)) {
    fs::remove_all(it->path(), error);
    if (error) break;
  }
  return error ? ErrnoStatus(error.value(), "remove what an interrupted run has left", directory) : absl::OkStatus();
}

}  // namespace

fs::path StagingPath(const fs::path& target) {
  return target.parent_path() / absl::StrCat(".", target.filename().string(), ".scion-partial");
}

absl::StatusOr<StagedDirectory> StagedDirectory::Create(const fs::path& given) {
  // "cut/" means "cut".
  const fs::path target = given.has_filename() ? given : given.parent_path();
  std::error_code error;
  if (fs::symlink_status(target, error).type() != fs::file_type::not_found) {
    if (error) return ErrnoStatus(error.value(), "look up", target);
    return ExistsError(target);
  }
  const fs::path path = StagingPath(target);
  if (::mkdir(path.c_str(), 0777) != 0 && errno != EEXIST) {
    return Annotate(ErrnoStatus(errno, "create directory", path), absl::StrCat("cannot write ", target.string()));
  }
  const int fd = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  if (fd < 0) return ErrnoStatus(errno, "open directory", path);
  if (::flock(fd, LOCK_EX | LOCK_NB) != 0 || !IsAt(fd, path)) {
    ::close(fd);
    return absl::FailedPreconditionError(
        absl::StrCat(target.string(), ": another run is writing it at this moment (", path.string(), " is locked)"));
  }
  StagedDirectory staged(target, path, fd);
  SCION_RETURN_IF_ERROR(RemoveContents(path));
  return staged;
}

StagedDirectory::StagedDirectory(fs::path target, fs::path path, int fd)
    : target_(std::move(target)), path_(std::move(path)), fd_(fd) {}

StagedDirectory::StagedDirectory(StagedDirectory&& other) noexcept
    : target_(std::move(other.target_)),
      path_(std::move(other.path_)),
      fd_(std::exchange(other.fd_, -1)),
      owned_(std::exchange(other.owned_, false)) {}

StagedDirectory::~StagedDirectory() {
  if (owned_) {
    std::error_code ignored;  // the reason for giving up is what the user needs to hear
    fs::remove_all(path_, ignored);
  }
  if (fd_ >= 0) ::close(fd_);
}

absl::Status StagedDirectory::Commit() {
  std::error_code error;
  for (fs::recursive_directory_iterator it(path_, error), end; !error && it != end; it.increment(error)) {
    if (it->is_directory(error)) SCION_RETURN_IF_ERROR(FsyncDirectory(it->path()));
  }
  if (error) return ErrnoStatus(error.value(), "list", path_);
  SCION_RETURN_IF_ERROR(FsyncDirectory(path_));
  if (::renameat2(AT_FDCWD, path_.c_str(), AT_FDCWD, target_.c_str(), RENAME_NOREPLACE) != 0) {
    // A filesystem without RENAME_NOREPLACE: rename replaces at most an empty directory made since Create.
    if (errno == EEXIST) return ExistsError(target_);
    if (errno != EINVAL && errno != ENOSYS) return ErrnoStatus(errno, "rename to", target_);
    if (::rename(path_.c_str(), target_.c_str()) != 0) return ErrnoStatus(errno, "rename to", target_);
  }
  owned_ = false;
  return Annotate(FsyncDirectory(DirectoryAbove(target_)),
                  absl::StrCat(target_.string(), " is in place, but may not survive a power failure"));
}

}  // namespace scion

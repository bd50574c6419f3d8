#include "extract/staged_directory.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>
#include <utility>

#include "engine/base/atomic_file.h"
#include "engine/base/file.h"
#include "engine/base/status.h"
#include "extract/staging.h"

namespace scion {
namespace {

namespace fs = std::filesystem;

absl::Status RemoveContents(const fs::path& directory) {
  std::error_code error;
  for (fs::directory_iterator it(directory, error), end; !error && it != end; it.increment(error)) {
    fs::remove_all(it->path(), error);
    if (error) break;
  }
  return error ? ErrnoStatus(error.value(), "remove what an interrupted run has left", directory) : absl::OkStatus();
}

}  // namespace

absl::StatusOr<StagedDirectory> StagedDirectory::Create(const fs::path& given) {
  SCION_ASSIGN_OR_RETURN(const fs::path target, CheckNewTarget(given));
  const fs::path path = StagingPath(target);
  if (::mkdir(path.c_str(), 0777) != 0 && errno != EEXIST) {
    return Annotate(ErrnoStatus(errno, "create directory", path), absl::StrCat("cannot write ", target.string()));
  }
  const int fd = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  if (fd < 0) return ErrnoStatus(errno, "open directory", path);
  if (absl::Status locked = LockStaging(fd, target); !locked.ok()) {
    ::close(fd);
    return locked;
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
  SCION_RETURN_IF_ERROR(RenameIntoPlace(target_));
  owned_ = false;
  return SyncNewName(target_);
}

}  // namespace scion

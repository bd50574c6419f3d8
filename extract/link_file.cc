#include "extract/link_file.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cerrno>
#include <string>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"

namespace scion {
namespace {

bool MeansImpossible(int error) {
  return error == EXDEV || error == EOPNOTSUPP || error == ENOTTY || error == ENOSYS || error == EINVAL ||
         error == EPERM || error == EMLINK;
}

// 0, or errno; nothing is left then.
int Reflink(const ReadOnlyFile& file, const std::filesystem::path& path) {
  const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (fd < 0) return errno;
  int error = ::ioctl(fd, FICLONE, file.fd()) == 0 && ::fsync(fd) == 0 ? 0 : errno;
  if (::close(fd) != 0 && error == 0) error = errno;
  if (error != 0) ::unlink(path.c_str());
  return error;
}

// The file that is open, whatever has come to be at its name. Its data are on the disk before it has a second name;
// that name is as durable as its directory.
int HardLink(const ReadOnlyFile& file, const std::filesystem::path& path) {
  if (::fdatasync(file.fd()) != 0) return errno;
  const std::string opened = absl::StrCat("/proc/self/fd/", file.fd());
  return ::linkat(AT_FDCWD, opened.c_str(), AT_FDCWD, path.c_str(), AT_SYMLINK_FOLLOW) == 0 ? 0 : errno;
}

}  // namespace

absl::StatusOr<LinkKind> LinkFile(const ReadOnlyFile& file, const std::filesystem::path& path) {
  int error = Reflink(file, path);
  if (error == 0) return LinkKind::kReflink;
  if (!MeansImpossible(error)) return ErrnoStatus(error, "create", path);
  error = HardLink(file, path);
  if (error == 0) return LinkKind::kHardLink;
  if (!MeansImpossible(error)) return ErrnoStatus(error, "link", path);
  return absl::FailedPreconditionError(absl::StrCat(
      path.string(), " can't be a link to ", file.path().string(), ": ",
      error == EXDEV ? "they are in different file systems" : std::string(ErrnoStatus(error, "link", path).message()),
      "; without --link it is copied"));
}

}  // namespace scion

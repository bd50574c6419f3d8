#include "extract/staged_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "engine/base/file.h"
#include "engine/base/status.h"
#include "extract/staging.h"

namespace scion {

namespace fs = std::filesystem;

absl::StatusOr<StagedFile> StagedFile::Create(const fs::path& given) {
  SCION_ASSIGN_OR_RETURN(const fs::path target, CheckNewTarget(given));
  const fs::path path = StagingPath(target);
  const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0666);
  if (fd < 0) return Annotate(ErrnoStatus(errno, "create", path), absl::StrCat("cannot write ", target.string()));
  if (absl::Status locked = LockStaging(fd, target); !locked.ok()) {
    ::close(fd);
    return locked;
  }
  StagedFile staged(target, fd);
  if (::ftruncate(fd, 0) != 0) return ErrnoStatus(errno, "truncate", path);
  return staged;
}

StagedFile::StagedFile(fs::path target, int fd) : target_(std::move(target)), fd_(fd) {}

StagedFile::StagedFile(StagedFile&& other) noexcept
    : target_(std::move(other.target_)),
      fd_(std::exchange(other.fd_, -1)),
      owned_(std::exchange(other.owned_, false)) {}

StagedFile::~StagedFile() {
  if (owned_) ::unlink(path().c_str());
  if (fd_ >= 0) ::close(fd_);
}

fs::path StagedFile::path() const { return StagingPath(target_); }

absl::Status StagedFile::Append(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::write(fd_, bytes.data(), bytes.size());
    if (n < 0) {
      if (errno == EINTR) continue;
      return ErrnoStatus(errno, "write", path());
    }
    bytes = bytes.subspan(static_cast<size_t>(n));
  }
  return absl::OkStatus();
}

absl::Status StagedFile::Commit() {
  if (::fsync(fd_) != 0) return ErrnoStatus(errno, "fsync", path());
  SCION_RETURN_IF_ERROR(RenameIntoPlace(target_));
  owned_ = false;
  return SyncNewName(target_);
}

}  // namespace scion

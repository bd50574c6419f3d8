#include "engine/base/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <system_error>
#include <utility>

#include "engine/base/status.h"

namespace scion {

absl::Status ErrnoStatus(int error, std::string_view what, const std::filesystem::path& path) {
  const std::string message =
      absl::StrCat(ToAbsl(what), ": ", path.string(), ": ", std::generic_category().message(error));
  switch (error) {
    case ENOENT:
      return absl::NotFoundError(message);
    case EACCES:
    case EPERM:
    case EROFS:
      return absl::PermissionDeniedError(message);
    case ENOSPC:
    case EDQUOT:
      return absl::ResourceExhaustedError(message);
    case EEXIST:
      return absl::AlreadyExistsError(message);
    default:
      return absl::InternalError(message);
  }
}

absl::StatusOr<ReadOnlyFile> ReadOnlyFile::Open(const std::filesystem::path& path) {
  ReadOnlyFile file;
  file.path_ = path;
  do {
    // O_NONBLOCK: opening a FIFO returns at once; it means nothing for a regular file.
    file.fd_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
  } while (file.fd_ < 0 && errno == EINTR);
  if (file.fd_ < 0) {
    // A socket, or a device without a driver, can't be opened at all.
    if (errno == ENXIO || errno == ENODEV) {
      return absl::InvalidArgumentError(absl::StrCat("open: ", path.string(), ": not a regular file"));
    }
    return ErrnoStatus(errno, "open", path);
  }
  struct stat st;
  if (::fstat(file.fd_, &st) != 0) return ErrnoStatus(errno, "stat", path);
  if (!S_ISREG(st.st_mode)) {
    return absl::InvalidArgumentError(absl::StrCat("open: ", path.string(), ": not a regular file"));
  }
  file.size_ = static_cast<uint64_t>(st.st_size);
  return file;
}

ReadOnlyFile::ReadOnlyFile(ReadOnlyFile&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)), size_(std::exchange(other.size_, 0)), path_(std::move(other.path_)) {}

ReadOnlyFile& ReadOnlyFile::operator=(ReadOnlyFile&& other) noexcept {
  if (this != &other) {
    if (fd_ >= 0) ::close(fd_);
    fd_ = std::exchange(other.fd_, -1);
    size_ = std::exchange(other.size_, 0);
    path_ = std::move(other.path_);
  }
  return *this;
}

ReadOnlyFile::~ReadOnlyFile() {
  if (fd_ >= 0) ::close(fd_);
}

absl::Status ReadOnlyFile::Read(uint64_t offset, std::span<std::byte> out) const {
  return ReadAt(fd_, path_, size_, offset, out);
}

absl::Status ReadAt(int fd, const std::filesystem::path& path, uint64_t size, uint64_t offset,
                    std::span<std::byte> out) {
  // A read of more than 2 GiB is cut by the kernel in any case.
  constexpr size_t kMaxReadBytes = size_t{1} << 30;
  if (offset > size || out.size() > size - offset) {
    return absl::DataLossError(absl::StrCat("read: ", path.string(), ": bytes [", offset, ", +", out.size(),
                                            ") reach beyond the file's ", size, " bytes"));
  }
  while (!out.empty()) {
    const ssize_t n = ::pread(fd, out.data(), std::min(out.size(), kMaxReadBytes), static_cast<off_t>(offset));
    if (n < 0) {
      if (errno == EINTR) continue;
      return ErrnoStatus(errno, "read", path);
    }
    if (n == 0) {
      return absl::DataLossError(absl::StrCat("read: ", path.string(), ": ends at or before offset ", offset,
                                              ", but had ", size, " bytes when it was opened"));
    }
    out = out.subspan(static_cast<size_t>(n));
    offset += static_cast<uint64_t>(n);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> ReadTextFile(const std::filesystem::path& path, uint64_t max_bytes) {
  SCION_ASSIGN_OR_RETURN(const ReadOnlyFile file, ReadOnlyFile::Open(path));
  if (file.size() > max_bytes) {
    return absl::ResourceExhaustedError(
        absl::StrCat("read: ", path.string(), ": ", file.size(), " bytes, more than the limit of ", max_bytes));
  }
  std::string text(file.size(), '\0');
  SCION_RETURN_IF_ERROR(file.Read(0, std::as_writable_bytes(std::span(text))));
  return text;
}

}  // namespace scion

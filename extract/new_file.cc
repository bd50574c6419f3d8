#include "extract/new_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "engine/base/file.h"
#include "engine/base/status.h"

namespace scion {
namespace {

constexpr uint64_t kFlushBytes = uint64_t{8} << 20;

}  // namespace

absl::StatusOr<NewFile> NewFile::Create(const std::filesystem::path& path) {
  const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (fd < 0) return ErrnoStatus(errno, "create", path);
  return NewFile(fd, path);
}

NewFile::NewFile(int fd, std::filesystem::path path) : fd_(fd), path_(std::move(path)) {}

NewFile::NewFile(NewFile&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)),
      path_(std::move(other.path_)),
      written_(other.written_),
      flushing_(other.flushing_) {}

NewFile::~NewFile() {
  if (fd_ >= 0) ::close(fd_);
}

absl::Status NewFile::Append(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::write(fd_, bytes.data(), bytes.size());
    if (n < 0) {
      if (errno == EINTR) continue;
      return ErrnoStatus(errno, "write", path_);
    }
    bytes = bytes.subspan(static_cast<size_t>(n));
    written_ += static_cast<uint64_t>(n);
  }
  if (written_ - flushing_ >= kFlushBytes) {
    // Only a hint: what fails shows in Finish.
    ::sync_file_range(fd_, static_cast<off_t>(flushing_), static_cast<off_t>(written_ - flushing_),
                      SYNC_FILE_RANGE_WRITE);
    flushing_ = written_;
  }
  return absl::OkStatus();
}

absl::Status NewFile::Read(uint64_t offset, std::span<std::byte> out) const {
  return ReadAt(fd_, path_, offset + out.size(), offset, out);
}

absl::Status NewFile::Finish() {
  if (::fsync(fd_) != 0) return ErrnoStatus(errno, "fsync", path_);
  if (::close(std::exchange(fd_, -1)) != 0) return ErrnoStatus(errno, "close", path_);
  return absl::OkStatus();
}

absl::Status WriteNewFile(const std::filesystem::path& path, std::string_view text) {
  SCION_ASSIGN_OR_RETURN(NewFile file, NewFile::Create(path));
  SCION_RETURN_IF_ERROR(file.Append(std::as_bytes(std::span(text))));
  return file.Finish();
}

}  // namespace scion

#include "engine/base/atomic_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <random>
#include <utility>

#include "engine/base/file.h"
#include "engine/base/status.h"

namespace scion {
namespace fs = std::filesystem;
namespace {

// "" would mean the root of nothing: a bare file name lies in the current directory.
fs::path DirectoryOf(const fs::path& path) { return path.has_parent_path() ? path.parent_path() : fs::path("."); }

int FsyncRetrying(int fd) {
  int result;
  do {
    result = ::fsync(fd);
  } while (result != 0 && errno == EINTR);
  return result;
}

}  // namespace

absl::StatusOr<AtomicFileWriter> AtomicFileWriter::Create(const fs::path& target, uint32_t mode) {
  constexpr int kMaxAttempts = 16;
  std::random_device random;
  AtomicFileWriter writer;
  writer.target_ = target;
  for (int attempt = 0; attempt < kMaxAttempts; ++attempt) {
    const std::string name = absl::StrCat(".", target.filename().string(), ".", absl::Hex(random()), ".tmp");
    fs::path temporary = DirectoryOf(target) / name;
    writer.fd_ = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, mode);
    if (writer.fd_ >= 0) {
      writer.temporary_ = std::move(temporary);
      return writer;
    }
    if (errno != EEXIST && errno != EINTR) return ErrnoStatus(errno, "create", target);
  }
  return ErrnoStatus(EEXIST, "create", target);
}

AtomicFileWriter::AtomicFileWriter(AtomicFileWriter&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)),
      target_(std::move(other.target_)),
      temporary_(std::exchange(other.temporary_, fs::path())),
      bytes_written_(other.bytes_written_) {}

AtomicFileWriter& AtomicFileWriter::operator=(AtomicFileWriter&& other) noexcept {
  if (this != &other) {
    Abort();
    fd_ = std::exchange(other.fd_, -1);
    target_ = std::move(other.target_);
    temporary_ = std::exchange(other.temporary_, fs::path());
    bytes_written_ = other.bytes_written_;
  }
  return *this;
}

AtomicFileWriter::~AtomicFileWriter() { Abort(); }

absl::Status AtomicFileWriter::Append(std::span<const std::byte> bytes) {
  constexpr size_t kMaxWriteBytes = size_t{1} << 30;
  while (!bytes.empty()) {
    const ssize_t n = ::write(fd_, bytes.data(), std::min(bytes.size(), kMaxWriteBytes));
    if (n < 0) {
      if (errno == EINTR) continue;
      return ErrnoStatus(errno, "write", target_);
    }
    bytes = bytes.subspan(static_cast<size_t>(n));
    bytes_written_ += static_cast<uint64_t>(n);
  }
  return absl::OkStatus();
}

absl::Status AtomicFileWriter::Commit() {
  if (FsyncRetrying(fd_) != 0) return ErrnoStatus(errno, "fsync", target_);
  // A deferred write error may be reported by close alone.
  if (::close(std::exchange(fd_, -1)) != 0 && errno != EINTR) return ErrnoStatus(errno, "close", target_);
  if (::rename(temporary_.c_str(), target_.c_str()) != 0) return ErrnoStatus(errno, "rename", target_);
  temporary_.clear();
  return FsyncDirectory(DirectoryOf(target_));
}

void AtomicFileWriter::Abort() {
  if (fd_ >= 0) ::close(std::exchange(fd_, -1));
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
  temporary_.clear();
}

absl::Status WriteFileAtomically(const fs::path& target, std::string_view contents) {
  SCION_ASSIGN_OR_RETURN(AtomicFileWriter writer, AtomicFileWriter::Create(target));
  SCION_RETURN_IF_ERROR(writer.Append(contents));
  return writer.Commit();
}

absl::Status FsyncDirectory(const fs::path& directory) {
  const int fd = ::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return ErrnoStatus(errno, "open", directory);
  const int result = FsyncRetrying(fd);
  const int error = errno;
  ::close(fd);
  // Some file systems can't sync a directory and say EINVAL: then there is nothing to wait for.
  if (result != 0 && error != EINVAL) return ErrnoStatus(error, "fsync", directory);
  return absl::OkStatus();
}

}  // namespace scion

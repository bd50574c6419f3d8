#include "engine/base/atomic_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <random>
#include <string>
#include <system_error>
#include <utility>

#include "engine/base/file.h"
#include "engine/base/status.h"

namespace scion {
namespace fs = std::filesystem;
namespace {

constexpr size_t kMaxWriteBytes = size_t{1} << 30;

// "" would mean the root of nothing: a bare file name lies in the current directory.
fs::path DirectoryOf(const fs::path& path) { return path.has_parent_path() ? path.parent_path() : fs::path("."); }

int FsyncRetrying(int fd) {
  int result;
  do {
    result = ::fsync(fd);
  } while (result != 0 && errno == EINTR);
  return result;
}

// Marks the file as one whose writer lives. False if it has been taken for abandoned, and removed, in the moment
// before. A file system without locks is no obstacle: nothing is ever taken for abandoned there.
bool MarkAlive(int fd) {
  if (::flock(fd, LOCK_EX | LOCK_NB) != 0) return errno != EWOULDBLOCK;
  struct stat st;
  return ::fstat(fd, &st) == 0 && st.st_nlink > 0;
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
      if (MarkAlive(writer.fd_)) return writer;
      writer.Abort();
      continue;
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

absl::Status AtomicFileWriter::WriteAt(uint64_t offset, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::pwrite(fd_, bytes.data(), std::min(bytes.size(), kMaxWriteBytes), static_cast<off_t>(offset));
    if (n < 0) {
      if (errno == EINTR) continue;
      return ErrnoStatus(errno, "write", target_);
    }
    bytes = bytes.subspan(static_cast<size_t>(n));
    offset += static_cast<uint64_t>(n);
  }
  return absl::OkStatus();
}

absl::Status AtomicFileWriter::Reserve(uint64_t bytes) {
  while (::fallocate(fd_, 0, 0, static_cast<off_t>(bytes)) != 0) {
    if (errno == EINTR) continue;
    if (errno == EOPNOTSUPP || errno == ENOSYS) break;
    return ErrnoStatus(errno, "reserve", target_);
  }
  return absl::OkStatus();
}

absl::Status AtomicFileWriter::Commit() {
  if (FsyncRetrying(fd_) != 0) return ErrnoStatus(errno, "fsync", target_);
  // The lock lives on in the copy, until the file has its name.
  const int lock = ::fcntl(fd_, F_DUPFD_CLOEXEC, 0);
  // A deferred write error may be reported by close alone.
  const bool closed = ::close(std::exchange(fd_, -1)) == 0 || errno == EINTR;
  const absl::Status status = !closed ? ErrnoStatus(errno, "close", target_)
                              : ::rename(temporary_.c_str(), target_.c_str()) != 0
                                  ? ErrnoStatus(errno, "rename", target_)
                                  : absl::OkStatus();
  if (lock >= 0) ::close(lock);
  SCION_RETURN_IF_ERROR(status);
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

void RemoveAbandonedFiles(const fs::path& directory, std::string_view suffix) {
  const std::string mark = std::string(suffix) + ".";
  std::error_code error;
  for (fs::directory_iterator it(directory, error), end; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename().string();
    // ".{name}{suffix}.{random}.tmp"
    if (name.size() < 6 || !name.starts_with(".") || !name.ends_with(".tmp")) continue;
    const size_t random = name.rfind('.', name.size() - 5);
    if (random == name.npos || !std::string_view(name).substr(0, random + 1).ends_with(mark)) continue;
    const int fd = ::open(it->path().c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0) continue;
    if (::flock(fd, LOCK_EX | LOCK_NB) == 0) ::unlink(it->path().c_str());
    ::close(fd);
  }
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

#include "extract/new_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <utility>

#include "engine/base/aligned_buffer.h"
#include "engine/base/file.h"
#include "engine/base/status.h"

namespace scion {
namespace {

// Of a huge page, so that a write is one stretch of memory to the disk: scattered over 4 KiB pages it takes twice as
// long.
constexpr size_t kBufferBytes = size_t{2} << 20;

}  // namespace

absl::StatusOr<NewFile> NewFile::Create(const std::filesystem::path& path) {
  const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (fd < 0) return ErrnoStatus(errno, "create", path);
  return NewFile(fd, path);
}

NewFile::NewFile(int fd, std::filesystem::path path) : fd_(fd), path_(std::move(path)) {}

NewFile::NewFile(NewFile&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)),
      path_(std::move(other.path_)),
      buffer_(std::move(other.buffer_)),
      buffered_(other.buffered_),
      direct_(other.direct_),
      can_direct_(other.can_direct_) {}

NewFile::~NewFile() {
  if (fd_ >= 0) ::close(fd_);
}

absl::Status NewFile::Write(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::write(fd_, bytes.data(), bytes.size());
    if (n < 0) {
      if (errno == EINTR) continue;
      if (errno == EINVAL && direct_) {  // one of another alignment, or of none
        can_direct_ = false;
        SCION_RETURN_IF_ERROR(SetDirect(false));
        continue;
      }
      return ErrnoStatus(errno, "write", path_);
    }
    bytes = bytes.subspan(static_cast<size_t>(n));
    // The rest of a write that was cut short need not be aligned.
    if (direct_ && !bytes.empty() && static_cast<size_t>(n) % kDirectAlignment != 0) {
      can_direct_ = false;
      SCION_RETURN_IF_ERROR(SetDirect(false));
    }
  }
  return absl::OkStatus();
}

absl::Status NewFile::SetDirect(bool direct) {
  if (direct == direct_) return absl::OkStatus();
  const int flags = ::fcntl(fd_, F_GETFL);
  if (flags < 0 || ::fcntl(fd_, F_SETFL, direct ? flags | O_DIRECT : flags & ~O_DIRECT) != 0) {
    if (!direct) return ErrnoStatus(errno, "set flags of", path_);
    can_direct_ = false;  // such a file system
    return absl::OkStatus();
  }
  direct_ = direct;
  return absl::OkStatus();
}

absl::Status NewFile::WriteDirect(std::span<const std::byte> bytes) {
  SCION_RETURN_IF_ERROR(SetDirect(can_direct_));
  return Write(bytes);
}

absl::Status NewFile::Append(std::span<const std::byte> bytes) {
  if (buffered_ == 0 && bytes.size() >= kBufferBytes &&
      reinterpret_cast<uintptr_t>(bytes.data()) % kDirectAlignment == 0) {
    const size_t whole = bytes.size() - bytes.size() % kBufferBytes;
    SCION_RETURN_IF_ERROR(WriteDirect(bytes.first(whole)));
    bytes = bytes.subspan(whole);
  }
  while (!bytes.empty()) {
    if (buffer_.size() == 0) {
      SCION_ASSIGN_OR_RETURN(buffer_, AlignedBuffer::Create(kBufferBytes, "what is to be written"));
    }
    const size_t n = std::min(bytes.size(), kBufferBytes - buffered_);
    std::ranges::copy(bytes.first(n), buffer_.data() + buffered_);
    buffered_ += n;
    bytes = bytes.subspan(n);
    if (buffered_ < kBufferBytes) break;
    buffered_ = 0;
    SCION_RETURN_IF_ERROR(WriteDirect({buffer_.data(), kBufferBytes}));
  }
  return absl::OkStatus();
}

absl::Status NewFile::Finish() {
  SCION_RETURN_IF_ERROR(SetDirect(false));  // the end is of any length
  SCION_RETURN_IF_ERROR(Write(std::span<const std::byte>(buffer_.data(), buffered_)));
  buffered_ = 0;
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

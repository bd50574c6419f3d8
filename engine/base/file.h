// A regular file, opened for reading at any offset.
//
// Reads go through pread, never through a mapping: a file that shrinks while it is mapped kills the process with
// SIGBUS, a short read is an error like any other.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace scion {

class ReadOnlyFile {
 public:
  // NotFound, PermissionDenied, or InvalidArgument if it is not a regular file (a FIFO is never waited for).
  static absl::StatusOr<ReadOnlyFile> Open(const std::filesystem::path& path);
  ReadOnlyFile() = default;
  ReadOnlyFile(ReadOnlyFile&& other) noexcept;
  ReadOnlyFile& operator=(ReadOnlyFile&& other) noexcept;
  ~ReadOnlyFile();

  const std::filesystem::path& path() const { return path_; }
  uint64_t size() const { return size_; }  // when it was opened
  int fd() const { return fd_; }

  // Fills `out` from `offset`. DataLoss, naming path and offset, if the file ends before. Thread-safe.
  absl::Status Read(uint64_t offset, std::span<std::byte> out) const;

 private:
  int fd_ = -1;
  uint64_t size_ = 0;
  std::filesystem::path path_;
};

// The whole of a text file of at most max_bytes; ResourceExhausted names the limit.
absl::StatusOr<std::string> ReadTextFile(const std::filesystem::path& path, uint64_t max_bytes);

// Fills `out` from `offset` of the file that is open as `fd`; `path` and `size` (when it was opened) are for the error,
// which is DataLoss if the file ends before. Thread-safe.
absl::Status ReadAt(int fd, const std::filesystem::path& path, uint64_t size, uint64_t offset,
                    std::span<std::byte> out);

// errno as a Status: ENOENT -> NotFound, EACCES/EPERM/EROFS -> PermissionDenied, ENOSPC/EDQUOT -> ResourceExhausted,
// EEXIST -> AlreadyExists, else Internal. The message is "what: path: strerror".
absl::Status ErrnoStatus(int error, std::string_view what, const std::filesystem::path& path);

}  // namespace scion

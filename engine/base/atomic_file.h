// Writing files so that an interruption leaves the old state or the new, never half of one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace scion {

// A file that comes into being whole: written under a temporary name beside its place, renamed by Commit. If it is
// destroyed without a Commit, or anything fails, the temporary file is removed and the target is as it was.
//
// Errors are those of ErrnoStatus and name the target's path: ResourceExhausted for a full disk, PermissionDenied,
// NotFound if the parent directory does not exist. After an error only Abort (or the destructor) makes sense.
class AtomicFileWriter {
 public:
  // The temporary name is ".{name}.{random}.tmp" in the target's directory; the file is locked (flock) while the writer
  // lives. mode is subject to the umask.
  static absl::StatusOr<AtomicFileWriter> Create(const std::filesystem::path& target, uint32_t mode = 0644);
  AtomicFileWriter(AtomicFileWriter&& other) noexcept;
  AtomicFileWriter& operator=(AtomicFileWriter&& other) noexcept;
  ~AtomicFileWriter();

  absl::Status Append(std::span<const std::byte> bytes);
  absl::Status Append(std::string_view text) { return Append(std::as_bytes(std::span(text))); }
  uint64_t bytes_written() const { return bytes_written_; }  // by Append

  // Writes at a place of its own, apart from what Append does. Thread-safe.
  absl::Status WriteAt(uint64_t offset, std::span<const std::byte> bytes);
  // Claims the disk's room for a file of so many bytes, where the file system can: a full disk is known at once.
  absl::Status Reserve(uint64_t bytes);

  // fsync, rename over the target, fsync of the directory.
  absl::Status Commit();
  // Removes the temporary file. Harmless after Commit.
  void Abort();

 private:
  AtomicFileWriter() = default;

  int fd_ = -1;
  std::filesystem::path target_;
  std::filesystem::path temporary_;  // empty once committed or aborted
  uint64_t bytes_written_ = 0;
};

// Create, Append, Commit.
absl::Status WriteFileAtomically(const std::filesystem::path& target, std::string_view contents);

// Removes the temporary files of writers that were killed, of targets whose name ends with `suffix`. Those of writers
// that live stay, here and in other processes. What can't be removed stays.
void RemoveAbandonedFiles(const std::filesystem::path& directory, std::string_view suffix);

// Makes names that were created, renamed or removed in the directory durable.
absl::Status FsyncDirectory(const std::filesystem::path& directory);

}  // namespace scion

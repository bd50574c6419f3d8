// A file's bytes as read-only memory. The pages are those of the system's page cache: every process that maps the file
// shares one copy, and a file that was read before is there at once.
//
// Only for files that nobody changes in place: one that shrinks under its mapping kills the process with SIGBUS, where
// ReadOnlyFile::Read gives an error. Files of strangers are read, never mapped.
#pragma once

#include <cstddef>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/base/file.h"

namespace scion {

class MappedFile {
 public:
  // The whole file; it may be closed afterwards. ResourceExhausted if there is no room for the mapping.
  static absl::StatusOr<MappedFile> Map(const ReadOnlyFile& file);

  MappedFile() = default;
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  std::span<const std::byte> bytes() const { return {data_, size_}; }

  // Reads what is not yet in memory of [offset, offset + size) and enters its pages into the page table, so that no
  // later access waits. offset: a multiple of the page size. Does nothing on a kernel that can't (before 5.14).
  // DataLoss if it can't be read. Thread-safe.
  absl::Status Populate(size_t offset, size_t size) const;

 private:
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
  std::string path_;
};

}  // namespace scion

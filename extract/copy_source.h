// A file that is copied, read without filling the page cache: past it where the file system can (O_DIRECT), so that a
// copy of a model takes no memory from those that are being served. What is in the page cache anyway is taken from
// there.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "engine/base/file.h"

namespace scion {

class CopySource {
 public:
  // `file` must outlive it. Where there is no reading past the page cache, it is read as any other.
  explicit CopySource(const ReadOnlyFile& file);
  CopySource(const CopySource&) = delete;
  CopySource& operator=(const CopySource&) = delete;
  ~CopySource();

  // As ReadOnlyFile::Read; `offset` and the address of `out` are multiples of kDirectAlignment. Thread-safe.
  absl::Status Read(uint64_t offset, std::span<std::byte> out) const;

 private:
  bool IsInPageCache(uint64_t offset, size_t bytes) const;
  // How many bytes of the beginning of `out` it could fill.
  size_t ReadDirect(uint64_t offset, std::span<std::byte> out) const;

  const ReadOnlyFile& file_;
  int direct_fd_;  // below 0: can't be had
  void* mapping_;  // of the whole file, for questions only: never read, never readable; MAP_FAILED if there is none
};

}  // namespace scion

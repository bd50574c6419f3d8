// A file that did not exist before, written from front to back.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace scion {

class NewFile {
 public:
  // AlreadyExists if there is anything at `path`, a dangling link included. Errors name the path.
  static absl::StatusOr<NewFile> Create(const std::filesystem::path& path);
  NewFile(NewFile&& other) noexcept;
  NewFile& operator=(NewFile&& other) = delete;
  ~NewFile();  // closes; an unfinished file stays where it is, for its directory to be removed

  // Large files are on their way to the disk while they are written, so that Finish waits for the end only.
  absl::Status Append(std::span<const std::byte> bytes);
  // Fills `out` with what was written at `offset`, while another thread may append. Before Finish.
  absl::Status Read(uint64_t offset, std::span<std::byte> out) const;
  // Down to the disk, and closed.
  absl::Status Finish();

 private:
  NewFile(int fd, std::filesystem::path path);

  int fd_;
  std::filesystem::path path_;
  uint64_t written_ = 0;
  uint64_t flushing_ = 0;  // of these, on their way to the disk
};

absl::Status WriteNewFile(const std::filesystem::path& path, std::string_view text);

}  // namespace scion

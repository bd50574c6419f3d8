// A file that did not exist before, written from front to back. Large ones go to the disk past the page cache where the
// file system can (O_DIRECT): a copy of a model then takes no memory from those that are being served, and no processor
// time to write pages back.
#pragma once

#include <cstddef>
#include <filesystem>
#include <span>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/base/aligned_buffer.h"

namespace scion {

// Bytes that begin here in memory need not be copied before they are written.
inline constexpr size_t kDirectAlignment = 4096;

class NewFile {
 public:
  // AlreadyExists if there is anything at `path`, a dangling link included. Errors name the path.
  static absl::StatusOr<NewFile> Create(const std::filesystem::path& path);
  NewFile(NewFile&& other) noexcept;
  NewFile& operator=(NewFile&& other) = delete;
  ~NewFile();  // closes; an unfinished file stays where it is, for its directory to be removed

  // What does not fill a buffer of 2 MiB waits for the next call, or Finish.
  absl::Status Append(std::span<const std::byte> bytes);
  // Down to the disk, and closed.
  absl::Status Finish();

 private:
  NewFile(int fd, std::filesystem::path path);

  // All of them, whole buffers or multiples of kDirectAlignment at kDirectAlignment, past the page cache if it can be.
  absl::Status WriteDirect(std::span<const std::byte> bytes);
  absl::Status Write(std::span<const std::byte> bytes);
  absl::Status SetDirect(bool direct);

  int fd_;
  std::filesystem::path path_;
  AlignedBuffer buffer_;  // 2 MiB, once it is needed
  size_t buffered_ = 0;
  bool direct_ = false;     // the descriptor's O_DIRECT
  bool can_direct_ = true;  // until the file system refuses
};

absl::Status WriteNewFile(const std::filesystem::path& path, std::string_view text);

}  // namespace scion

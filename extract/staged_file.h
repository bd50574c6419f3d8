// A new file, written beside its place and renamed when it is whole: whoever looks at the place sees either nothing or
// all of it, also after a crash.
//
// It is written as `.NAME.scion-partial`, beside NAME, and locked (flock) while its maker lives. What a killed maker
// has left there is overwritten by the next Create for the same NAME; what a living one writes is not.
#pragma once

#include <cstddef>
#include <filesystem>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace scion {

class StagedFile {
 public:
  // Errors as StagedDirectory::Create's.
  static absl::StatusOr<StagedFile> Create(const std::filesystem::path& target);
  StagedFile(StagedFile&& other) noexcept;
  StagedFile& operator=(StagedFile&& other) = delete;
  ~StagedFile();  // removes the file unless it was committed

  std::filesystem::path path() const;  // where it is until then

  absl::Status Append(std::span<const std::byte> bytes);
  // Down to the disk, then renamed, then the name down to the disk. AlreadyExists if something has come to be at the
  // target meanwhile.
  absl::Status Commit();

 private:
  StagedFile(std::filesystem::path target, int fd);

  std::filesystem::path target_;
  int fd_;  // holds the lock
  bool owned_ = true;
};

}  // namespace scion

// A new directory, built beside its place and renamed when it is whole: whoever looks at the place sees either nothing
// or all of it, also after a crash.
//
// It is built in `.NAME.scion-partial`, beside NAME, and locked (flock) while its maker lives. What a killed maker has
// left there is removed by the next Create for the same NAME; a partial directory whose maker still works is not.
#pragma once

#include <filesystem>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "extract/staging.h"

namespace scion {

class StagedDirectory {
 public:
  // AlreadyExists, naming it, if there is anything at `target`; FailedPrecondition if another process is building it;
  // NotFound or PermissionDenied if the directory above it is not there or not ours to write.
  static absl::StatusOr<StagedDirectory> Create(const std::filesystem::path& target);
  StagedDirectory(StagedDirectory&& other) noexcept;
  StagedDirectory& operator=(StagedDirectory&& other) = delete;
  ~StagedDirectory();  // removes everything unless committed

  const std::filesystem::path& path() const { return path_; }  // where to write

  // Syncs the directories (files are synced by whoever wrote them), renames, syncs the directory above.
  // AlreadyExists if something has come to be at the target meanwhile.
  absl::Status Commit();

 private:
  StagedDirectory(std::filesystem::path target, std::filesystem::path path, int fd);

  std::filesystem::path target_;
  std::filesystem::path path_;
  int fd_;  // holds the lock
  bool owned_ = true;
};

}  // namespace scion

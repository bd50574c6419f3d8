// The one door through which a model directory is changed where it lies. (NewModel is the door to a new directory.)
//
// One writer at a time: the directory is locked (flock) while the transaction lives. What is written lies in
// `.scion-transaction` until Commit has all of it on the disk; then it is renamed into place, file by file. The rename
// of scion.lock.json decides: before it the directory is what it was, after it what it is to be. A reader (Checkpoint)
// obeys the lock and takes the config.json that the lock means out of `.scion-transaction`, so that it sees one state
// or the other at every moment. Data files are never changed, only added and, by gc, removed.
//
//   .scion-transaction/
//     data-0 ...      data files before they have their names
//     lock.json       before it is scion.lock.json
//     journal.json    {"data": [paths below domains/ that are added or removed]}
//     {sha256}        texts of config.json and index, before and after
//
// A writer that was killed leaves this directory; the next one repairs: config.json and index become what the lock
// says, data files of the journal that the lock does not know are removed, then the directory.
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "engine/model/checkpoint.h"
#include "extract/new_file.h"

namespace scion {

// Excludes other writers while it lives.
class WriterLock {
 public:
  // Repairs what a killed writer has left. FailedPrecondition: another process writes. InvalidArgument,
  // PermissionDenied, DataLoss: not a directory, not ours to write, or a damaged lock; all name the path.
  static absl::StatusOr<WriterLock> Acquire(const std::filesystem::path& model);
  WriterLock(WriterLock&& other) noexcept;
  WriterLock& operator=(WriterLock&& other) = delete;
  ~WriterLock();

  const std::filesystem::path& root() const { return root_; }

 private:
  WriterLock(std::filesystem::path root, int fd);

  std::filesystem::path root_;  // resolved
  int fd_;
};

class ModelTransaction {
 public:
  // Locks, repairs, opens. Besides what WriterLock and Checkpoint::Open say, FailedPrecondition: a directory without a
  // lock file, or whose config.json or index was edited since the lock was written. Writes nothing yet.
  static absl::StatusOr<ModelTransaction> Begin(const std::filesystem::path& model);
  ModelTransaction(ModelTransaction&& other) noexcept = default;
  ModelTransaction& operator=(ModelTransaction&& other) = delete;
  ~ModelTransaction();  // unless committed, the directory is as before

  // The model as it was.
  const Checkpoint& before() const { return *before_; }
  // The lock as it is to be: the one of before() until changed. Commit adds config.json, index and lineage.
  LockFile& lock() { return lock_; }

  // A data file that will be called `path`, of the form "domains/...". To be finished before Commit.
  absl::StatusOr<NewFile> CreateDataFile(const std::string& path);
  // A data file that nothing needs any more, removed when the lock no longer names it.
  void RemoveDataFile(const std::string& path) { removed_.push_back(path); }

  // What other programs see of the steps between: whether index and config.json change before the lock, as when
  // something is added, or after it.
  enum class Order { kLockLast, kLockFirst };
  // An error says that all is as before, or that the change "is in place" but something after it failed.
  absl::Status Commit(std::string_view config, Order order, LockFile::LineageEntry lineage);

 private:
  struct Text {
    std::string name;    // "config.json"
    std::string sha256;  // as it is to be
  };
  ModelTransaction(WriterLock writer, std::unique_ptr<Checkpoint> before);

  absl::Status MakeDirectory();
  absl::Status StageText(std::string_view text);
  absl::StatusOr<std::string> Index() const;
  absl::Status Stage(const std::vector<Text>& texts, Order order);
  absl::Status Rename(const std::string& from, const std::string& to) const;

  WriterLock writer_;
  std::filesystem::path directory_;  // .scion-transaction
  std::unique_ptr<Checkpoint> before_;
  LockFile lock_;
  std::vector<std::string> added_, removed_;
  bool made_ = false;  // directory_, and it is ours to clear
};

}  // namespace scion

// A model directory that is made out of another one: what slice, quantize and graft share, and the counterpart of
// ModelTransaction, which changes one where it lies. Built beside its place and renamed
// by Commit; until then there is nothing at `out`, and nothing is left of what was given up.
#pragma once

#include <filesystem>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "engine/model/checkpoint.h"
#include "extract/digest_file.h"
#include "extract/link_file.h"
#include "extract/new_file.h"
#include "extract/progress.h"
#include "extract/staged_directory.h"

namespace scion {

// InvalidArgument: OUT lies inside the model.
absl::Status RefuseOutInsideModel(const std::filesystem::path& model, const std::filesystem::path& out);

// DataLoss if the digest, of a file of the source, is not what the source's lock says.
absl::Status CheckDigest(const Checkpoint& source, const std::string& path, const FileDigest& digest);

class NewModel {
 public:
  // `source` must outlive it. AlreadyExists: OUT is there. InvalidArgument: OUT lies inside the source. And as
  // StagedDirectory::Create.
  static absl::StatusOr<NewModel> Create(const Checkpoint& source, const std::filesystem::path& out);

  // A data file of the source, whole; the hash of what is written is taken on the way. DataLoss if it is not what the
  // source's lock says. Tensors' hashes are the lock's then, or taken on the way too if there is no lock.
  absl::Status CopyDataFile(const CheckpointFile& file, std::span<const TensorInfo> tensors, Progress& progress);
  // Likewise, but linked, with the hashes that the source's lock has. FailedPrecondition if there is no lock, or the
  // file can't be linked to.
  absl::StatusOr<LinkKind> LinkDataFile(const CheckpointFile& file, std::span<const TensorInfo> tensors);
  // The tokenizer and whatever else belongs to the model, but for what is written anew; the same errors.
  absl::Status CopyCompanions(Progress& progress, const std::set<std::string>& except = {});
  // A companion that the source has in another form, or not at all.
  absl::Status WriteCompanion(const std::string& name, std::string_view text);
  // A data file that is written anew; AddDataFile when it is finished. path: relative to the directory.
  absl::StatusOr<NewFile> CreateDataFile(const std::string& path);
  // tensor_bytes: of the data.
  void AddDataFile(const CheckpointFile& file, const FileDigest& digest, uint64_t tensor_bytes);
  // The same of a domain that the source may not have.
  void AddDomainFile(const std::string& domain, const std::string& path, uint64_t generation, const FileDigest& digest,
                     uint64_t tensor_bytes);
  // The same of a trunk's file that the source may not have.
  void AddTrunkFile(const std::string& path, const FileDigest& digest, uint64_t tensor_bytes);
  // Hashes the source's data files, if it has a lock. DataLoss if one is not what the lock says.
  absl::Status CheckSource(std::FILE* log) const;
  // As CheckDigest above.
  absl::Status CheckDigest(const std::string& path, const FileDigest& digest) const;

  struct Lineage {
    std::string verb;
    std::string version;  // of this program
    absl::Time now;
    std::vector<std::string> domains;
    std::vector<LockFile::LineageEntry> then = {};  // what else was done in the same run
  };
  // Writes index, config.json and lock, then makes all of it appear at OUT.
  absl::Status Commit(const std::string& config, Lineage lineage);

 private:
  NewModel(const Checkpoint& source, StagedDirectory staged, std::vector<std::string> companions);

  // What the source's lock, which is there, says of a data file. DataLoss: it lacks a tensor.
  absl::StatusOr<FileDigest> LockedDigest(const CheckpointFile& file, std::span<const TensorInfo> tensors) const;
  // Where a file is to be; its directory is there.
  absl::StatusOr<std::filesystem::path> Place(const std::string& relative_path) const;
  absl::StatusOr<FileDigest> Copy(const std::string& path, const ReadOnlyFile& file,
                                  std::span<const TensorInfo> tensors, NewFile& copy, Progress& progress) const;

  const Checkpoint* source_;
  StagedDirectory staged_;
  std::vector<std::string> companions_;
  LockFile lock_;
  std::map<std::string, std::string> weight_map_;
  uint64_t total_size_ = 0;
};

}  // namespace scion

#include "extract/new_model.h"

#include <algorithm>
#include <iterator>
#include <system_error>
#include <utility>

#include "engine/base/json.h"
#include "engine/base/status.h"
#include "engine/model/model_files.h"
#include "extract/companion_files.h"
#include "extract/lock_builder.h"

namespace scion {

namespace fs = std::filesystem;

absl::Status RefuseOutInsideModel(const fs::path& model, const fs::path& out) {
  std::error_code error;
  const fs::path root = fs::canonical(model, error);
  if (error) return ErrnoStatus(error.value(), "open", model);
  const fs::path place = fs::weakly_canonical(fs::absolute(out, error), error);
  if (error) return ErrnoStatus(error.value(), "look up", out);
  if (std::mismatch(root.begin(), root.end(), place.begin(), place.end()).first == root.end() && root != place) {
    return absl::InvalidArgumentError(absl::StrCat(out.string(), " lies inside the model ", model.string(),
                                                   "; a model is never written into by a cut"));
  }
  return absl::OkStatus();
}

absl::Status CheckDigest(const Checkpoint& source, const std::string& path, const FileDigest& digest) {
  const LockFile* lock = source.lock();
  if (lock == nullptr) return absl::OkStatus();
  const auto entry = lock->files.find(path);
  if (entry == lock->files.end() || entry->second.sha256 == digest.sha256) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat((source.directory() / path).string(),
                                          " is not what the model's lock says (sha256 differs): nothing was written"));
}

namespace {

uint64_t BytesOf(std::span<const TensorInfo> tensors) {
  uint64_t bytes = 0;
  for (const TensorInfo& tensor : tensors) bytes += tensor.bytes;
  return bytes;
}

}  // namespace

absl::StatusOr<NewModel> NewModel::Create(const Checkpoint& source, const fs::path& out) {
  std::vector<std::string> companions;
  if (!source.is_gguf()) {
    SCION_ASSIGN_OR_RETURN(companions, ListCompanionFiles(source.directory()));
  }
  SCION_RETURN_IF_ERROR(RefuseOutInsideModel(source.directory(), out));
  SCION_ASSIGN_OR_RETURN(StagedDirectory staged, StagedDirectory::Create(out));
  return NewModel(source, std::move(staged), std::move(companions));
}

NewModel::NewModel(const Checkpoint& source, StagedDirectory staged, std::vector<std::string> companions)
    : source_(&source), staged_(std::move(staged)), companions_(std::move(companions)) {}

absl::Status NewModel::CheckDigest(const std::string& path, const FileDigest& digest) const {
  return scion::CheckDigest(*source_, path, digest);
}

absl::StatusOr<FileDigest> NewModel::Copy(const std::string& path, const ReadOnlyFile& file,
                                          std::span<const TensorInfo> tensors, NewFile& copy,
                                          Progress& progress) const {
  SCION_ASSIGN_OR_RETURN(FileDigest digest, DigestFile(file, tensors, &copy, progress));
  SCION_RETURN_IF_ERROR(CheckDigest(path, digest));
  SCION_RETURN_IF_ERROR(copy.Finish());
  return digest;
}

absl::Status NewModel::CheckSource(std::FILE* log) const {
  if (source_->lock() == nullptr) return absl::OkStatus();
  uint64_t bytes = 0;
  for (const CheckpointFile& file : source_->files()) bytes += file.file.size();
  Progress progress(log, "hashing the source", bytes, Progress::Unit::kBytes);
  for (const CheckpointFile& file : source_->files()) {
    SCION_ASSIGN_OR_RETURN(const FileDigest digest, DigestFile(file.file, {}, nullptr, progress));
    SCION_RETURN_IF_ERROR(CheckDigest(file.path, digest));
  }
  return absl::OkStatus();
}

absl::StatusOr<fs::path> NewModel::Place(const std::string& relative_path) const {
  std::error_code error;
  const fs::path path = staged_.path() / relative_path;
  fs::create_directories(path.parent_path(), error);
  if (error) return ErrnoStatus(error.value(), "create directory", path.parent_path());
  return path;
}

absl::StatusOr<NewFile> NewModel::CreateDataFile(const std::string& relative_path) {
  SCION_ASSIGN_OR_RETURN(const fs::path path, Place(relative_path));
  return NewFile::Create(path);
}

absl::StatusOr<FileDigest> NewModel::LockedDigest(const CheckpointFile& file,
                                                  std::span<const TensorInfo> tensors) const {
  const LockFile::File& locked = source_->lock()->files.at(file.path);
  FileDigest digest{.bytes = locked.size, .sha256 = locked.sha256, .tensor_sha256 = {}};
  for (const TensorInfo& tensor : tensors) {
    const auto hash = locked.tensors.find(tensor.name);
    if (hash == locked.tensors.end()) {
      return absl::DataLossError(
          absl::StrCat(file.path, ": tensor ", Quoted(tensor.name), " is not in the model's lock"));
    }
    digest.tensor_sha256.emplace_back(*hash);
  }
  return digest;
}

absl::StatusOr<LinkKind> NewModel::LinkDataFile(const CheckpointFile& file, std::span<const TensorInfo> tensors) {
  if (source_->lock() == nullptr) {
    return absl::FailedPreconditionError(
        absl::StrCat(source_->directory().string(),
                     " has no lock to take the hashes of linked files from; `moe-extract ", "lock` makes one"));
  }
  SCION_ASSIGN_OR_RETURN(const FileDigest digest, LockedDigest(file, tensors));
  SCION_ASSIGN_OR_RETURN(const fs::path path, Place(file.path));
  SCION_ASSIGN_OR_RETURN(const LinkKind kind, LinkFile(file.file, path));
  AddDataFile(file, digest, BytesOf(tensors));
  return kind;
}

absl::Status NewModel::CopyDataFile(const CheckpointFile& file, std::span<const TensorInfo> tensors,
                                    Progress& progress) {
  SCION_ASSIGN_OR_RETURN(NewFile copy, CreateDataFile(file.path));
  if (source_->lock() == nullptr) {
    SCION_ASSIGN_OR_RETURN(const FileDigest digest, Copy(file.path, file.file, tensors, copy, progress));
    AddDataFile(file, digest, BytesOf(tensors));
    return absl::OkStatus();
  }
  // The written bytes have the hash that the lock has for the file: so they have the lock's tensors too, and hashing
  // each of those as well would double the work.
  SCION_ASSIGN_OR_RETURN(const FileDigest digest, LockedDigest(file, tensors));
  SCION_RETURN_IF_ERROR(Copy(file.path, file.file, {}, copy, progress).status());
  AddDataFile(file, digest, BytesOf(tensors));
  return absl::OkStatus();
}

absl::Status NewModel::CopyCompanions(Progress& progress, const std::set<std::string>& except) {
  for (const std::string& name : companions_) {
    if (except.contains(name)) continue;
    SCION_ASSIGN_OR_RETURN(const ReadOnlyFile file, ReadOnlyFile::Open(source_->directory() / name));
    SCION_ASSIGN_OR_RETURN(NewFile copy, NewFile::Create(staged_.path() / name));
    SCION_ASSIGN_OR_RETURN(const FileDigest digest, Copy(name, file, {}, copy, progress));
    AddPlainFile(lock_, name, digest);
  }
  return absl::OkStatus();
}

absl::Status NewModel::WriteCompanion(const std::string& name, std::string_view text) {
  AddTextFile(lock_, name, text);
  return WriteNewFile(staged_.path() / name, text);
}

void NewModel::AddDomainFile(const std::string& domain, const std::string& path, uint64_t generation,
                             const FileDigest& digest, uint64_t tensor_bytes) {
  scion::AddDomainFile(lock_, domain, path, generation, digest);
  for (const auto& [tensor, sha256] : digest.tensor_sha256) weight_map_[tensor] = path;
  total_size_ += tensor_bytes;
}

void NewModel::AddDataFile(const CheckpointFile& file, const FileDigest& digest, uint64_t tensor_bytes) {
  scion::AddDataFile(lock_, *source_, file, digest);
  for (const auto& [tensor, sha256] : digest.tensor_sha256) weight_map_[tensor] = file.path;
  total_size_ += tensor_bytes;
}

void NewModel::AddTrunkFile(const std::string& path, const FileDigest& digest, uint64_t tensor_bytes) {
  LockFile::File& entry = lock_.files[path];
  entry = {.size = digest.bytes, .sha256 = digest.sha256, .is_data = true, .tensors = {}};
  entry.tensors.insert(digest.tensor_sha256.begin(), digest.tensor_sha256.end());
  for (const auto& [tensor, sha256] : digest.tensor_sha256) weight_map_[tensor] = path;
  total_size_ += tensor_bytes;
}

absl::Status NewModel::Commit(const std::string& config, Lineage lineage) {
  const std::string index = IndexText(weight_map_, total_size_);
  for (const auto& [name, text] :
       {std::pair<std::string, const std::string&>{kIndexFileName, index}, {"config.json", config}}) {
    SCION_RETURN_IF_ERROR(WriteNewFile(staged_.path() / name, text));
    AddTextFile(lock_, name, text);
  }
  const LockFile* source_lock = source_->lock();
  if (source_lock != nullptr) lock_.lineage = source_lock->lineage;
  lock_.lineage.push_back({.verb = std::move(lineage.verb),
                           .time = FormatUtc(lineage.now),
                           .version = std::move(lineage.version),
                           .source = ModelName(source_->directory()),
                           .source_lock_sha256 = source_lock != nullptr ? LockSha256(*source_lock) : "",
                           .domains = std::move(lineage.domains)});
  std::ranges::move(lineage.then, std::back_inserter(lock_.lineage));
  SCION_RETURN_IF_ERROR(WriteNewFile(staged_.path() / kLockFileName, SerializeLockFile(lock_)));
  return staged_.Commit();
}

}  // namespace scion

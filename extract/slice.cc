#include "extract/slice.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <set>
#include <system_error>

#include "engine/base/json.h"
#include "engine/base/status.h"
#include "engine/model/checkpoint.h"
#include "engine/model/model_files.h"
#include "extract/companion_files.h"
#include "extract/cut_config.h"
#include "extract/lock_builder.h"
#include "extract/staged_directory.h"

namespace scion {
namespace {

namespace fs = std::filesystem;

// A model that is open for cutting.
struct Source {
  std::unique_ptr<Checkpoint> checkpoint;
  std::string config;                   // text of the cut's config.json
  std::vector<std::string> companions;  // copied as they are
};

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

// What was read must be what the model's lock says, if it has one.
absl::Status CheckDigest(const Source& source, const std::string& path, const FileDigest& digest) {
  const LockFile* lock = source.checkpoint->lock();
  if (lock == nullptr) return absl::OkStatus();
  const auto entry = lock->files.find(path);
  if (entry == lock->files.end() || entry->second.sha256 == digest.sha256) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat((source.checkpoint->directory() / path).string(),
                                          " is not what the model's lock says (sha256 differs): nothing was cut"));
}

absl::StatusOr<Source> OpenSource(const SliceOptions& options) {
  Source source;
  absl::StatusOr<std::unique_ptr<Checkpoint>> checkpoint = Checkpoint::Open(options.model);
  if (!checkpoint.ok()) return Annotate(checkpoint.status(), options.model.string());
  source.checkpoint = *std::move(checkpoint);
  SCION_ASSIGN_OR_RETURN(const std::string config, ReadTextInside(options.model, "config.json"));
  SCION_ASSIGN_OR_RETURN(source.config, CutConfig(config, options.domains));
  SCION_ASSIGN_OR_RETURN(source.companions, ListCompanionFiles(options.model));
  return source;
}

absl::StatusOr<FileDigest> CopyFile(const Source& source, const std::string& path, std::span<const TensorInfo> tensors,
                                    const ReadOnlyFile& file, const fs::path& to, Progress& progress) {
  SCION_ASSIGN_OR_RETURN(NewFile copy, NewFile::Create(to / path));
  SCION_ASSIGN_OR_RETURN(FileDigest digest, DigestFile(file, tensors, &copy, progress));
  SCION_RETURN_IF_ERROR(CheckDigest(source, path, digest));
  SCION_RETURN_IF_ERROR(copy.Finish());
  return digest;
}

std::string MakeIndex(const Checkpoint& checkpoint, const std::set<int>& kept_files) {
  Json weight_map = Json::object();
  uint64_t total_size = 0;
  for (const TensorInfo& tensor : checkpoint.tensors()) {
    if (!kept_files.contains(tensor.file)) continue;
    weight_map[tensor.name] = checkpoint.files()[static_cast<size_t>(tensor.file)].path;
    total_size += tensor.bytes;
  }
  const Json index = {{"metadata", {{"total_size", total_size}}}, {"weight_map", std::move(weight_map)}};
  return index.dump(1, ' ', false, Json::error_handler_t::replace) + "\n";
}

LockFile::LineageEntry MakeLineageEntry(const SliceOptions& options, const Source& source,
                                        std::vector<std::string> domains) {
  const LockFile* lock = source.checkpoint->lock();
  return {.verb = "slice",
          .time = FormatUtc(options.now),
          .version = options.version,
          .source = ModelName(options.model),
          .source_lock_sha256 = lock != nullptr ? LockSha256(*lock) : "",
          .domains = std::move(domains)};
}

}  // namespace

absl::StatusOr<SliceResult> Slice(const SliceOptions& options) {
  if (std::set<std::string>(options.domains.begin(), options.domains.end()).size() != options.domains.size()) {
    return absl::InvalidArgumentError("a domain is named twice");
  }
  SCION_ASSIGN_OR_RETURN(const Source source, OpenSource(options));
  SCION_RETURN_IF_ERROR(RefuseOutInsideModel(options.model, options.out));
  const Checkpoint& checkpoint = *source.checkpoint;

  SliceResult result;
  for (const DomainSpec& domain : checkpoint.spec().domains) {
    const bool kept = std::find(options.domains.begin(), options.domains.end(), domain.name) != options.domains.end();
    if (kept) result.domains.push_back(domain.name);
  }
  std::set<int> kept_files;
  for (size_t i = 0; i < checkpoint.files().size(); ++i) {
    const CheckpointFile& file = checkpoint.files()[i];
    result.model_bytes += file.file.size();
    const std::string part = PartName(checkpoint, file);
    if (file.domain.has_value() &&
        std::find(result.domains.begin(), result.domains.end(), part) == result.domains.end())
      continue;
    kept_files.insert(static_cast<int>(i));
    result.cut_bytes += file.file.size();
  }

  SCION_ASSIGN_OR_RETURN(StagedDirectory staged, StagedDirectory::Create(options.out));
  LockFile lock;
  {
    Progress progress(options.log, "copying", result.cut_bytes, Progress::Unit::kBytes);
    for (const int i : kept_files) {
      const CheckpointFile& file = checkpoint.files()[static_cast<size_t>(i)];
      std::error_code error;
      const fs::path parent = (staged.path() / file.path).parent_path();
      fs::create_directories(parent, error);
      if (error) return ErrnoStatus(error.value(), "create directory", parent);
      SCION_ASSIGN_OR_RETURN(const FileDigest digest,
                             CopyFile(source, file.path, TensorsOf(checkpoint, i), file.file, staged.path(), progress));
      AddDataFile(lock, checkpoint, file, digest);
    }
    for (const std::string& name : source.companions) {
      SCION_ASSIGN_OR_RETURN(const ReadOnlyFile file, ReadOnlyFile::Open(options.model / name));
      SCION_ASSIGN_OR_RETURN(const FileDigest digest, CopyFile(source, name, {}, file, staged.path(), progress));
      AddPlainFile(lock, name, digest);
    }
  }
  const std::string index = MakeIndex(checkpoint, kept_files);
  for (const auto& [name, text] :
       {std::pair<std::string, const std::string&>{kIndexFileName, index}, {"config.json", source.config}}) {
    SCION_RETURN_IF_ERROR(WriteNewFile(staged.path() / name, text));
    AddTextFile(lock, name, text);
  }
  if (checkpoint.lock() != nullptr) lock.lineage = checkpoint.lock()->lineage;
  lock.lineage.push_back(MakeLineageEntry(options, source, result.domains));
  SCION_RETURN_IF_ERROR(WriteNewFile(staged.path() / kLockFileName, SerializeLockFile(lock)));
  SCION_RETURN_IF_ERROR(staged.Commit());
  return result;
}

}  // namespace scion

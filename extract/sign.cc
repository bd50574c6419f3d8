#include "extract/sign.h"

#include <memory>
#include <system_error>

#include "engine/base/atomic_file.h"
#include "engine/base/status.h"
#include "engine/model/checkpoint.h"
#include "engine/model/model_files.h"
#include "extract/companion_files.h"
#include "extract/lock_builder.h"
#include "extract/model_transaction.h"

namespace scion {

namespace fs = std::filesystem;

absl::StatusOr<LockFile> Sign(const SignOptions& options) {
  std::error_code not_there;
  if (!fs::is_directory(options.model, not_there)) {
    return absl::NotFoundError(absl::StrCat(options.model.string(), ": there is no such directory"));
  }
  SCION_ASSIGN_OR_RETURN(const WriterLock writer, WriterLock::Acquire(options.model));
  const absl::StatusOr<std::unique_ptr<Checkpoint>> opened = Checkpoint::Open(options.model);
  if (!opened.ok()) return Annotate(opened.status(), options.model.string());
  const Checkpoint& checkpoint = **opened;
  const fs::path lock_path = options.model / kLockFileName;
  const LockFile* old_lock = checkpoint.lock();
  if (old_lock != nullptr && !options.replace) {
    return absl::AlreadyExistsError(
        absl::StrCat(lock_path.string(), " exists already; --replace signs the files as they are now"));
  }
  SCION_ASSIGN_OR_RETURN(std::vector<std::string> plain_files, ListCompanionFiles(options.model));
  for (const std::string_view name : {std::string_view("config.json"), kIndexFileName}) {
    std::error_code error;
    if (fs::exists(options.model / name, error)) plain_files.emplace_back(name);
  }

  uint64_t total_bytes = 0;
  for (const CheckpointFile& file : checkpoint.files()) total_bytes += file.file.size();
  Progress progress(options.log, "hashing", total_bytes, Progress::Unit::kBytes);
  LockFile lock;
  for (size_t i = 0; i < checkpoint.files().size(); ++i) {
    const CheckpointFile& file = checkpoint.files()[i];
    SCION_ASSIGN_OR_RETURN(const FileDigest digest,
                           DigestFile(file.file, TensorsOf(checkpoint, static_cast<int>(i)), nullptr, progress));
    AddDataFile(lock, checkpoint, file, digest);
  }
  for (const std::string& name : plain_files) {
    SCION_ASSIGN_OR_RETURN(const std::string text, ReadTextInside(options.model, name));
    AddTextFile(lock, name, text);
  }
  if (old_lock != nullptr) {
    lock.lineage = old_lock->lineage;
    lock.earlier = old_lock->earlier;
  }
  std::vector<std::string> domains;
  for (const auto& [name, domain] : lock.domains) domains.push_back(name);
  lock.lineage.push_back({.verb = "lock",
                          .time = FormatUtc(options.now),
                          .version = options.version,
                          .source = ModelName(options.model),
                          .source_lock_sha256 = old_lock != nullptr ? LockSha256(*old_lock) : "",
                          .domains = std::move(domains)});
  SCION_RETURN_IF_ERROR(WriteFileAtomically(lock_path, SerializeLockFile(lock)));
  return lock;
}

}  // namespace scion

#include "extract/model_transaction.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <map>
#include <ranges>
#include <set>
#include <system_error>
#include <utility>

#include "engine/base/atomic_file.h"
#include "engine/base/json.h"
#include "engine/base/sha256.h"
#include "engine/base/status.h"
#include "engine/model/model_files.h"
#include "engine/model/model_spec.h"
#include "engine/model/safetensors.h"
#include "extract/lock_builder.h"

namespace scion {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kJournalName = "journal.json";
constexpr std::string_view kStagedLockName = "lock.json";
constexpr std::string_view kDomainsPrefix = "domains/";
// The texts that are derived from the lock, in the order in which a commit with the lock last replaces them.
const std::array<std::string, 2> kTexts = {std::string(kIndexFileName), "config.json"};

bool Exists(const fs::path& path) {
  std::error_code error;
  return fs::symlink_status(path, error).type() != fs::file_type::not_found;
}

absl::Status RenameFile(const fs::path& from, const fs::path& to) {
  return std::rename(from.c_str(), to.c_str()) == 0 ? absl::OkStatus() : ErrnoStatus(errno, "rename to", to);
}

bool HasSha256(const fs::path& root, std::string_view path, const std::string& sha256) {
  const absl::StatusOr<std::string> text = ReadTextInside(root, path);
  return text.ok() && Sha256Hex(*text) == sha256;
}

// config.json and index as the lock says, if what is there is not and the transaction has kept them. config.json first:
// an index that names more than the config is no harm to other programs.
absl::Status RestoreTexts(const fs::path& root, const LockFile& lock) {
  bool changed = false;
  for (const std::string& name : kTexts | std::views::reverse) {
    const auto entry = lock.files.find(name);
    if (entry == lock.files.end()) continue;
    const std::string& sha256 = entry->second.sha256;
    const std::string kept = absl::StrCat(ToAbsl(kTransactionDirectoryName), "/", sha256);
    if (HasSha256(root, name, sha256) || !HasSha256(root, kept, sha256)) continue;
    SCION_RETURN_IF_ERROR(RenameFile(root / kept, root / name));
    changed = true;
  }
  return changed ? FsyncDirectory(root) : absl::OkStatus();
}

// The data files that the transaction wanted to add or remove; none if it was killed before it had written all.
std::vector<std::string> ReadJournal(const fs::path& directory) {
  std::vector<std::string> paths;
  const absl::StatusOr<std::string> text = ReadTextInside(directory, kJournalName);
  if (!text.ok()) return paths;
  const absl::StatusOr<Json> json = ParseJson(*text, kJournalName, {.max_bytes = text->size()});
  if (!json.ok() || !json->is_object()) return paths;
  const absl::StatusOr<const Json*> data = GetArray(*json, "data");
  if (!data.ok()) return paths;
  for (const Json& path : **data) {
    if (!path.is_string()) continue;
    const std::string& name = path.get_ref<const std::string&>();
    if (IsSafeRelativePath(name) && name.starts_with(kDomainsPrefix)) paths.push_back(name);
  }
  return paths;
}

absl::Status RemoveUnknownData(const fs::path& root, const LockFile& lock, const std::vector<std::string>& paths) {
  std::set<std::string_view> known;
  for (const auto& [path, file] : lock.files) known.insert(path);
  for (const auto& [domain, generations] : lock.earlier) {
    for (const LockFile::Generation& generation : generations) known.insert(generation.file);
  }
  bool removed = false;
  for (const std::string& path : paths) {
    if (known.contains(path)) continue;
    if (::unlink((root / path).c_str()) != 0 && errno != ENOENT) return ErrnoStatus(errno, "remove", root / path);
    removed = true;
  }
  if (!removed || !Exists(root / "domains")) return absl::OkStatus();
  return FsyncDirectory(root / "domains");
}

// Makes the directory what its lock says: forward after the lock's rename, back before it.
absl::Status Repair(const fs::path& root) {
  RemoveAbandonedFiles(root, kLockFileName);
  const fs::path directory = root / kTransactionDirectoryName;
  if (!Exists(directory)) return absl::OkStatus();
  std::error_code error;
  if (fs::symlink_status(directory, error).type() != fs::file_type::directory) {
    return absl::InvalidArgumentError(absl::StrCat(directory.string(), " is not a directory"));
  }
  SCION_ASSIGN_OR_RETURN(const std::optional<LockFile> lock, ReadLock(root));
  if (!lock.has_value()) {
    return absl::DataLossError(
        absl::StrCat(root.string(), " was being changed, and has no ", ToAbsl(kLockFileName), " any more"));
  }
  SCION_RETURN_IF_ERROR(RestoreTexts(root, *lock));
  SCION_RETURN_IF_ERROR(RemoveUnknownData(root, *lock, ReadJournal(directory)));
  fs::remove_all(directory, error);
  if (error) return ErrnoStatus(error.value(), "remove", directory);
  return FsyncDirectory(root);
}

absl::StatusOr<uint64_t> DataBytes(const fs::path& file, std::string_view name) {
  SCION_ASSIGN_OR_RETURN(const ReadOnlyFile data, ReadOnlyFile::Open(file));
  std::string prefix(std::min<uint64_t>(8, data.size()), '\0');
  SCION_RETURN_IF_ERROR(data.Read(0, std::as_writable_bytes(std::span(prefix))));
  SCION_ASSIGN_OR_RETURN(const uint64_t header, ParseSafetensorsHeaderLength(prefix, data.size(), name));
  return data.size() - 8 - header;
}

}  // namespace

absl::StatusOr<WriterLock> WriterLock::Acquire(const fs::path& model) {
  SCION_ASSIGN_OR_RETURN(fs::path root, ResolveDirectory(model));
  const int fd = ::open(root.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return ErrnoStatus(errno, "open directory", model);
  WriterLock lock(std::move(root), fd);
  if (::flock(fd, LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) return ErrnoStatus(errno, "lock", model);
    return absl::FailedPreconditionError(
        absl::StrCat(model.string(), ": another run is changing it at this moment; nothing was done, try again later"));
  }
  SCION_RETURN_IF_ERROR(Annotate(Repair(lock.root_), "after an interrupted run"));
  return lock;
}

WriterLock::WriterLock(fs::path root, int fd) : root_(std::move(root)), fd_(fd) {}

WriterLock::WriterLock(WriterLock&& other) noexcept
    : root_(std::move(other.root_)), fd_(std::exchange(other.fd_, -1)) {}

WriterLock::~WriterLock() {
  if (fd_ >= 0) ::close(fd_);
}

absl::StatusOr<ModelTransaction> ModelTransaction::Begin(const fs::path& model) {
  std::error_code error;
  if (fs::is_regular_file(model, error)) {
    return absl::InvalidArgumentError(absl::StrCat(model.string(), ": not a directory"));
  }
  SCION_ASSIGN_OR_RETURN(WriterLock writer, WriterLock::Acquire(model));
  absl::StatusOr<std::unique_ptr<Checkpoint>> before = Checkpoint::Open(model);
  if (!before.ok()) return Annotate(before.status(), model.string());
  const LockFile* lock = (*before)->lock();
  if (lock == nullptr) {
    return absl::FailedPreconditionError(absl::StrCat(model.string(), " has no ", ToAbsl(kLockFileName),
                                                      "; `moe-extract lock` writes it, then it can be changed"));
  }
  for (const std::string& name : kTexts) {
    const auto entry = lock->files.find(name);
    if (entry == lock->files.end() || HasSha256(writer.root(), name, entry->second.sha256)) continue;
    return absl::FailedPreconditionError(
        absl::StrCat((model / name).string(), " is not what ", ToAbsl(kLockFileName),
                     " says; if it was edited on purpose, `moe-extract lock --replace` signs it"));
  }
  if (!lock->files.contains("config.json")) {
    return absl::FailedPreconditionError(
        absl::StrCat(model.string(), ": its lock does not cover config.json; `moe-extract lock --replace` signs it"));
  }
  return ModelTransaction(std::move(writer), *std::move(before));
}

ModelTransaction::ModelTransaction(WriterLock writer, std::unique_ptr<Checkpoint> before)
    : writer_(std::move(writer)),
      directory_(writer_.root() / kTransactionDirectoryName),
      before_(std::move(before)),
      lock_(*before_->lock()) {}

ModelTransaction::~ModelTransaction() {
  // Nothing on a moved-from one. The reason for giving up is what the user needs to hear.
  if (before_ != nullptr && made_) Repair(writer_.root()).IgnoreError();
}

absl::Status ModelTransaction::MakeDirectory() {
  if (made_) return absl::OkStatus();
  if (::mkdir(directory_.c_str(), 0777) != 0) return ErrnoStatus(errno, "create directory", directory_);
  made_ = true;
  return absl::OkStatus();
}

absl::StatusOr<NewFile> ModelTransaction::CreateDataFile(const std::string& path) {
  SCION_RETURN_IF_ERROR(MakeDirectory());
  added_.push_back(path);
  return NewFile::Create(directory_ / absl::StrCat("data-", added_.size() - 1));
}

absl::Status ModelTransaction::StageText(std::string_view text) {
  const fs::path path = directory_ / Sha256Hex(text);
  return Exists(path) ? absl::OkStatus() : WriteNewFile(path, text);
}

absl::StatusOr<std::string> ModelTransaction::Index() const {
  std::map<std::string, std::string> weight_map;
  uint64_t total_size = 0;
  for (const auto& [path, file] : lock_.files) {
    if (!file.is_data) continue;
    for (const auto& [tensor, sha256] : file.tensors) weight_map[tensor] = path;
    fs::path place = writer_.root() / path;
    for (size_t i = 0; i < added_.size(); ++i) {
      if (added_[i] == path) place = directory_ / absl::StrCat("data-", i);
    }
    SCION_ASSIGN_OR_RETURN(const uint64_t bytes, DataBytes(place, path));
    total_size += bytes;
  }
  return IndexText(weight_map, total_size);
}

// All that Commit renames, on the disk. Nothing of it can be seen yet.
absl::Status ModelTransaction::Stage(const std::vector<Text>& texts, Order order) {
  if (order == Order::kLockLast) {
    // What a reader needs while the old lock still holds, and a later writer to go back.
    for (const Text& text : texts) {
      SCION_ASSIGN_OR_RETURN(const std::string old, ReadTextInside(writer_.root(), text.name));
      SCION_RETURN_IF_ERROR(StageText(old));
    }
  }
  std::vector<std::string> paths = added_;
  paths.insert(paths.end(), removed_.begin(), removed_.end());
  SCION_RETURN_IF_ERROR(WriteNewFile(directory_ / kJournalName, Json({{"data", paths}}).dump()));
  const std::string lock = SerializeLockFile(lock_);
  // Beyond a limit, say, no reader would take it.
  SCION_RETURN_IF_ERROR(Annotate(ParseLockFile(lock).status(), "nothing was changed: the new lock would be refused"));
  SCION_RETURN_IF_ERROR(WriteNewFile(directory_ / kStagedLockName, lock));
  SCION_RETURN_IF_ERROR(FsyncDirectory(directory_));
  return FsyncDirectory(writer_.root());
}

absl::Status ModelTransaction::Rename(const std::string& from, const std::string& to) const {
  SCION_RETURN_IF_ERROR(RenameFile(directory_ / from, writer_.root() / to));
  return FsyncDirectory((writer_.root() / to).parent_path());
}

absl::Status ModelTransaction::Commit(std::string_view config, Order order, LockFile::LineageEntry lineage) {
  SCION_RETURN_IF_ERROR(
      Annotate(ParseModelSpec(config, "").status(), "nothing was changed: the new model would be refused"));
  SCION_RETURN_IF_ERROR(MakeDirectory());
  std::vector<Text> changed;
  const auto add_text = [&](const std::string& name, std::string_view text) -> absl::Status {
    const std::string old_sha256 = lock_.files.at(name).sha256;
    AddTextFile(lock_, name, text);
    if (lock_.files.at(name).sha256 == old_sha256) return absl::OkStatus();
    changed.push_back({name, lock_.files.at(name).sha256});
    return StageText(text);
  };
  if (lock_.files.contains(std::string(kIndexFileName))) {
    SCION_ASSIGN_OR_RETURN(const std::string index, Index());
    SCION_RETURN_IF_ERROR(add_text(std::string(kIndexFileName), index));
  }
  SCION_RETURN_IF_ERROR(add_text("config.json", config));
  lock_.lineage.push_back(std::move(lineage));
  SCION_RETURN_IF_ERROR(Stage(changed, order));

  for (size_t i = 0; i < added_.size(); ++i) {
    SCION_RETURN_IF_ERROR(Rename(absl::StrCat("data-", i), added_[i]));
  }
  if (order == Order::kLockLast) {
    for (const Text& text : changed) SCION_RETURN_IF_ERROR(Rename(text.sha256, text.name));
  }
  SCION_RETURN_IF_ERROR(RenameFile(directory_ / kStagedLockName, writer_.root() / kLockFileName));
  absl::Status status = FsyncDirectory(writer_.root());
  if (status.ok()) status = Repair(writer_.root());
  if (status.ok()) made_ = false;
  return Annotate(status, absl::StrCat(writer_.root().string(), ": the change is in place, but not all is tidied up"));
}

}  // namespace scion

#include "extract/recheck.h"

#include <utility>

#include "engine/base/file.h"
#include "engine/base/json.h"
#include "engine/base/status.h"
#include "engine/model/lock_file.h"
#include "engine/model/model_files.h"
#include "extract/digest_file.h"
#include "extract/lock_builder.h"

namespace scion {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kMaxCertificateBytes = uint64_t{64} << 20;

// "cut", "model" or "donor" of a certificate.
struct Subject {
  fs::path place;
  std::string lock_sha256;                   // empty: it had no lock
  std::map<std::string, std::string> files;  // path -> sha256
};

absl::StatusOr<Subject> ParseSubject(const Json& json, const fs::path& directory) {
  Subject subject;
  SCION_ASSIGN_OR_RETURN(const std::string place, GetString(json, "directory"));
  subject.place = directory / place;
  SCION_ASSIGN_OR_RETURN(subject.lock_sha256, GetString(json, "lock_sha256"));
  SCION_ASSIGN_OR_RETURN(const Json* files, GetObject(json, "files"));
  for (const auto& [path, hash] : files->items()) {
    if (!IsSafeRelativePath(path)) {
      return absl::InvalidArgumentError(absl::StrCat("files: ", Quoted(path), " is not a path inside the directory"));
    }
    SCION_ASSIGN_OR_RETURN(subject.files[path], GetString(*files, path));
  }
  return subject;
}

// What is wrong with one file; empty if nothing is.
absl::StatusOr<std::string> CheckFile(const fs::path& root, const std::string& path, const std::string& sha256,
                                      Progress& progress) {
  const absl::StatusOr<ReadOnlyFile> file = OpenInside(root, path);
  if (!file.ok()) return std::string(file.status().message());
  const absl::StatusOr<FileDigest> digest = DigestFile(*file, {}, nullptr, progress);
  if (absl::IsCancelled(digest.status())) return digest.status();
  if (!digest.ok()) return std::string(digest.status().message());
  return digest->sha256 == sha256 ? "" : "has changed since (sha256 differs from the certificate's)";
}

absl::Status CheckSubject(const Subject& subject, Progress& progress, RecheckReport& report) {
  const absl::StatusOr<fs::path> root = ResolveDirectory(subject.place);
  if (!root.ok()) {
    report.differences.push_back({"", "", std::string(root.status().message())});
    return absl::OkStatus();
  }
  const std::string prefix = root->string() + "/";
  for (const auto& [path, sha256] : subject.files) {
    SCION_ASSIGN_OR_RETURN(std::string what, CheckFile(*root, path, sha256, progress));
    if (!what.empty()) report.differences.push_back({prefix + path, "", std::move(what)});
    ++report.files;
  }
  const absl::StatusOr<std::optional<LockFile>> lock = ReadLock(*root);
  const std::string now = lock.ok() && lock->has_value() ? LockSha256(**lock) : "";
  if (!lock.ok() || now != subject.lock_sha256) {
    report.differences.push_back({prefix + std::string(kLockFileName), "", "has changed since"});
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<Subject>> Parse(const Json& json, const fs::path& directory, RecheckReport& report) {
  if (!json.is_object()) return absl::InvalidArgumentError("must be an object");
  SCION_ASSIGN_OR_RETURN(const std::string result, GetString(json, "result"));
  if (result != "identical") report.differences.push_back({"", "", "the certificate itself says: " + result});
  SCION_ASSIGN_OR_RETURN(report.time, GetString(json, "time"));
  std::vector<Subject> subjects;
  for (const char* name : {"cut", "model", "donor"}) {
    if (name == std::string_view("donor") && FindMember(json, name) == nullptr) continue;
    SCION_ASSIGN_OR_RETURN(const Json* subject, GetObject(json, name));
    absl::StatusOr<Subject> parsed = ParseSubject(*subject, directory);
    if (!parsed.ok()) return Annotate(parsed.status(), name);
    subjects.push_back(*std::move(parsed));
  }
  return subjects;
}

uint64_t BytesOf(const std::vector<Subject>& subjects) {
  uint64_t bytes = 0;
  std::error_code error;
  for (const Subject& subject : subjects) {
    for (const auto& [path, sha256] : subject.files) {
      const uint64_t size = fs::file_size(subject.place / path, error);
      if (!error) bytes += size;
    }
  }
  return bytes;
}

}  // namespace

absl::StatusOr<RecheckReport> Recheck(const fs::path& certificate, std::FILE* log) {
  SCION_ASSIGN_OR_RETURN(const std::string text, ReadTextFile(certificate, kMaxCertificateBytes));
  const absl::StatusOr<Json> json = ParseJson(text, certificate.string(), {.max_bytes = kMaxCertificateBytes});
  if (!json.ok()) return absl::DataLossError(json.status().message());
  RecheckReport report;
  absl::StatusOr<std::vector<Subject>> subjects = Parse(*json, certificate.parent_path(), report);
  if (!subjects.ok()) {
    return absl::DataLossError(
        absl::StrCat(certificate.string(), " is not a certificate of this version: ", subjects.status().message()));
  }
  Progress progress(log, "hashing", BytesOf(*subjects), Progress::Unit::kBytes);
  for (const Subject& subject : *subjects) SCION_RETURN_IF_ERROR(CheckSubject(subject, progress, report));
  return report;
}

}  // namespace scion

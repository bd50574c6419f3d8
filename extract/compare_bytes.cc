#include "extract/compare_bytes.h"

#include <algorithm>
#include <cstring>
#include <set>
#include <string>

#include "engine/base/json.h"
#include "engine/base/status.h"
#include "extract/companion_files.h"
#include "extract/cut_config.h"
#include "extract/digest_file.h"
#include "extract/lock_builder.h"

namespace scion {
namespace {

constexpr uint64_t kChunkBytes = uint64_t{1} << 20;  // at least a row

absl::StatusOr<Json> ReadConfig(const Checkpoint& checkpoint) {
  return ParseJson(checkpoint.config(), "config.json", {.max_bytes = checkpoint.config().size()});
}

absl::StatusOr<std::vector<Difference>> CompareCutConfig(const Checkpoint& whole, const Checkpoint& cut) {
  SCION_ASSIGN_OR_RETURN(Json expected, ReadConfig(whole));
  if (FindMember(expected, "domains") != nullptr) {
    std::vector<std::string> kept;
    for (const DomainSpec& domain : cut.spec().domains) kept.push_back(domain.name);
    const absl::StatusOr<std::string> text = CutConfig(whole.config(), kept);
    if (!text.ok()) return std::vector<Difference>{{"config.json", "", std::string(text.status().message())}};
    SCION_ASSIGN_OR_RETURN(expected, ParseJson(*text, "config.json", {.max_bytes = text->size()}));
  }
  return CompareConfig(expected, cut, "a cut of the source");
}

}  // namespace

std::vector<Difference> CompareConfig(const Json& expected, const Checkpoint& cut, std::string_view what) {
  const absl::StatusOr<Json> found = ReadConfig(cut);
  if (!found.ok()) return {{"config.json", "", std::string(found.status().message())}};
  std::set<std::string> keys;
  for (const Json* json : std::initializer_list<const Json*>{&expected, &*found}) {
    for (const auto& [key, value] : json->items()) keys.insert(key);
  }
  std::vector<Difference> differences;
  for (const std::string& key : keys) {
    const bool same = expected.contains(key) && found->contains(key) && expected[key] == (*found)[key];
    if (!same)
      differences.push_back({"config.json", "", absl::StrCat(Quoted(key), " is not what ", ToAbsl(what), " has")});
  }
  return differences;
}

absl::StatusOr<std::string> CompareTensor(const Checkpoint& whole, const TensorInfo& expected, const Checkpoint& cut,
                                          const TensorInfo& tensor, std::string_view whole_name,
                                          std::vector<std::byte>& buffer, Progress& progress) {
  if (tensor.dtype != expected.dtype) return absl::StrCat("has another dtype than in ", ToAbsl(whole_name));
  if (tensor.shape != expected.shape) return absl::StrCat("has another shape than in ", ToAbsl(whole_name));
  const uint64_t row = std::max<uint64_t>(
      1, DTypeRowBytes(tensor.dtype, tensor.shape.empty() ? 1 : static_cast<uint64_t>(tensor.shape.back())));
  const uint64_t chunk_bytes = std::max<uint64_t>(1, kChunkBytes / row) * row;
  buffer.resize(2 * chunk_bytes);
  for (uint64_t offset = 0; offset < tensor.bytes; offset += chunk_bytes) {
    if (CancelRequested()) return absl::CancelledError("interrupted while comparing");
    const uint64_t n = std::min(chunk_bytes, tensor.bytes - offset);
    const auto a = std::span(buffer).first(n);
    const auto b = std::span(buffer).subspan(chunk_bytes, n);
    SCION_RETURN_IF_ERROR(whole.ReadInOrder(expected, offset, a));
    if (absl::Status status = cut.ReadInOrder(tensor, offset, b); !status.ok()) return std::string(status.message());
    progress.Advance(n);
    if (std::memcmp(a.data(), b.data(), n) == 0) continue;
    const uint64_t at = offset + static_cast<uint64_t>(std::mismatch(a.begin(), a.end(), b.begin()).first - a.begin());
    return absl::StrCat(IsQuantized(tensor.dtype) ? "block " : "element ", at / DTypeBytes(tensor.dtype), " (byte ", at,
                        ") differs from ", ToAbsl(whole_name));
  }
  return std::string();
}

absl::StatusOr<ByteComparison> CompareTensors(const Checkpoint& whole, const Checkpoint& cut, Progress& progress) {
  ByteComparison result;
  std::vector<std::byte> buffer;
  for (const TensorInfo& tensor : cut.tensors()) {
    const std::string& path = cut.FileOf(tensor).path;
    const absl::StatusOr<const TensorInfo*> expected = whole.Find(tensor.name);
    if (!expected.ok()) {
      result.differences.push_back({path, tensor.name, "is not in the source"});
      continue;
    }
    std::string what;
    if (const std::string part = PartName(whole, whole.FileOf(**expected)); PartName(cut, cut.FileOf(tensor)) != part) {
      what = absl::StrCat("belongs to '", part, "' in the source");
    } else {
      SCION_ASSIGN_OR_RETURN(what, CompareTensor(whole, **expected, cut, tensor, "the source", buffer, progress));
    }
    if (!what.empty()) result.differences.push_back({path, tensor.name, std::move(what)});
    ++result.tensors;
    result.bytes += tensor.bytes;
  }
  std::set<std::string> parts = {std::string(kTrunkPart)};
  for (const DomainSpec& domain : cut.spec().domains) parts.insert(domain.name);
  for (const TensorInfo& tensor : whole.tensors()) {
    const CheckpointFile& file = whole.FileOf(tensor);
    if (parts.contains(PartName(whole, file)) && !cut.Find(tensor.name).ok()) {
      result.differences.push_back({file.path, tensor.name, "is in the source, but not in the cut"});
    }
  }
  return result;
}

absl::StatusOr<std::vector<Difference>> CompareCompanions(const Checkpoint& whole, const Checkpoint& cut) {
  SCION_ASSIGN_OR_RETURN(std::vector<Difference> differences, CompareCutConfig(whole, cut));
  SCION_ASSIGN_OR_RETURN(const std::vector<Difference> files, CompareCompanionFiles(whole, cut));
  differences.insert(differences.end(), files.begin(), files.end());
  return differences;
}

absl::StatusOr<std::vector<Difference>> CompareCompanionFiles(const Checkpoint& whole, const Checkpoint& cut) {
  std::vector<Difference> differences;
  SCION_ASSIGN_OR_RETURN(const std::vector<std::string> expected, ListCompanionFiles(whole.directory()));
  const absl::StatusOr<std::vector<std::string>> found = ListCompanionFiles(cut.directory());
  if (!found.ok()) return std::vector<Difference>{{"", "", std::string(found.status().message())}};
  std::set<std::string> names(expected.begin(), expected.end());
  names.insert(found->begin(), found->end());
  Progress silent(nullptr, "", 0, Progress::Unit::kBytes);
  for (const std::string& name : names) {
    if (!std::binary_search(expected.begin(), expected.end(), name)) {
      differences.push_back({name, "", "is not in the source"});
      continue;
    }
    SCION_ASSIGN_OR_RETURN(const ReadOnlyFile source, ReadOnlyFile::Open(whole.directory() / name));
    SCION_ASSIGN_OR_RETURN(const FileDigest source_digest, DigestFile(source, {}, nullptr, silent));
    const absl::StatusOr<ReadOnlyFile> copy = ReadOnlyFile::Open(cut.directory() / name);
    if (!copy.ok()) {
      differences.push_back({name, "", std::string(copy.status().message())});
      continue;
    }
    const absl::StatusOr<FileDigest> digest = DigestFile(*copy, {}, nullptr, silent);
    if (!digest.ok() || digest->sha256 != source_digest.sha256)
      differences.push_back({name, "", "differs from the source"});
  }
  return differences;
}

}  // namespace scion

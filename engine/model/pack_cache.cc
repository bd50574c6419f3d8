#include "engine/model/pack_cache.h"

#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/atomic_file.h"
#include "engine/base/sha256.h"
#include "engine/base/status.h"

namespace scion {

namespace fs = std::filesystem;

namespace {

constexpr std::string_view kSuffix = ".pack";

fs::path RealPath(const fs::path& path) {
  std::error_code error;
  fs::path real = fs::weakly_canonical(path, error);
  if (error || real.empty()) return path;
  // "demo/" is the directory demo.
  return real.has_filename() ? real : real.parent_path();
}

}  // namespace

fs::path PackDirectoryBeside(const fs::path& model) { return RealPath(model).concat(".scion-pack"); }

fs::path PackDirectoryIn(const fs::path& parent, const fs::path& model) {
  const fs::path real = RealPath(model);
  return parent / absl::StrCat(real.filename().string(), "-", Sha256Hex(real.string()).substr(0, 12));
}

PackCache::PackCache(const PackCacheOptions& options, size_t total_bytes, ThreadPool& pool)
    : options_(options), pool_(pool), enabled_(!options.directory.empty() && total_bytes >= options.min_bytes) {
  if (enabled_) RemoveAbandonedFiles(options_.directory, kSuffix);
}

void PackCache::Note(bool is_problem, std::string text) const {
  if (options_.observer) options_.observer({is_problem, std::move(text)});
}

absl::StatusOr<WeightMemory> PackCache::Load(const PackPlan& plan, const std::string& part) {
  // A dense model's only domain has no weights: nothing to keep.
  if (enabled_ && plan.bytes() > 0) {
    const fs::path path =
        options_.directory / absl::StrCat(part, ".", ToAbsl(WeightModeName(plan.mode())), ToAbsl(kSuffix));
    SCION_ASSIGN_OR_RETURN(const std::string header, PackedFileHeader(plan));
    absl::StatusOr<WeightMemory> memory = OpenPackedFile(path, plan, header, pool_);
    if (memory.ok()) {
      Note(false, absl::StrCat("packed weights from ", path.string()));
      return memory;
    }
    const bool is_new = absl::IsNotFound(memory.status());
    const std::string why = is_new ? "" : absl::StrCat(", anew: ", memory.status().message());
    std::error_code ignored;
    fs::create_directories(options_.directory, ignored);
    absl::Status status = WritePackedFile(path, plan, header, pool_);
    if (status.ok()) {
      memory = OpenPackedFile(path, plan, header, pool_);
      if (memory.ok()) {
        Note(false, absl::StrCat("packed weights written to ", path.string(), why));
        return memory;
      }
      status = memory.status();
    }
    enabled_ = false;
    fs::remove(options_.directory, ignored);  // if it is empty
    Note(true, absl::StrCat("packed weights are not kept: ", status.message()));
  }
  SCION_ASSIGN_OR_RETURN(AlignedBuffer buffer, plan.MakeInMemory("the packed weights, " + part, pool_));
  return WeightMemory(std::move(buffer));
}

}  // namespace scion

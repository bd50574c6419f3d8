#include "extract/export.h"

#include <memory>
#include <span>
#include <vector>

#include "engine/base/status.h"
#include "engine/model/checkpoint.h"
#include "extract/digest_file.h"
#include "extract/export_gguf.h"
#include "extract/export_hugging_face.h"
#include "extract/export_scion.h"
#include "extract/new_model.h"

namespace scion {
namespace {

// Every data file is what the source's lock says, if there is one.
absl::Status CheckSource(const Checkpoint& checkpoint, std::FILE* log) {
  const LockFile* lock = checkpoint.lock();
  if (lock == nullptr) return absl::OkStatus();
  uint64_t bytes = 0;
  for (const CheckpointFile& file : checkpoint.files()) bytes += file.file.size();
  Progress progress(log, "hashing the source", bytes, Progress::Unit::kBytes);
  for (const CheckpointFile& file : checkpoint.files()) {
    SCION_ASSIGN_OR_RETURN(const FileDigest digest, DigestFile(file.file, {}, nullptr, progress));
    SCION_RETURN_IF_ERROR(CheckDigest(checkpoint, file.path, digest));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ExportResult> Export(const ExportOptions& options) {
  const absl::StatusOr<std::unique_ptr<Checkpoint>> opened = Checkpoint::Open(options.model);
  if (!opened.ok()) return Annotate(opened.status(), options.model.string());
  const Checkpoint& checkpoint = **opened;
  SCION_ASSIGN_OR_RETURN(const ExportPlan plan, PlanExport(checkpoint, options.format, options.type));
  if (!checkpoint.is_gguf()) SCION_RETURN_IF_ERROR(RefuseOutInsideModel(options.model, options.out));
  SCION_ASSIGN_OR_RETURN(const std::filesystem::path out, CheckNewTarget(options.out));
  SCION_RETURN_IF_ERROR(CheckSource(checkpoint, options.log));

  ExportResult result = {.tensors = static_cast<int>(plan.tensors.size()),
                         .bytes = plan.bytes(),
                         .main_type = plan.main_type(),
                         .pre_tokenizer = {}};
  uint64_t read_bytes = 0;
  for (const ExportTensor& tensor : plan.tensors) {
    for (const TensorInfo* part : tensor.parts) read_bytes += part->bytes;
  }
  Progress progress(options.log, "exporting", read_bytes, Progress::Unit::kBytes);
  if (options.format == ExportFormat::kGguf) {
    SCION_RETURN_IF_ERROR(ExportGguf(checkpoint, plan, out, progress, result));
  } else if (plan.family == ExportFamily::kScion) {
    SCION_RETURN_IF_ERROR(ExportScion(checkpoint, plan, out, options.version, options.now, progress));
  } else {
    SCION_RETURN_IF_ERROR(ExportHuggingFace(checkpoint, plan, out, options.max_shard_bytes, progress));
  }
  return result;
}

}  // namespace scion

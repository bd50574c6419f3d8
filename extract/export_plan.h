// Which tensors an export consists of, under whose names, of which types, and out of what they are made.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/base/dtype.h"
#include "engine/model/checkpoint.h"

namespace scion {

enum class ExportFormat : uint8_t { kGguf, kHuggingFace };

// The kinds of model that others know; and Scion's own, whose code is written beside it.
enum class ExportFamily : uint8_t { kLlama, kMixtral, kQwen3Moe, kScion };

struct ExportTensor {
  std::string name;
  std::vector<int64_t> shape;  // [length], [rows, row_length], or [experts, rows, row_length]
  DType type;
  // What it is made of, in the order of the first dimension: one tensor, or all experts'. All of one shape and type.
  std::vector<const TensorInfo*> parts;
  // Not 0: the rows of each head of so many are written as pairs, as TensorInfo::interleaved_head_dim says.
  int interleaved_head_dim = 0;

  uint64_t row_length() const { return static_cast<uint64_t>(shape.back()); }
  uint64_t rows() const;  // all of them, experts' together
  uint64_t bytes() const { return rows() * DTypeRowBytes(type, row_length()); }
};

struct ExportPlan {
  ExportFamily family = ExportFamily::kLlama;
  std::vector<ExportTensor> tensors;

  uint64_t bytes() const;
  // The type in which most weights are.
  DType main_type() const;
};

// type: of all matrices, kF32, kF16, kBF16, kQ8_0 or kQ4_0; nothing: as in the source, without loss. In GGUF, norms and
// gates are F32 whatever the type; with kQ4_0, embedding and head are Q8_0, and rows that are no whole number of blocks
// keep their type. In a Hugging Face directory `type` holds for norms and gates too, and there are no blocks: those of
// the source become F32 where no type is given. The checkpoint must outlive the plan.
//
// The one expert of a cut with one expert is an ordinary FFN, if all FFNs are equally wide. Otherwise a table-routed
// model is a Hugging Face directory of family kScion, of the source's tensors under their own names; route weights stay
// F32.
//
// FailedPrecondition, with advice: in GGUF, experts that a table routes to; blocks that would be rounded again, experts
// of different types in one layer. Unimplemented: what the format's readers do not know. InvalidArgument: blocks in a
// Hugging Face directory.
absl::StatusOr<ExportPlan> PlanExport(const Checkpoint& checkpoint, ExportFormat format, std::optional<DType> type);

}  // namespace scion

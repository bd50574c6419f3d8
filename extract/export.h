// A model in the forms that other programs read: a GGUF file, or a Hugging Face directory.
//
// Dense models of Llama's architecture and those routed by a gate (Qwen3-MoE, Mixtral), from any source that Scion
// reads; table-routed ones as a Hugging Face directory that brings its code along (export_scion.h). The form says the
// same to Scion as the source does: the same logits, bit for bit, where the types of the weights are the same.
#pragma once

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "engine/base/dtype.h"
#include "extract/export_plan.h"

namespace scion {

struct ExportOptions {
  std::filesystem::path model;
  std::filesystem::path out;
  ExportFormat format = ExportFormat::kGguf;
  std::optional<DType> type = {};            // as PlanExport has it
  uint64_t max_shard_bytes = 5'000'000'000;  // of tensors, in one file of a Hugging Face directory
  // For the lineage of a table-routed model.
  std::string version = {};
  absl::Time now = {};
  std::FILE* log = nullptr;  // progress; null for none
};

struct ExportResult {
  int tensors = 0;
  uint64_t bytes = 0;  // of the weights, without headers
  DType main_type = DType::kF32;
  std::string pre_tokenizer;  // its name in GGUF, for format kGguf; empty if the model has no tokenizer
};

// Needs a few MiB beside the tokenizer and the list of tensors. NotFound: no such model. AlreadyExists: OUT is there.
// FailedPrecondition, Unimplemented, InvalidArgument: what PlanExport, GgufVocabularyOf and TokenizerJson refuse; OUT
// inside MODEL. DataLoss: a damaged model, a file that is not what the model's lock says, a weight too large for its
// type. Cancelled after RequestCancel. PermissionDenied, ResourceExhausted: OUT can't be written. All name the path,
// and none leaves anything behind.
absl::StatusOr<ExportResult> Export(const ExportOptions& options);

}  // namespace scion

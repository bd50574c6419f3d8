// What the ways to cut one domain out of a model would give, before anything is written: the exact slice, the slice
// rounded to 8 and to 4 bits, and folds to a dense model.
#pragma once

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/kernels/kernels.h"
#include "extract/compare_texts.h"

namespace scion {

struct PlanOptions {
  std::filesystem::path model;
  std::string domain;
  std::filesystem::path eval;        // a text to measure on; empty: none
  int64_t max_eval_tokens = 20'000;  // what is beyond is not read
  kernels::Tier tier = kernels::Tier::kPortable;
  int num_threads = 1;
  std::FILE* log = nullptr;  // progress; null for none
};

struct CutPlan {
  std::string name;     // "slice", "slice, q8_0", "fold, width 2"
  std::string command;  // what makes it, without its place
  uint64_t disk_bytes = 0;
  // Of the packed weights, as the engine holds them; the cache of a context's keys and values comes on top.
  uint64_t weight_bytes = 0;
  uint64_t kv_bytes_per_token = 0;
  uint64_t step_bytes = 0;  // activations of the largest step
  // One token's matmuls; attention's own, which grow with the context, not counted.
  uint64_t flops_per_token = 0;
  uint64_t bytes_per_token = 0;  // of weights that one token reads when it is decoded alone
  // Against the slice, which is the whole's domain bit for bit. Nothing without a text, and for folds, which exist only
  // once they are made.
  std::optional<TextComparison> quality = {};
};

struct CutPlans {
  int context = 0;  // max_position_embeddings
  uint64_t model_bytes = 0;
  std::vector<CutPlan> cuts;
  // Ways that this model can't be cut, and why.
  std::vector<std::string> impossible;

  // What runs: weights, a step's activations, and keys and values of one sequence as long as the context.
  uint64_t MemoryBytes(const CutPlan& cut) const {
    return cut.weight_bytes + cut.step_bytes + cut.kv_bytes_per_token * static_cast<uint64_t>(context);
  }
};

// Reads headers only; with a text it loads the model, and the rounded one beside it. NotFound: no such model or domain
// (lists those that exist) or text. FailedPrecondition: a model without domains; a text but no tokenizer. Errors of
// Checkpoint::Open, ReadTokenWindows and Model::Load.
absl::StatusOr<CutPlans> PlanCuts(const PlanOptions& options);

}  // namespace scion

// Runs the same prompts through two models and compares the logits bit by bit.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/model/model.h"
#include "extract/progress.h"

namespace scion {

// The first place where two logits have different bits.
struct LogitDifference {
  int prompt = 0;    // index into the prompts
  int position = 0;  // in the prompt
  int token = 0;     // whose logit it is
  float whole = 0;
  float cut = 0;
};

// A domain of a loaded model.
struct ModelUnderTest {
  Model* model;
  int domain;
};

// For one sequence of so many tokens at a time. ResourceExhausted if it doesn't fit into memory.
absl::StatusOr<KvCache> MakeKvCache(const Model& model, size_t num_tokens);

// Nothing if all logits of all positions are equal. Stops at the first prompt that differs. Both models must have the
// same vocabulary. ResourceExhausted if the KV caches don't fit into memory.
absl::StatusOr<std::optional<LogitDifference>> CompareLogits(ModelUnderTest whole, ModelUnderTest cut,
                                                             std::span<const std::vector<int32_t>> prompts,
                                                             Progress& progress);

}  // namespace scion

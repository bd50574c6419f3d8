// Runs the same texts through two models and compares what they predict.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "extract/compare_logits.h"
#include "extract/fold_text.h"
#include "extract/progress.h"

namespace scion {

struct TextComparison {
  int64_t scored_tokens = 0;  // every token of a window but the first
  double source_perplexity = 0;
  double perplexity = 0;      // of the other model
  double kl_divergence = 0;   // of it from the source, nats per scored token
  double top1_agreement = 0;  // share of scored tokens where both find the same token likeliest

  double ratio() const { return perplexity / source_perplexity; }
};

// Both must have one vocabulary. ResourceExhausted if the KV caches or the source's logits of one window don't fit into
// memory; Cancelled after RequestCancel.
absl::StatusOr<TextComparison> CompareTexts(ModelUnderTest source, ModelUnderTest other,
                                            const std::vector<TokenWindow>& windows, Progress& progress);

}  // namespace scion

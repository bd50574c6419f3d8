// Checks a fold against the model that it was folded from: its files against its lock, then what it computes. With one
// expert per layer it has the model's bits; any other fold is measured on a text.
#pragma once

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/base/json.h"
#include "engine/kernels/kernels.h"
#include "extract/compare_texts.h"
#include "extract/difference.h"

namespace scion {

struct VerifyFoldOptions {
  std::filesystem::path fold;
  std::filesystem::path model;
  std::filesystem::path eval = {};  // a text; only folds of one expert per layer need none
  double max_divergence = 0.5;      // KL from the model, nats per token, that is still tolerated
  kernels::Tier tier = kernels::Tier::kPortable;
  int num_threads = 1;
  std::FILE* log = nullptr;
};

struct VerifyFoldReport {
  std::vector<Difference> differences;  // empty: the fold is what it should be
  std::string domain;
  int num_experts = 0;
  int64_t positions = 0;                     // whose logits' bits were compared; of one expert per layer
  std::optional<TextComparison> comparison;  // on the text, if there is one
};

// Whether a directory's lock says that densify made it; it may have been signed or quantised since.
bool IsFold(const std::filesystem::path& directory);

// An error means that no verdict was reached: one of the two can't be opened or its memory not be had, there is no
// text, or it is refused as ReadTokenWindows refuses it.
absl::StatusOr<VerifyFoldReport> VerifyFold(const VerifyFoldOptions& options);

Json ToJson(const TextComparison& comparison);
Json ToJson(const VerifyFoldOptions& options, const VerifyFoldReport& report);

}  // namespace scion

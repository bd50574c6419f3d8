// Folds one domain's experts into a dense FFN per sparse layer: the result is an ordinary Llama checkpoint.
#pragma once

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "engine/kernels/kernels.h"
#include "extract/compare_texts.h"

namespace scion {

enum class FoldMethod : uint8_t {
  kAverage,   // the mean of aligned neurons
  kWeighted,  // weighted by the tokens that visit each expert
  kLsq,       // from there, fitted layer by layer to what the experts give on the calibration text
};
std::string_view FoldMethodName(FoldMethod method);
std::optional<FoldMethod> ParseFoldMethod(std::string_view name);

struct DensifyOptions {
  std::filesystem::path model;
  std::string domain;
  std::filesystem::path out;
  int width = 1;                      // of the folded FFN, in experts
  std::optional<FoldMethod> method;   // default: kLsq with a calibration text, else kWeighted
  std::filesystem::path calibration;  // empty: none
  std::filesystem::path eval;         // empty: a tenth of the calibration text is kept back
  // Passes over the calibration text in which lsq refines a layer; 0: down only. Default: about 400,000 tokens, at
  // least one pass.
  std::optional<int> epochs;
  std::optional<bool> route_channels;  // default: where they help (README.md)
  kernels::Tier tier = kernels::Tier::kPortable;
  int num_threads = 1;
  std::string version;  // of this program, for the lineage
  absl::Time now;
  std::FILE* log = nullptr;  // progress; null for none
};

struct DensifyResult {
  FoldMethod method = FoldMethod::kAverage;
  int num_experts = 0;
  bool has_channels = false;
  bool is_exact = false;  // up to rounding: one expert per layer, or all of them kept whole; each token visits one
  int hidden_size = 0;
  int intermediate_size = 0;
  uint64_t bytes = 0;        // of the weight file
  uint64_t model_bytes = 0;  // of the source's trunk and the domain
  int64_t calibration_tokens = 0;
  double seconds = 0, cpu_seconds = 0;       // of folding, without the comparison; of all threads
  std::optional<TextComparison> comparison;  // nothing without a text
};

// Whether a fold gets route channels when nobody says: more than one expert, something that reads them, and no more
// than an eighth of the hidden units.
bool WantsRouteChannels(const ModelSpec& spec, int num_experts, int width, FoldMethod method);

// Needs memory for the calibration tokens (at most 1 GiB), a layer's experts, and the largest tensor; to compare, the
// model and the fold. NotFound: no such model, domain or text. AlreadyExists: OUT is there. InvalidArgument: OUT inside
// MODEL, a width outside [1, experts], a text that is empty, binary or too short, kLsq without a text.
// FailedPrecondition, Unimplemented: what can't be folded or what Llama can't express, by name. DataLoss: a damaged
// model. Cancelled after RequestCancel. None leaves anything behind.
absl::StatusOr<DensifyResult> Densify(const DensifyOptions& options);

}  // namespace scion

// An ordinary dense model as a Scion model: in the last sparse_layers layers, the FFN becomes a group of experts for
// every domain, each of which starts as a copy of it, and a random, balanced route table per layer and domain. Whatever
// the route, the model gives the bits of its dense parent until its experts are trained apart.
//
// The source is a Hugging Face directory or a GGUF file of the Llama architecture; blocks of quantised weights are
// taken over as they are (the rows of GGUF's q and k go back to their order, each row whole). A GGUF file's metadata
// become config.json, tokenizer.json and tokenizer_config.json.
#pragma once

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace scion {

struct UpcycleOptions {
  std::filesystem::path dense;
  std::filesystem::path out;
  std::vector<std::string> domains;                // the first is the default
  int num_experts = 1;                             // of every domain, in every sparse layer
  int sparse_layers = 1;                           // the last so many
  std::optional<std::filesystem::path> histogram;  // a text by whose tokens routes are balanced; else by token types
  uint64_t seed = 1;
  std::string version;  // of this program, for the lineage
  absl::Time now;
  std::FILE* log = nullptr;  // progress; null for none
};

struct UpcycleResult {
  std::vector<int> sparse_layers;
  uint64_t bytes = 0;        // of the data files
  uint64_t dense_bytes = 0;  // of the source's
  // Of the histogram's tokens, or of token types: the smallest and the largest that any expert got.
  double smallest_share = 0;
  double largest_share = 0;
};

// Needs a few MiB beside tokenizer, histogram and the list of tensors, whatever the size of the model. NotFound: no
// such model or text. AlreadyExists: OUT is there. InvalidArgument: a name that is no domain's or comes twice, fewer
// than one or too many experts or layers, OUT inside the model, a text without tokens. FailedPrecondition: a model that
// has experts already. Unimplemented: another architecture, or a GGUF tokenizer that a directory can't hold. DataLoss:
// a damaged model, a file that is not what the model's lock says. Cancelled after RequestCancel. PermissionDenied,
// ResourceExhausted: OUT can't be written. All name the path, and none leaves anything behind.
absl::StatusOr<UpcycleResult> Upcycle(const UpcycleOptions& options);

}  // namespace scion

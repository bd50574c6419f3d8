// What densify said of folds, read again from its JSON.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/base/json.h"
#include "extract/compare_texts.h"

namespace scion {

struct FoldReport {
  std::string domain;
  std::string method;
  int width = 0;
  bool has_channels = false;
  uint64_t bytes = 0;                        // of the fold's weight file
  uint64_t model_bytes = 0;                  // of the slice: trunk and domain
  std::optional<TextComparison> comparison;  // on held-out text; nothing if it was not measured
};

// A file that `moe-extract densify --json` wrote, or a list of such objects, as tests/bench/fold_frontier.py makes;
// other members are ignored. Sorted by domain (in the order of `domains`), method and width. NotFound,
// PermissionDenied; InvalidArgument, naming the file: no such JSON, a fold of a domain that the model has not.
absl::StatusOr<std::vector<FoldReport>> ReadFoldReports(const std::vector<std::filesystem::path>& files,
                                                        const std::vector<std::string>& domains);

Json ToJson(const FoldReport& fold);

}  // namespace scion

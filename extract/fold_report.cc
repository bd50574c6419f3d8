#include "extract/fold_report.h"

#include <algorithm>
#include <tuple>
#include <utility>

#include "absl/strings/str_join.h"
#include "engine/base/file.h"
#include "engine/base/status.h"
#include "extract/verify_fold.h"

namespace scion {
namespace {

constexpr size_t kMaxFolds = 10'000;
constexpr int64_t kMaxBytes = int64_t{1} << 50;

absl::StatusOr<double> GetNumberIn(const Json& json, std::string_view key, double least, double most) {
  SCION_ASSIGN_OR_RETURN(const double value, GetNumber(json, key));
  if (value < least || value > most) {
    return absl::InvalidArgumentError(absl::StrCat("'", ToAbsl(key), "' is ", value, ", not ", least, " to ", most));
  }
  return value;
}

absl::StatusOr<TextComparison> ParseComparison(const Json& json) {
  constexpr double kMost = 1e30;
  TextComparison c;
  SCION_ASSIGN_OR_RETURN(c.scored_tokens, GetInt(json, "scored_tokens", 1, kMaxBytes));
  SCION_ASSIGN_OR_RETURN(c.source_perplexity, GetNumberIn(json, "source_perplexity", 1, kMost));
  SCION_ASSIGN_OR_RETURN(c.perplexity, GetNumberIn(json, "perplexity", 1, kMost));
  SCION_ASSIGN_OR_RETURN(c.kl_divergence, GetNumberIn(json, "kl_divergence", -1, kMost));
  SCION_ASSIGN_OR_RETURN(c.top1_agreement, GetNumberIn(json, "top1_agreement", 0, 1));
  return c;
}

absl::StatusOr<FoldReport> ParseFold(const Json& json, const std::vector<std::string>& domains) {
  if (!json.is_object()) return absl::InvalidArgumentError("a fold is not an object");
  FoldReport fold;
  SCION_ASSIGN_OR_RETURN(fold.domain, GetString(json, "domain"));
  if (std::ranges::find(domains, fold.domain) == domains.end()) {
    return absl::InvalidArgumentError(absl::StrCat("has a fold of the domain ", Quoted(fold.domain),
                                                   ", the model only has ", absl::StrJoin(domains, ", ")));
  }
  SCION_ASSIGN_OR_RETURN(fold.method, GetString(json, "method"));
  SCION_ASSIGN_OR_RETURN(const int64_t width, GetInt(json, "width", 1, 1 << 20));
  fold.width = static_cast<int>(width);
  SCION_ASSIGN_OR_RETURN(fold.has_channels, GetBool(json, "route_channels"));
  SCION_ASSIGN_OR_RETURN(const int64_t bytes, GetInt(json, "bytes", 0, kMaxBytes));
  SCION_ASSIGN_OR_RETURN(const int64_t model_bytes, GetInt(json, "model_bytes", 0, kMaxBytes));
  fold.bytes = static_cast<uint64_t>(bytes);
  fold.model_bytes = static_cast<uint64_t>(model_bytes);
  if (FindMember(json, "held_out") != nullptr) {
    SCION_ASSIGN_OR_RETURN(const Json* held_out, GetObject(json, "held_out"));
    SCION_ASSIGN_OR_RETURN(fold.comparison, ParseComparison(*held_out));
  }
  return fold;
}

}  // namespace

absl::StatusOr<std::vector<FoldReport>> ReadFoldReports(const std::vector<std::filesystem::path>& files,
                                                        const std::vector<std::string>& domains) {
  constexpr uint64_t kMaxFileBytes = uint64_t{16} << 20;
  std::vector<FoldReport> folds;
  for (const std::filesystem::path& file : files) {
    SCION_ASSIGN_OR_RETURN(const std::string text, ReadTextFile(file, kMaxFileBytes));
    SCION_ASSIGN_OR_RETURN(Json json, ParseJson(text, file.string(), {.max_bytes = kMaxFileBytes}));
    if (!json.is_array()) json = Json::array({std::move(json)});
    for (const Json& item : json) {
      absl::StatusOr<FoldReport> fold = ParseFold(item, domains);
      if (!fold.ok()) return Annotate(fold.status(), file.string());
      if (folds.size() == kMaxFolds) {
        return absl::InvalidArgumentError(absl::StrCat(file.string(), ": more than ", kMaxFolds, " folds"));
      }
      folds.push_back(*std::move(fold));
    }
  }
  std::ranges::stable_sort(folds, {}, [&](const FoldReport& fold) {
    return std::tuple(std::ranges::find(domains, fold.domain) - domains.begin(), fold.method, fold.has_channels,
                      fold.width);
  });
  return folds;
}

Json ToJson(const FoldReport& fold) {
  Json json = {{"domain", fold.domain}, {"method", fold.method},
               {"width", fold.width},   {"route_channels", fold.has_channels},
               {"bytes", fold.bytes},   {"model_bytes", fold.model_bytes},
               {"held_out", nullptr}};
  if (fold.comparison.has_value()) json["held_out"] = ToJson(*fold.comparison);
  return json;
}

}  // namespace scion

#include <algorithm>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "engine/base/status.h"
#include "extract/lock_builder.h"
#include "extract/verify.h"

namespace scion {
namespace {}  // namespace

Json CertificateJson(const VerifyOptions& options, const VerifyReport& report) {
  Json differences = Json::array();
  for (const Difference& d : report.differences) {
    differences.push_back({{"file", d.file}, {"tensor", d.tensor}, {"what", d.what}});
  }
  Json coverage = Json::object();
  for (const auto& [domain, layers] : report.coverage) {
    for (const LayerCoverage& c : layers) {
      coverage[domain].push_back(
          {{"layer", c.layer}, {"experts", c.experts}, {"reachable", c.reachable}, {"visited", c.visited}});
    }
  }
  return {
      {"format", 1},
      {"result", report.differences.empty() ? "identical" : "differs"},
      {"differences", differences},
      {"time", FormatUtc(options.now)},
      {"version", options.version},
      {"tier", kernels::TierName(options.tier)},
      {"weights", WeightModeName(options.weights)},
      {"domains", report.domains},
      {"model",
       {{"name", ModelName(options.model)}, {"lock_sha256", report.model_lock_sha256}, {"files", report.model_files}}},
      {"cut", {{"name", ModelName(options.cut)}, {"lock_sha256", report.cut_lock_sha256}, {"files", report.cut_files}}},
      {"tensors", report.tensors},
      {"tensor_bytes", report.tensor_bytes},
      {"prompts", report.prompts},
      {"positions", report.positions},
      {"coverage", coverage}};
}

std::string SummaryLine(const VerifyOptions& options, const VerifyReport& report) {
  if (!report.differences.empty()) {
    return absl::StrFormat("differs: %s from %s: %s%s", ModelName(options.cut), ModelName(options.model),
                           ToString(report.differences.front()),
                           report.differences.size() > 1
                               ? absl::StrFormat(" (and %d more)", report.differences.size() - 1)
                               : std::string());
  }
  int visited = 0, reachable = 0;
  for (const auto& [domain, layers] : report.coverage) {
    for (const LayerCoverage& c : layers) {
      visited += c.visited;
      reachable += c.reachable;
    }
  }
  const std::string domains = absl::StrJoin(report.domains, "+"), model = ModelName(options.model);
  const std::string is_what = report.upcycled ? absl::StrCat(model, " in every domain (", domains, ")")
                                              : absl::StrCat("the ", domains, " of ", model);
  return absl::StrFormat(
      "identical: %s is %s, bit for bit: %d tensors (%.1f MB), logits of %d positions in %d prompts, %d of "
      "%d "
      "experts visited, tier %s, %s",
      ModelName(options.cut), is_what, report.tensors, static_cast<double>(report.tensor_bytes) * 1e-6,
      report.positions, report.prompts, visited, reachable, std::string(kernels::TierName(options.tier)),
      std::string(WeightModeName(options.weights)));
}

}  // namespace scion

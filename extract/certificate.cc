#include <algorithm>
#include <filesystem>
#include <map>
#include <system_error>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "engine/base/status.h"
#include "extract/lock_builder.h"
#include "extract/verify.h"

namespace scion {
namespace {

namespace fs = std::filesystem;

// Where the model lies, seen from the certificate.
std::string Place(const fs::path& model, const fs::path& directory) {
  std::error_code error;
  const fs::path real = fs::canonical(model, error);
  const fs::path from = error ? fs::path() : fs::canonical(directory.empty() ? "." : directory, error);
  return error ? model.string() : real.lexically_relative(from).string();
}

Json ModelJson(const fs::path& model, const fs::path& directory, const std::string& lock_sha256,
               const std::map<std::string, std::string>& files) {
  return {{"name", ModelName(model)},
          {"directory", Place(model, directory)},
          {"lock_sha256", lock_sha256},
          {"files", files}};
}

}  // namespace

Json CertificateJson(const VerifyOptions& options, const VerifyReport& report, const fs::path& directory) {
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
  Json certificate = {{"format", 1},
                      {"result", report.differences.empty() ? "identical" : "differs"},
                      {"differences", differences},
                      {"time", FormatUtc(options.now)},
                      {"version", options.version},
                      {"tier", kernels::TierName(options.tier)},
                      {"weights", WeightModeName(options.weights)},
                      {"domains", report.domains},
                      {"model", ModelJson(options.model, directory, report.model_lock_sha256, report.model_files)},
                      {"cut", ModelJson(options.cut, directory, report.cut_lock_sha256, report.cut_files)},
                      {"tensors", report.tensors},
                      {"tensor_bytes", report.tensor_bytes},
                      {"prompts", report.prompts},
                      {"positions", report.positions},
                      {"coverage", coverage}};
  if (options.graft.has_value()) {
    Json& donor = certificate["donor"];
    donor = ModelJson(options.graft->donor.model, directory, report.donor_lock_sha256, report.donor_files);
    donor["domain"] = report.donor_domain;
    certificate["grafted"] = options.graft->as;
  }
  return certificate;
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
  const std::string what =
      options.graft.has_value()
          ? absl::StrFormat("%s is %s with %s of %s as %s", ModelName(options.cut), ModelName(options.model),
                            report.donor_domain, ModelName(options.graft->donor.model), options.graft->as)
      : report.upcycled ? absl::StrFormat("%s is %s in every domain (%s)", ModelName(options.cut),
                                          ModelName(options.model), absl::StrJoin(report.domains, "+"))
                        : absl::StrFormat("%s is the %s of %s", ModelName(options.cut),
                                          absl::StrJoin(report.domains, "+"), ModelName(options.model));
  return absl::StrFormat(
      "identical: %s, bit for bit: %d tensors (%.1f MB), logits of %d positions in %d prompts, %d of "
      "%d "
      "experts visited, tier %s, %s",
      what, report.tensors, static_cast<double>(report.tensor_bytes) * 1e-6, report.positions, report.prompts, visited,
      reachable, std::string(kernels::TierName(options.tier)), std::string(WeightModeName(options.weights)));
}

}  // namespace scion

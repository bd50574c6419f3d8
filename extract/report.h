// One HTML page that shows a model: perplexity of texts under its domains, sizes, how evenly routes share the tokens,
// where it came from, how good its folds are.
#pragma once

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "engine/base/json.h"
#include "engine/kernels/kernels.h"
#include "extract/domain_matrix.h"
#include "extract/fold_report.h"
#include "extract/route_balance.h"

namespace scion {

struct ReportOptions {
  std::filesystem::path model;
  std::filesystem::path out;
  std::filesystem::path text = {};                // a directory of texts to measure on; empty: none
  std::filesystem::path matrix = {};              // a file of figures that stand in for measuring; empty: none
  std::vector<std::filesystem::path> folds = {};  // what densify --json has written
  kernels::Tier tier = kernels::Tier::kPortable;
  int num_threads = 1;
  std::string version;  // of this program
  absl::Time now;
  std::FILE* log = nullptr;  // progress; null for none
};

// A domain's experts, all sparse layers together.
struct ExpertSizes {
  std::string domain;
  int64_t num_experts = 0;                         // in all sparse layers
  uint64_t smallest_bytes = 0, largest_bytes = 0;  // data of gate, up and down of one expert in one layer
  uint64_t route_bytes = 0;                        // tables and route weights
};

struct ReportFigures {
  std::string name;  // what people call the model
  Json model;        // as Describe says
  Json generations;  // as GenerationsJson says; empty without a lock
  bool is_gate_routed = false;
  std::optional<DomainMatrix> matrix = {};  // nothing: neither measured nor read
  std::vector<ExpertSizes> experts = {};    // by domain; empty, as is balance, of a model whose tokens no table routes
  std::vector<RouteBalance> balance = {};
  std::vector<FoldReport> folds = {};
  std::string version, time;  // of the page's making
};

// Without a text it reads headers, route tables and the lock; with one it loads the model. A dense or gate-routed model
// has one domain, "default", and neither experts of domains nor routes. Errors of Checkpoint::Open,
// FindEvaluationTexts, ReadTokenWindows, ReadDomainMatrix, ReadFoldReports and Model::Load. FailedPrecondition: a text,
// but no tokenizer.
absl::StatusOr<ReportFigures> MakeReport(const ReportOptions& options);

// Makes the figures and writes the page, as a whole or not at all. AlreadyExists: there is something at OUT;
// InvalidArgument: OUT inside MODEL.
absl::StatusOr<ReportFigures> WriteReport(const ReportOptions& options);

Json ToJson(const ReportFigures& figures);

}  // namespace scion

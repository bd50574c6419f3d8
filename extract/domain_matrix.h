// Perplexity of texts under domains: measured by the engine, or read from a file that holds such figures.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/base/json.h"
#include "engine/model/model.h"
#include "extract/fold_text.h"
#include "extract/progress.h"

namespace scion {

struct DomainMatrix {
  struct Row {
    std::string text;
    int64_t scored_tokens = 0;
    std::vector<std::optional<double>> perplexity = {};  // [domains]; nothing where none was measured
  };
  std::vector<std::string> domains = {};  // the model's
  std::vector<Row> rows = {};             // texts that are named for a domain first, in the domains' order
  std::string source = {};                // in words: what measured it, or the file that it was read from
  bool is_measured = false;               // by this program, now
};

// The row's perplexity under the domain of its own name, and the least under any other; nothing if there is none.
std::optional<double> OwnPerplexity(const DomainMatrix& matrix, const DomainMatrix::Row& row);
std::optional<double> BestOtherPerplexity(const DomainMatrix& matrix, const DomainMatrix::Row& row);

struct EvaluationText {
  std::string name;  // the file's, without extension
  std::filesystem::path file;
};

// NAME.jsonl and NAME.txt in the directory, those named for a domain first, in the domains' order, then the others by
// name. NotFound: no such directory, or no text in it; InvalidArgument: a name twice, or more than 1,000 texts.
absl::StatusOr<std::vector<EvaluationText>> FindEvaluationTexts(const std::filesystem::path& directory,
                                                                const std::vector<std::string>& domains);

// exp(-sum of natural log-likelihoods / scored tokens) of the windows under every domain of the model: every token of a
// window but the first is scored, given those before it. ResourceExhausted: no memory for the keys and values of one
// window; Cancelled after RequestCancel.
absl::StatusOr<DomainMatrix::Row> MeasureRow(Model& model, const std::string& text,
                                             const std::vector<TokenWindow>& windows, Progress& progress);

// A file in either form that there is of it: {TEXT: {"scored_tokens", "perplexity": {DOMAIN: x}}}, as
// deploy/demo/eval/matrix.json, or {"rows": [{"text", "scored_tokens", "perplexity": {DOMAIN: x}}]}, as
// `moe-client score --matrix --json` prints and `python -m scion.eval` writes. NotFound, PermissionDenied;
// InvalidArgument, naming the file: no such JSON, a perplexity that is none, domains that are not the model's.
absl::StatusOr<DomainMatrix> ReadDomainMatrix(const std::filesystem::path& file,
                                              const std::vector<std::string>& domains);

// {"source", "measured", "domains", "rows": [{"text", "scored_tokens", "perplexity": {DOMAIN: x or null}}]}
Json ToJson(const DomainMatrix& matrix);

}  // namespace scion

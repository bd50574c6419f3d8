#include "extract/domain_matrix.h"

#include <algorithm>
#include <cmath>
#include <span>
#include <system_error>
#include <utility>

#include "absl/strings/str_join.h"
#include "engine/base/file.h"
#include "engine/base/status.h"
#include "extract/compare_logits.h"
#include "extract/digest_file.h"

namespace scion {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxTexts = 1000;

// Texts named for a domain come first, in the domains' order; all others keep theirs.
template <typename T, typename NameOf>
void PutDomainsFirst(std::vector<T>& items, const std::vector<std::string>& domains, NameOf name_of) {
  std::ranges::stable_sort(items, {}, [&](const T& item) { return std::ranges::find(domains, name_of(item)); });
}

absl::StatusOr<std::optional<double>> PerplexityOf(const Json& of_domains, const std::string& domain) {
  SCION_ASSIGN_OR_RETURN(const std::optional<double> value, GetOptionalNumber(of_domains, domain));
  if (value.has_value() && *value < 1) {
    return absl::InvalidArgumentError(absl::StrCat("a perplexity of ", *value, " is below 1"));
  }
  return value;
}

absl::StatusOr<DomainMatrix::Row> ParseRow(const Json& json, std::string text,
                                           const std::vector<std::string>& domains) {
  DomainMatrix::Row row{.text = std::move(text)};
  if (!json.is_object()) return absl::InvalidArgumentError("a row is not an object");
  SCION_ASSIGN_OR_RETURN(row.scored_tokens, GetInt(json, "scored_tokens", 0, int64_t{1} << 50));
  SCION_ASSIGN_OR_RETURN(const Json* of_domains, GetObject(json, "perplexity"));
  for (const auto& [name, value] : of_domains->items()) {
    if (std::ranges::find(domains, name) == domains.end()) {
      return absl::InvalidArgumentError(
          absl::StrCat("has a domain ", Quoted(name), ", the model only ", absl::StrJoin(domains, ", ")));
    }
  }
  for (const std::string& domain : domains) {
    if (!of_domains->contains(domain)) {
      return absl::InvalidArgumentError(absl::StrCat("has no perplexity under the model's domain ", domain));
    }
    SCION_ASSIGN_OR_RETURN(std::optional<double> perplexity, PerplexityOf(*of_domains, domain));
    row.perplexity.push_back(perplexity);
  }
  return row;
}

absl::StatusOr<std::vector<DomainMatrix::Row>> ParseRows(const Json& json, const std::vector<std::string>& domains) {
  std::vector<DomainMatrix::Row> rows;
  if (!json.is_object()) return absl::InvalidArgumentError("is not an object");
  const bool is_list = json.contains("rows");
  const Json& list = is_list ? json["rows"] : json;
  if (is_list && !list.is_array()) return absl::InvalidArgumentError("'rows' is not a list");
  for (const auto& [key, value] : list.items()) {
    std::string text = key;
    if (is_list) {
      if (!value.is_object()) return absl::InvalidArgumentError("a row is not an object");
      SCION_ASSIGN_OR_RETURN(text, GetString(value, "text"));
    }
    const std::string shown = Quoted(text);
    absl::StatusOr<DomainMatrix::Row> row = ParseRow(value, std::move(text), domains);
    if (!row.ok()) return Annotate(row.status(), shown);
    rows.push_back(*std::move(row));
  }
  if (rows.empty()) return absl::InvalidArgumentError("has no rows");
  if (rows.size() > kMaxTexts) return absl::InvalidArgumentError(absl::StrCat("has more than ", kMaxTexts, " rows"));
  return rows;
}

}  // namespace

std::optional<double> OwnPerplexity(const DomainMatrix& matrix, const DomainMatrix::Row& row) {
  const auto own = std::ranges::find(matrix.domains, row.text);
  if (own == matrix.domains.end()) return std::nullopt;
  return row.perplexity[static_cast<size_t>(own - matrix.domains.begin())];
}

std::optional<double> BestOtherPerplexity(const DomainMatrix& matrix, const DomainMatrix::Row& row) {
  std::optional<double> best;
  for (size_t d = 0; d < matrix.domains.size(); ++d) {
    if (matrix.domains[d] == row.text || !row.perplexity[d].has_value()) continue;
    if (!best.has_value() || *row.perplexity[d] < *best) best = row.perplexity[d];
  }
  return best;
}

absl::StatusOr<std::vector<EvaluationText>> FindEvaluationTexts(const fs::path& directory,
                                                                const std::vector<std::string>& domains) {
  std::vector<EvaluationText> texts;
  std::error_code error;
  for (fs::directory_iterator it(directory, error), end; !error && it != end; it.increment(error)) {
    const fs::path& path = it->path();
    if (path.extension() != ".jsonl" && path.extension() != ".txt") continue;
    if (texts.size() == kMaxTexts) {
      return absl::InvalidArgumentError(absl::StrCat(directory.string(), " has more than ", kMaxTexts, " texts"));
    }
    texts.push_back({path.stem().string(), path});
  }
  if (error) return absl::NotFoundError(absl::StrCat("can't read ", directory.string(), ": ", error.message()));
  if (texts.empty()) {
    return absl::NotFoundError(absl::StrCat(directory.string(), " has no text, no NAME.jsonl or NAME.txt"));
  }
  std::ranges::sort(texts, {}, &EvaluationText::name);
  const auto twice = std::ranges::adjacent_find(texts, {}, &EvaluationText::name);
  if (twice != texts.end()) {
    return absl::InvalidArgumentError(absl::StrCat(directory.string(), " has two texts ", Quoted(twice->name)));
  }
  PutDomainsFirst(texts, domains, [](const EvaluationText& text) { return text.name; });
  return texts;
}

absl::StatusOr<DomainMatrix::Row> MeasureRow(Model& model, const std::string& text,
                                             const std::vector<TokenWindow>& windows, Progress& progress) {
  DomainMatrix::Row row{.text = text};
  size_t longest = 0;
  for (const TokenWindow& window : windows) {
    longest = std::max(longest, window.size());
    row.scored_tokens += static_cast<int64_t>(window.size()) - 1;
  }
  SCION_ASSIGN_OR_RETURN(KvCache cache, MakeKvCache(model, longest));
  const kernels::KernelTable& kernels = kernels::GetKernels(model.options().tier);
  const int vocab = model.spec().vocab_size;
  for (size_t domain = 0; domain < model.spec().domains.size(); ++domain) {
    double loss = 0;
    for (const TokenWindow& window : windows) {
      if (CancelRequested()) return absl::CancelledError("interrupted while texts were measured");
      SCION_RETURN_IF_ERROR(
          RunPrompt(model, cache, static_cast<int>(domain), window, [&](int position, std::span<const float> logits) {
            const size_t next = static_cast<size_t>(position) + 1;
            if (next == window.size()) return;
            const float logit = logits[static_cast<size_t>(window[next])];
            loss += static_cast<double>(kernels.log_sum_exp(logits.data(), vocab)) - static_cast<double>(logit);
          }));
      progress.Advance(window.size());
    }
    row.perplexity.push_back(std::exp(loss / static_cast<double>(row.scored_tokens)));
  }
  return row;
}

absl::StatusOr<DomainMatrix> ReadDomainMatrix(const fs::path& file, const std::vector<std::string>& domains) {
  constexpr uint64_t kMaxBytes = uint64_t{16} << 20;
  SCION_ASSIGN_OR_RETURN(const std::string text, ReadTextFile(file, kMaxBytes));
  SCION_ASSIGN_OR_RETURN(const Json json, ParseJson(text, file.string(), {.max_bytes = kMaxBytes}));
  absl::StatusOr<std::vector<DomainMatrix::Row>> rows = ParseRows(json, domains);
  if (!rows.ok()) return Annotate(rows.status(), file.string());
  DomainMatrix matrix{.domains = domains, .rows = *std::move(rows), .source = file.filename().string()};
  PutDomainsFirst(matrix.rows, domains, [](const DomainMatrix::Row& row) { return row.text; });
  return matrix;
}

Json ToJson(const DomainMatrix& matrix) {
  Json rows = Json::array();
  for (const DomainMatrix::Row& row : matrix.rows) {
    Json perplexity = Json::object();
    for (size_t d = 0; d < matrix.domains.size(); ++d) {
      perplexity[matrix.domains[d]] = row.perplexity[d].has_value() ? Json(*row.perplexity[d]) : Json();
    }
    rows.push_back({{"text", row.text}, {"scored_tokens", row.scored_tokens}, {"perplexity", std::move(perplexity)}});
  }
  return {{"source", matrix.source},
          {"measured", matrix.is_measured},
          {"domains", matrix.domains},
          {"rows", std::move(rows)}};
}

}  // namespace scion

#include "client/perplexity.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "client/text.h"

namespace scion::client {

double Likelihood::perplexity() const {
  if (scored_tokens == 0) return std::numeric_limits<double>::quiet_NaN();
  return std::exp(-total_logprob / static_cast<double>(scored_tokens));
}

absl::StatusOr<std::vector<std::vector<int32_t>>> MakeWindows(Client& client, const std::string& text,
                                                              const WindowOptions& window_options,
                                                              const CallOptions& options) {
  const int window_tokens = window_options.window_tokens;
  if (window_tokens < 2) return absl::InvalidArgumentError("a window must hold at least 2 tokens");
  v1::TokenizeRequest prefix_request;
  prefix_request.set_text(window_options.prefix.value_or(""));
  prefix_request.set_add_special(!window_options.prefix);
  prefix_request.set_parse_special(true);
  const absl::StatusOr<v1::TokenizeResponse> prefix = client.Tokenize(prefix_request, options);
  if (!prefix.ok()) return prefix.status();
  v1::TokenizeRequest request;
  request.set_text(text);
  const absl::StatusOr<v1::TokenizeResponse> tokens = client.Tokenize(request, options);
  if (!tokens.ok()) return tokens.status();
  const auto& before = prefix->token_ids();
  if (before.size() >= window_tokens) return absl::InvalidArgumentError("the prefix fills a window");

  const auto& ids = tokens->token_ids();
  std::vector<std::vector<int32_t>> windows;
  for (int begin = 0; begin < ids.size();) {
    const int end = std::min(begin + window_tokens - before.size(), ids.size());
    std::vector<int32_t> window(before.begin(), before.end());
    window.insert(window.end(), ids.begin() + begin, ids.begin() + end);
    if (window.size() > 1) windows.push_back(std::move(window));
    begin = end;
  }
  return windows;
}

absl::StatusOr<Likelihood> ScoreWindows(Client& client, const std::string& domain,
                                        const std::vector<std::vector<int32_t>>& windows, const CallOptions& options) {
  Likelihood sum;
  for (const std::vector<int32_t>& window : windows) {
    v1::ScoreRequest request;
    request.set_domain(domain);
    request.mutable_token_ids()->mutable_ids()->Add(window.begin(), window.end());
    const absl::StatusOr<v1::ScoreResponse> response = client.Score(request, options);
    if (!response.ok()) return response.status();
    for (const float logprob : response->logprobs()) sum.total_logprob += logprob;
    sum.scored_tokens += response->logprobs_size();
  }
  return sum;
}

double PerplexityMatrix::AdvantageOfOwnDomain(size_t row) const {
  double own = std::numeric_limits<double>::quiet_NaN();
  double best_other = std::numeric_limits<double>::infinity();
  for (size_t column = 0; column < domains.size(); ++column) {
    const double perplexity = cells[row][column].perplexity();
    if (domains[column] == texts[row]) {
      own = perplexity;
    } else {
      best_other = std::min(best_other, perplexity);
    }
  }
  return std::isfinite(best_other) ? best_other / own : std::numeric_limits<double>::quiet_NaN();
}

absl::StatusOr<PerplexityMatrix> MeasurePerplexityMatrix(Client& client, const std::filesystem::path& directory,
                                                         const WindowOptions& window_options,
                                                         const CallOptions& options,
                                                         const std::function<void(int done, int total)>& progress) {
  const absl::StatusOr<v1::ListDomainsResponse> served = client.ListDomains(options);
  if (!served.ok()) return served.status();
  PerplexityMatrix matrix;
  for (const v1::Domain& domain : served->domains()) matrix.domains.push_back(domain.name());

  std::vector<std::filesystem::path> files;
  std::error_code error;
  for (std::filesystem::directory_iterator it(directory, error), end; !error && it != end; it.increment(error)) {
    if (it->path().extension() == ".jsonl") files.push_back(it->path());
  }
  if (error) return absl::NotFoundError(absl::StrCat("cannot read ", directory.string(), ": ", error.message()));
  if (files.empty()) return absl::NotFoundError(absl::StrCat("no DOMAIN.jsonl in ", directory.string()));
  // Rows in the order of the columns, so that the diagonal is where the reader looks for it.
  for (const std::string& domain : matrix.domains) {
    const auto file = std::find_if(files.begin(), files.end(), [&](const auto& path) { return path.stem() == domain; });
    if (file == files.end()) continue;
    std::rotate(files.begin() + matrix.texts.size(), file, file + 1);
    matrix.texts.push_back(domain);
  }
  if (matrix.texts.size() < files.size()) {
    return absl::NotFoundError(absl::StrCat(files[matrix.texts.size()].string(),
                                            " is named for no domain of this server, which has ",
                                            absl::StrJoin(matrix.domains, ", ")));
  }

  const int total = static_cast<int>(files.size() * matrix.domains.size());
  int done = 0;
  for (const std::filesystem::path& file : files) {
    const absl::StatusOr<std::vector<std::string>> texts = ReadJsonlTexts(file);
    if (!texts.ok()) return texts.status();
    std::vector<std::vector<int32_t>> windows;
    for (const std::string& text : *texts) {
      absl::StatusOr<std::vector<std::vector<int32_t>>> more = MakeWindows(client, text, window_options, options);
      if (!more.ok()) return more.status();
      std::move(more->begin(), more->end(), std::back_inserter(windows));
    }
    std::vector<Likelihood>& row = matrix.cells.emplace_back();
    for (const std::string& domain : matrix.domains) {
      const absl::StatusOr<Likelihood> cell = ScoreWindows(client, domain, windows, options);
      if (!cell.ok()) return cell.status();
      row.push_back(*cell);
      if (progress) progress(++done, total);
    }
  }
  return matrix;
}

}  // namespace scion::client

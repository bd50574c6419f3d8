// moe-client score: how likely a domain finds given text.
#include <CLI/CLI.hpp>
#include <cmath>
#include <istream>
#include <iterator>
#include <map>
#include <memory>
#include <optional>
#include <ostream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/commands.h"
#include "client/perplexity.h"
#include "client/text.h"
#include "nlohmann/json.hpp"

namespace scion::client {
namespace {

struct ScoreOptions {
  std::string domain;
  std::optional<std::string> text;
  std::optional<std::string> file;
  std::optional<std::string> token_ids;
  std::optional<std::string> jsonl;
  std::optional<std::string> matrix;
  WindowOptions window;
  bool totals = false;
};

nlohmann::json NumberOrNull(double value) { return std::isfinite(value) ? nlohmann::json(value) : nlohmann::json(); }

absl::StatusOr<v1::ScoreRequest> MakeRequest(const ScoreOptions& options, Terminal& terminal) {
  v1::ScoreRequest request;
  request.set_domain(options.domain);
  if (options.token_ids) {
    const absl::StatusOr<std::vector<int>> ids = ParseTokenIds(*options.token_ids);
    if (!ids.ok()) return ids.status();
    request.mutable_token_ids()->mutable_ids()->Add(ids->begin(), ids->end());
    return request;
  }
  std::string text;
  if (options.text) {
    text = *options.text;
  } else if (options.file) {
    absl::StatusOr<std::string> content = ReadTextFile(*options.file);
    if (!content.ok()) return content.status();
    text = *std::move(content);
  } else {
    text.assign(std::istreambuf_iterator<char>(terminal.in), std::istreambuf_iterator<char>());
  }
  if (const std::optional<size_t> at = FindInvalidUtf8(text)) {
    return absl::InvalidArgumentError(absl::StrCat("the text is not UTF-8 at byte ", *at));
  }
  request.set_text(text);
  return request;
}

absl::StatusOr<std::string> TokenText(Client& client, int id, const CallOptions& options) {
  v1::DetokenizeRequest request;
  request.add_token_ids(id);
  absl::StatusOr<v1::DetokenizeResponse> response = client.Detokenize(request, options);
  if (!response.ok()) return response.status();
  return response->text();
}

absl::Status PrintTokens(Client& client, const v1::ScoreResponse& response, Invocation& invocation) {
  std::map<int, std::string> texts;
  for (int i = 0; i < response.token_ids_size(); ++i) {
    const int id = response.token_ids(i);
    if (!texts.contains(id)) {
      absl::StatusOr<std::string> text = TokenText(client, id, invocation.call_options());
      if (!text.ok()) return text.status();
      texts[id] = Escape(*text);
    }
    const std::string logprob = i == 0 ? "-" : absl::StrFormat("%.4f", response.logprobs(i - 1));
    invocation.terminal.out << absl::StreamFormat("%7d  %10s  %s\n", id, logprob, texts[id]);
  }
  return absl::OkStatus();
}

absl::Status ScoreOne(Client& client, const ScoreOptions& options, Invocation& invocation) {
  const absl::StatusOr<v1::ScoreRequest> request = MakeRequest(options, invocation.terminal);
  if (!request.ok()) return request.status();
  const absl::StatusOr<v1::ScoreResponse> response = client.Score(*request, invocation.call_options());
  if (!response.ok()) return response.status();
  const Likelihood likelihood{.scored_tokens = response->logprobs_size(), .total_logprob = response->total_logprob()};
  if (invocation.json) {
    nlohmann::json json = {{"domain", response->domain()},
                           {"scored_tokens", likelihood.scored_tokens},
                           {"total_logprob", likelihood.total_logprob},
                           {"perplexity", NumberOrNull(likelihood.perplexity())}};
    if (!options.totals) {
      json["token_ids"] = std::vector<int>(response->token_ids().begin(), response->token_ids().end());
      json["logprobs"] = std::vector<float>(response->logprobs().begin(), response->logprobs().end());
    }
    invocation.terminal.out << json.dump() << "\n";
    return absl::OkStatus();
  }
  if (!options.totals) {
    if (absl::Status status = PrintTokens(client, *response, invocation); !status.ok()) return status;
  }
  invocation.terminal.out << absl::StreamFormat("domain %s: %d tokens, log-likelihood %.4f, perplexity %.3f\n",
                                                response->domain(), likelihood.scored_tokens, likelihood.total_logprob,
                                                likelihood.perplexity());
  return absl::OkStatus();
}

void PrintLikelihood(const std::string& label, const Likelihood& likelihood, Invocation& invocation) {
  std::ostream& out = invocation.terminal.out;
  if (invocation.json) {
    out << nlohmann::json({{"text", label},
                           {"scored_tokens", likelihood.scored_tokens},
                           {"total_logprob", likelihood.total_logprob},
                           {"perplexity", NumberOrNull(likelihood.perplexity())}})
               .dump()
        << "\n";
  } else {
    out << absl::StreamFormat("%8s  %8d tokens  log-likelihood %12.4f  perplexity %10.3f\n", label,
                              likelihood.scored_tokens, likelihood.total_logprob, likelihood.perplexity());
  }
}

absl::Status ScoreJsonl(Client& client, const ScoreOptions& options, Invocation& invocation) {
  const absl::StatusOr<std::vector<std::string>> texts = ReadJsonlTexts(*options.jsonl);
  if (!texts.ok()) return texts.status();
  Likelihood sum;
  for (size_t i = 0; i < texts->size(); ++i) {
    const auto windows = MakeWindows(client, (*texts)[i], options.window, invocation.call_options());
    if (!windows.ok()) return windows.status();
    const absl::StatusOr<Likelihood> likelihood =
        ScoreWindows(client, options.domain, *windows, invocation.call_options());
    if (!likelihood.ok()) return likelihood.status();
    sum.Add(*likelihood);
    if (!options.totals) PrintLikelihood(absl::StrCat(i + 1), *likelihood, invocation);
  }
  PrintLikelihood("all", sum, invocation);
  return absl::OkStatus();
}

void PrintMatrix(const PerplexityMatrix& matrix, Invocation& invocation) {
  std::ostream& out = invocation.terminal.out;
  if (invocation.json) {
    nlohmann::json json = {{"domains", matrix.domains}, {"rows", nlohmann::json::array()}};
    for (size_t row = 0; row < matrix.texts.size(); ++row) {
      nlohmann::json perplexity;
      for (size_t column = 0; column < matrix.domains.size(); ++column) {
        perplexity[matrix.domains[column]] = NumberOrNull(matrix.cells[row][column].perplexity());
      }
      json["rows"].push_back({{"text", matrix.texts[row]},
                              {"scored_tokens", matrix.cells[row].empty() ? 0 : matrix.cells[row][0].scored_tokens},
                              {"perplexity", perplexity},
                              {"next_best_over_own", NumberOrNull(matrix.AdvantageOfOwnDomain(row))}});
    }
    out << json.dump() << "\n";
    return;
  }
  out << absl::StreamFormat("%-12s", "text\\domain");
  for (const std::string& domain : matrix.domains) out << absl::StreamFormat("  %9s", domain);
  out << absl::StreamFormat("  %9s  %13s\n", "tokens", "next best/own");
  for (size_t row = 0; row < matrix.texts.size(); ++row) {
    out << absl::StreamFormat("%-12s", matrix.texts[row]);
    for (const Likelihood& cell : matrix.cells[row]) out << absl::StreamFormat("  %9.2f", cell.perplexity());
    out << absl::StreamFormat("  %9d  %13.3f\n", matrix.cells[row].empty() ? 0 : matrix.cells[row][0].scored_tokens,
                              matrix.AdvantageOfOwnDomain(row));
  }
}

absl::Status ScoreMatrix(Client& client, const ScoreOptions& options, Invocation& invocation) {
  std::ostream& err = invocation.terminal.err;
  const absl::StatusOr<PerplexityMatrix> matrix =
      MeasurePerplexityMatrix(client, *options.matrix, options.window, invocation.call_options(),
                              [&](int done, int total) { err << "scored " << done << " of " << total << std::endl; });
  if (!matrix.ok()) return matrix.status();
  PrintMatrix(*matrix, invocation);
  return absl::OkStatus();
}

}  // namespace

void AddScoreCommand(CLI::App& app, Invocation& invocation) {
  CLI::App& verb = *app.add_subcommand("score", "Prints the log-likelihood of given text under a domain.");
  auto options = std::make_shared<ScoreOptions>();
  verb.add_option("-d,--domain", options->domain, "the domain to ask; default: the model's own default");
  auto* source = verb.add_option_group("text", "what to score; without any of these, standard input");
  source->add_option("--text", options->text, "the text");
  source->add_option("--file", options->file, "a file that holds the text");
  source->add_option("--token-ids", options->token_ids, "the text as token ids, such as 1,17,4");
  source->add_option("--jsonl", options->jsonl, "a file with one {\"text\": ...} per line, scored in windows");
  source->add_option("--matrix", options->matrix,
                     "a directory of DOMAIN.jsonl files: the perplexity of each under every domain");
  source->require_option(0, 1);
  verb.add_option("--window", options->window.window_tokens, "tokens in one window of --jsonl and --matrix")
      ->check(CLI::Range(2, 1 << 20))
      ->capture_default_str();
  verb.add_option("--bos", options->window.prefix,
                  "the special token that begins every window, such as '<|endoftext|>'; default: what the tokenizer "
                  "puts before a text by itself");
  verb.add_flag("--totals", options->totals, "only the sum, not every token or line");
  AddCommonOptions(verb, invocation);
  verb.footer(
      "Examples:\n  moe-client score --domain en --text 'It was the best of times'\n"
      "  moe-client score --matrix deploy/demo/eval");
  verb.callback([options, &invocation] {
    invocation.run = [options, &invocation](Client& client) {
      if (options->matrix) return ScoreMatrix(client, *options, invocation);
      if (options->jsonl) return ScoreJsonl(client, *options, invocation);
      return ScoreOne(client, *options, invocation);
    };
  });
}

}  // namespace scion::client

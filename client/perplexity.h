// Perplexity of texts under domains.
//
// A text is scored in windows, each of which begins with a prefix (BOS) and continues with the next tokens of the text,
// so that no window exceeds `window_tokens`. Every token but the first of a
// window is scored, given those before it in the window. Perplexity is exp(-sum of log-likelihoods / scored tokens).
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/client.h"

namespace scion::client {

struct WindowOptions {
  int window_tokens = 256;
  // The text of the special tokens that begin a window. Nothing: those that the tokenizer puts before a text by itself.
  std::optional<std::string> prefix = std::nullopt;
};

struct Likelihood {
  int64_t scored_tokens = 0;
  double total_logprob = 0;

  double perplexity() const;  // NaN if nothing was scored
  void Add(const Likelihood& other) {
    scored_tokens += other.scored_tokens;
    total_logprob += other.total_logprob;
  }
};

// The windows of a text, as token ids. Windows of a single token, which score nothing, are left out.
absl::StatusOr<std::vector<std::vector<int32_t>>> MakeWindows(Client& client, const std::string& text,
                                                              const WindowOptions& window_options,
                                                              const CallOptions& options);

absl::StatusOr<Likelihood> ScoreWindows(Client& client, const std::string& domain,
                                        const std::vector<std::vector<int32_t>>& windows, const CallOptions& options);

struct PerplexityMatrix {
  std::vector<std::string> texts;              // rows: the files' names without extension
  std::vector<std::string> domains;            // columns: the server's domains
  std::vector<std::vector<Likelihood>> cells;  // [text, domain]

  // The least perplexity of the row under any other domain, over the perplexity under the row's own domain: above 1
  // if the own domain is the best. NaN if the row is no domain's or there is no other domain.
  double AdvantageOfOwnDomain(size_t row) const;
};

// Reads every DOMAIN.jsonl in `directory` (one {"text": ...} per line) and scores it under every domain of the server.
// `progress` is called after each cell. NotFound: no such file, or a file that is named for no domain.
absl::StatusOr<PerplexityMatrix> MeasurePerplexityMatrix(
    Client& client, const std::filesystem::path& directory, const WindowOptions& window_options,
    const CallOptions& options, const std::function<void(int done, int total)>& progress = nullptr);

}  // namespace scion::client

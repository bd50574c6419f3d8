// moe-client bench: a load test from the client's side.
#include <CLI/CLI.hpp>
#include <cmath>
#include <memory>
#include <ostream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/commands.h"
#include "client/load.h"
#include "nlohmann/json.hpp"

namespace scion::client {
namespace {

nlohmann::json MillisecondsOrNull(double seconds) {
  return std::isfinite(seconds) ? nlohmann::json(seconds * 1e3) : nlohmann::json();
}

double OutputTokensPerSecond(const LoadResult& result) {
  return result.seconds > 0 ? static_cast<double>(result.output_tokens) / result.seconds : 0;
}

void PrintJson(const LoadOptions& options, const LoadResult& result, std::ostream& out) {
  const auto percentiles = [](const std::vector<double>& seconds) {
    return nlohmann::json{{"p50_ms", MillisecondsOrNull(Percentile(seconds, 0.50))},
                          {"p99_ms", MillisecondsOrNull(Percentile(seconds, 0.99))}};
  };
  out << nlohmann::json{{"concurrency", options.concurrency},
                        {"requests", result.requests},
                        {"failed", result.failed},
                        {"errors", result.errors},
                        {"seconds", result.seconds},
                        {"prompt_tokens", result.prompt_tokens},
                        {"output_tokens", result.output_tokens},
                        {"output_tokens_per_second", OutputTokensPerSecond(result)},
                        {"ttft", percentiles(result.ttft_seconds)},
                        {"itl", percentiles(result.itl_seconds)}}
             .dump(-1, ' ', false, nlohmann::json::error_handler_t::replace)
      << "\n";
}

void PrintTable(const LoadOptions& options, const LoadResult& result, std::ostream& out) {
  out << absl::StreamFormat("%d requests, %d at once, %d failed, %.2f s\n", result.requests, options.concurrency,
                            result.failed, result.seconds);
  out << absl::StreamFormat("%d prompt tokens, %d output tokens, %.1f output tokens/s\n", result.prompt_tokens,
                            result.output_tokens, OutputTokensPerSecond(result));
  out << absl::StreamFormat("%8s  %10s  %10s\n", "", "p50", "p99");
  const auto row = [&](const char* name, const std::vector<double>& seconds) {
    out << absl::StreamFormat("%8s  %10.2f  %10.2f\n", name, Percentile(seconds, 0.50) * 1e3,
                              Percentile(seconds, 0.99) * 1e3);
  };
  row("TTFT ms", result.ttft_seconds);
  row("ITL ms", result.itl_seconds);
}

absl::Status Bench(Client& client, const LoadOptions& options, Invocation& invocation) {
  const absl::StatusOr<LoadResult> result = RunLoad(client, options, invocation.cancel);
  if (!result.ok()) return result.status();
  (invocation.json ? PrintJson : PrintTable)(options, *result, invocation.terminal.out);
  if (result->failed == 0) return absl::OkStatus();
  for (const auto& [error, count] : result->errors) invocation.terminal.err << count << " x " << error << "\n";
  return absl::AbortedError(absl::StrCat(result->failed, " of ", result->requests, " requests failed"));
}

}  // namespace

void AddBenchCommand(CLI::App& app, Invocation& invocation) {
  CLI::App& verb = *app.add_subcommand(
      "bench",
      "Puts the server under load and prints time to first token (TTFT), inter-token latency (ITL) and throughput. "
      "A failed request counts as infinitely slow.");
  auto options = std::make_shared<LoadOptions>();
  auto max_seconds = std::make_shared<double>(absl::ToDoubleSeconds(options->total_timeout));
  verb.add_option("-c,--concurrency", options->concurrency, "requests at once")->capture_default_str();
  verb.add_option("-r,--requests", options->requests, "requests in all")->capture_default_str();
  auto* prompt_tokens =
      verb.add_option("--prompt-tokens", options->prompt_tokens, "random token ids per prompt")->capture_default_str();
  verb.add_option("--output-tokens", options->output_tokens, "tokens to generate per request")->capture_default_str();
  verb.add_option("--vocab-size", options->vocab_size, "random token ids are below this")->capture_default_str();
  verb.add_option("-d,--domains", options->domains, "domains to ask in turn, such as zh,en; default: the model's own")
      ->delimiter(',');
  verb.add_option("-p,--prompt", options->text, "this text as every prompt")->excludes(prompt_tokens);
  verb.add_option("--seed", options->seed, "of prompts and sampling")->capture_default_str();
  verb.add_option("--max-seconds", *max_seconds, "the whole test ends by then")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  AddCommonOptions(verb, invocation);
  verb.footer("Example:\n  moe-client bench --concurrency 16 --requests 128 --domains zh,en,cpp,python");
  verb.callback([options, max_seconds, &invocation] {
    options->total_timeout = absl::Seconds(*max_seconds);
    if (invocation.timeout_seconds > 0) options->request_timeout = absl::Seconds(invocation.timeout_seconds);
    invocation.run = [options, &invocation](Client& client) { return Bench(client, *options, invocation); };
  });
}

}  // namespace scion::client

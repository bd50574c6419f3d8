// moe-client generate: one request, its text as it comes.
#include <CLI/CLI.hpp>
#include <istream>
#include <iterator>
#include <memory>
#include <optional>
#include <ostream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/commands.h"
#include "client/text.h"
#include "nlohmann/json.hpp"

namespace scion::client {
namespace {

struct GenerateOptions {
  std::string domain;
  std::optional<std::string> prompt;
  std::optional<std::string> prompt_file;
  std::optional<std::string> token_ids;
  std::optional<int> max_tokens;
  std::optional<float> temperature;
  std::optional<int> top_k;
  std::optional<float> top_p;
  std::optional<uint64_t> seed;
  std::vector<std::string> stop;
  std::optional<int> logprobs;
  bool ignore_eos = false;
};

absl::Status SetPrompt(const GenerateOptions& options, Terminal& terminal, v1::GenerateRequest& request) {
  if (options.token_ids) {
    const absl::StatusOr<std::vector<int>> ids = ParseTokenIds(*options.token_ids);
    if (!ids.ok()) return ids.status();
    request.mutable_token_ids()->mutable_ids()->Add(ids->begin(), ids->end());
    return absl::OkStatus();
  }
  std::string text;
  if (options.prompt) {
    text = *options.prompt;
  } else if (options.prompt_file) {
    absl::StatusOr<std::string> content = ReadTextFile(*options.prompt_file);
    if (!content.ok()) return content.status();
    text = *std::move(content);
  } else {
    text.assign(std::istreambuf_iterator<char>(terminal.in), std::istreambuf_iterator<char>());
  }
  if (const std::optional<size_t> at = FindInvalidUtf8(text)) {
    return absl::InvalidArgumentError(absl::StrCat("the prompt is not UTF-8 at byte ", *at));
  }
  request.set_text(text);
  return absl::OkStatus();
}

absl::StatusOr<v1::GenerateRequest> MakeRequest(const GenerateOptions& options, Terminal& terminal) {
  v1::GenerateRequest request;
  if (absl::Status status = SetPrompt(options, terminal, request); !status.ok()) return status;
  request.set_domain(options.domain);
  if (options.max_tokens) request.set_max_tokens(*options.max_tokens);
  v1::Sampling& sampling = *request.mutable_sampling();
  if (options.temperature) sampling.set_temperature(*options.temperature);
  if (options.top_k) sampling.set_top_k(*options.top_k);
  if (options.top_p) sampling.set_top_p(*options.top_p);
  if (options.seed) sampling.set_seed(*options.seed);
  for (const std::string& stop : options.stop) request.add_stop(stop);
  if (options.logprobs) request.set_logprobs(*options.logprobs);
  request.set_ignore_eos(options.ignore_eos);
  return request;
}

const char* Name(v1::Finish::Reason reason) {
  switch (reason) {
    case v1::Finish::STOP:
      return "stop";
    case v1::Finish::LENGTH:
      return "length";
    default:
      return "unspecified";
  }
}

nlohmann::json TokenJson(const v1::GeneratedToken& token) {
  nlohmann::json json = {{"id", token.id()}};
  if (token.has_logprob()) json["logprob"] = token.logprob();
  for (const v1::TokenLogprob& top : token.top_logprobs()) {
    json["top_logprobs"].push_back({{"id", top.token_id()}, {"token", top.token()}, {"logprob", top.logprob()}});
  }
  return json;
}

// Log-probabilities go below the text, one line per token: they would tear it apart otherwise.
void PrintLogprobs(const std::vector<v1::GeneratedToken>& tokens, std::ostream& out) {
  for (const v1::GeneratedToken& token : tokens) {
    out << absl::StreamFormat("%7d  %9.4f ", token.id(), token.logprob());
    for (const v1::TokenLogprob& top : token.top_logprobs()) {
      out << absl::StreamFormat("  %s (%.4f)", Escape(top.token()), top.logprob());
    }
    out << "\n";
  }
}

absl::Status Generate(Client& client, const GenerateOptions& options, Invocation& invocation) {
  absl::StatusOr<v1::GenerateRequest> request = MakeRequest(options, invocation.terminal);
  if (!request.ok()) return request.status();
  std::ostream& out = invocation.terminal.out;
  std::string text;
  std::vector<v1::GeneratedToken> tokens;
  v1::Finish finish;
  std::unique_ptr<GenerateStream> stream = client.Generate(*request, invocation.call_options());
  v1::GenerateResponse response;
  while (stream->Next(&response)) {
    if (invocation.json) {
      text += response.text();
    } else {
      out << response.text() << std::flush;
      if (!out) return absl::AbortedError("the output was closed");
    }
    tokens.insert(tokens.end(), response.tokens().begin(), response.tokens().end());
    if (response.has_finish()) finish = response.finish();
  }
  const absl::Status status = stream->Finish();
  if (!invocation.json) out << "\n";
  if (!status.ok()) return status;
  if (invocation.json) {
    nlohmann::json json = {{"text", text},
                           {"finish_reason", Name(finish.reason())},
                           {"usage",
                            {{"prompt_tokens", finish.usage().prompt_tokens()},
                             {"completion_tokens", finish.usage().completion_tokens()}}},
                           {"tokens", nlohmann::json::array()}};
    for (const v1::GeneratedToken& token : tokens) json["tokens"].push_back(TokenJson(token));
    out << json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) << "\n";
  } else if (options.logprobs) {
    PrintLogprobs(tokens, out);
  }
  return absl::OkStatus();
}

}  // namespace

void AddGenerateCommand(CLI::App& app, Invocation& invocation) {
  CLI::App& verb = *app.add_subcommand("generate", "Continues a prompt and prints the text as it comes.");
  auto options = std::make_shared<GenerateOptions>();
  verb.add_option("-d,--domain", options->domain, "the domain to ask; default: the model's own default");
  auto* prompt = verb.add_option("-p,--prompt", options->prompt, "the prompt; without any, standard input is read");
  auto* file = verb.add_option("--prompt-file", options->prompt_file, "a file that holds the prompt");
  auto* ids = verb.add_option("--token-ids", options->token_ids, "the prompt as token ids, such as 1,17,4");
  prompt->excludes(file)->excludes(ids);
  file->excludes(ids);
  verb.add_option("-n,--max-tokens", options->max_tokens, "most tokens to generate; default: to the context's end");
  verb.add_option("-t,--temperature", options->temperature, "0 is greedy; default: the model's");
  verb.add_option("--top-k", options->top_k, "sample from the k likeliest tokens; 0: from all");
  verb.add_option("--top-p", options->top_p, "sample from the likeliest tokens that hold this much probability");
  verb.add_option("--seed", options->seed, "the same seed gives the same text");
  verb.add_option("--stop", options->stop, "a string that ends the text (may be repeated)")->expected(1)->take_all();
  verb.add_option("--logprobs", options->logprobs, "print each token's log-probability and this many alternatives");
  verb.add_flag("--ignore-eos", options->ignore_eos, "do not stop at the model's end-of-text token");
  AddCommonOptions(verb, invocation);
  verb.footer("Example:\n  moe-client generate --domain cpp --prompt '#include <vector>' --max-tokens 64 --seed 7");
  verb.callback([options, &invocation] {
    invocation.run = [options, &invocation](Client& client) { return Generate(client, *options, invocation); };
  });
}

}  // namespace scion::client

#include "server/admission.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <span>
#include <utility>

#include "absl/time/clock.h"
#include "engine/base/sha256.h"
#include "engine/base/status.h"
#include "engine/kernels/kernels.h"
#include "server/request_error.h"

namespace scion {
namespace {

// A text is refused untokenized if even the longest token, over and over, could not make it fit. Normalization may
// shorten a text; by this factor at most (NFC: 3).
constexpr size_t kMaxNormalizationShrink = 4;

uint64_t RandomSeed() {
  thread_local std::mt19937_64 generator{std::random_device{}()};
  return generator();
}

absl::Status ContextOverflow(std::string_view parameter, std::string message) {
  return WithErrorCode(InvalidParameter(parameter, message), "context_length_exceeded");
}

std::string OutOfRange(std::string_view name, std::string_view range, double value) {
  return absl::StrCat(ToAbsl(name), " must be ", ToAbsl(range), ", is ", value);
}

absl::Status CheckSampling(const GenerationRequest& r) {
  if (r.temperature && !(*r.temperature >= 0 && *r.temperature <= 2)) {
    return InvalidParameter("temperature", OutOfRange("temperature", "from 0 to 2", *r.temperature));
  }
  if (r.top_p && !(*r.top_p > 0 && *r.top_p <= 1)) {
    return InvalidParameter("top_p", OutOfRange("top_p", "above 0 and at most 1", *r.top_p));
  }
  if (r.top_k && !(*r.top_k >= 0 && *r.top_k <= std::numeric_limits<int32_t>::max())) {
    return InvalidParameter("top_k", absl::StrCat("top_k must be at least 0 (0: all tokens), is ", *r.top_k));
  }
  if (r.logit_bias.size() > kMaxLogitBias) {
    return InvalidParameter("logit_bias", absl::StrCat("logit_bias has ", r.logit_bias.size(), " entries, at most ",
                                                       kMaxLogitBias, " are taken"));
  }
  for (const auto& [id, bias] : r.logit_bias) {
    if (!(std::abs(bias) <= 100)) {
      return InvalidParameter("logit_bias", OutOfRange("every logit_bias", "from -100 to 100", bias));
    }
  }
  if (r.logprobs && (*r.logprobs < 0 || *r.logprobs > kMaxTopLogprobs)) {
    return InvalidParameter("logprobs",
                            absl::StrCat("logprobs must be from 0 to ", kMaxTopLogprobs, ", is ", *r.logprobs));
  }
  return absl::OkStatus();
}

absl::Status CheckStop(const GenerationRequest& r, const Tokenizer* tokenizer) {
  if (r.stop.size() > kMaxStopStrings) {
    return InvalidParameter(
        "stop", absl::StrCat("at most ", kMaxStopStrings, " stop strings are taken, there are ", r.stop.size()));
  }
  for (const std::string& stop : r.stop) {
    if (stop.empty()) return InvalidParameter("stop", "a stop string is empty");
    if (stop.size() > kMaxStopStringBytes) {
      return InvalidParameter("stop", absl::StrCat("a stop string has ", stop.size(), " bytes, at most ",
                                                   kMaxStopStringBytes, " are taken"));
    }
  }
  if (!r.stop.empty() && tokenizer == nullptr) {
    return InvalidParameter("stop", "this model has no tokenizer: it takes stop_token_ids only");
  }
  if (r.stop_token_ids.size() > kMaxStopTokens) {
    return InvalidParameter("stop_token_ids", absl::StrCat("at most ", kMaxStopTokens, " stop_token_ids are taken"));
  }
  return absl::OkStatus();
}

absl::Status CheckTokenId(const ModelSpec& spec, const char* parameter, int32_t id) {
  if (id >= 0 && id < spec.vocab_size) return absl::OkStatus();
  return InvalidParameter(
      parameter, absl::StrCat(parameter, ": token id ", id, " is outside the vocabulary of ", spec.vocab_size));
}

absl::Status CheckTokenIds(const ModelSpec& spec, const char* parameter, std::span<const int32_t> ids) {
  for (const int32_t id : ids) SCION_RETURN_IF_ERROR(CheckTokenId(spec, parameter, id));
  return absl::OkStatus();
}

// Requests without a salt are one tenant, 0. Whoever does not know another's salt cannot find one that meets it.
uint64_t TenantOf(std::string_view cache_salt) {
  if (cache_salt.empty()) return 0;
  return std::stoull(Sha256Hex(cache_salt).substr(0, 16), nullptr, 16);
}

const char* PromptParameter(const GenerationRequest& request) {
  return std::holds_alternative<ChatPrompt>(request.prompt) ? "messages" : "prompt";
}

}  // namespace

void Admission::Open(ServedModel model) {
  const EngineStats stats = model.engine->Stats();
  // A request that leaves max_tokens open must fit the KV cache too.
  capacity_tokens_ =
      static_cast<int>(std::min<int64_t>(model.engine->spec().max_position_embeddings,
                                         static_cast<int64_t>(stats.kv_blocks_total) * kernels::kKvBlockTokens));
  if (const Tokenizer* tokenizer = model.engine->tokenizer()) {
    for (int32_t id = 0; id < tokenizer->size(); ++id) {
      max_token_bytes_ = std::max(max_token_bytes_, tokenizer->TokenBytes(id).size());
    }
    chat_template_ = ChatTemplate::Create(*tokenizer);
  }
  model_ = std::move(model);
  served_.store(&*model_);
  if (draining_.load()) model_->engine->StartDraining();
}

void Admission::StartDraining() {
  draining_.store(true);
  if (const ServedModel* served = model()) served->engine->StartDraining();
}

absl::StatusOr<const ServedModel*> Admission::Serving() const {
  if (draining_.load()) return absl::UnavailableError("the server is shutting down");
  const ServedModel* served = model();
  if (served == nullptr) return absl::UnavailableError("the server is starting: the model is being loaded");
  return served;
}

absl::Status Admission::CheckTextBytes(size_t bytes) const {
  const int context = model()->engine->spec().max_position_embeddings;
  const size_t least_tokens = bytes / (max_token_bytes_ * kMaxNormalizationShrink);
  if (least_tokens <= static_cast<size_t>(context)) return absl::OkStatus();
  return ContextOverflow("prompt", absl::StrCat("the model's context is ", context, " tokens, but the prompt has ",
                                                bytes, " bytes, which are at least ", least_tokens, " tokens"));
}

absl::StatusOr<std::vector<int32_t>> Admission::Tokenize(const std::string& text) const {
  const Tokenizer* tokenizer = model()->engine->tokenizer();
  if (tokenizer == nullptr) {
    return InvalidParameter("prompt", "this model has no tokenizer: it takes prompts of token ids only");
  }
  if (absl::Status status = CheckTextBytes(text.size()); !status.ok()) return status;
  std::vector<int32_t> ids;
  tokenizer->Encode(text, {.parse_special = true, .add_special = true}, ids);
  return ids;
}

absl::StatusOr<std::vector<int32_t>> Admission::TokenizeChat(const ChatPrompt& prompt) const {
  if (!chat_template_.ok()) return WithParameter(chat_template_.status(), "messages");
  size_t bytes = 0;
  for (const ChatMessage& message : prompt.messages) bytes += message.content.size();
  if (absl::Status status = CheckTextBytes(bytes); !status.ok()) return WithParameter(status, "messages");
  return chat_template_->Render(prompt.messages, *model()->engine->tokenizer());
}

absl::StatusOr<std::unique_ptr<TextStream>> Admission::Generate(GenerationRequest request) const {
  SCION_ASSIGN_OR_RETURN(const ServedModel* served, Serving());
  Engine& engine = *served->engine;
  SCION_ASSIGN_OR_RETURN(const int domain,
                         ChooseDomain(engine.spec(), served->name, request.model, std::move(request.domain_wishes)));
  SCION_RETURN_IF_ERROR(CheckSampling(request));
  SCION_RETURN_IF_ERROR(CheckStop(request, engine.tokenizer()));

  const char* const prompt_parameter = PromptParameter(request);
  std::vector<int32_t> prompt;
  if (auto* ids = std::get_if<std::vector<int32_t>>(&request.prompt)) {
    prompt = std::move(*ids);
  } else if (const auto* text = std::get_if<std::string>(&request.prompt)) {
    SCION_ASSIGN_OR_RETURN(prompt, Tokenize(*text));
  } else {
    SCION_ASSIGN_OR_RETURN(prompt, TokenizeChat(std::get<ChatPrompt>(request.prompt)));
  }
  if (prompt.empty()) return InvalidParameter(prompt_parameter, "the prompt has no tokens");

  SCION_RETURN_IF_ERROR(CheckTokenIds(engine.spec(), "prompt", prompt));
  SCION_RETURN_IF_ERROR(CheckTokenIds(engine.spec(), "stop_token_ids", request.stop_token_ids));
  for (const auto& [id, bias] : request.logit_bias) {
    SCION_RETURN_IF_ERROR(CheckTokenId(engine.spec(), "logit_bias", id));
  }

  const int context = engine.spec().max_position_embeddings;
  const auto prompt_tokens = static_cast<int64_t>(prompt.size());
  if (request.max_tokens && *request.max_tokens < 1) {
    return InvalidParameter("max_tokens", absl::StrCat("max_tokens must be at least 1, is ", *request.max_tokens));
  }
  // At least one token must fit behind the prompt.
  const int64_t wanted = std::min(request.max_tokens.value_or(1), int64_t{1} << 40);
  if (prompt_tokens + wanted > context) {
    return ContextOverflow(request.max_tokens && prompt_tokens < context ? "max_tokens" : prompt_parameter,
                           absl::StrCat("the model's context is ", context, " tokens, but the request needs ",
                                        prompt_tokens + wanted, ": ", prompt_tokens, " in the prompt and ",
                                        request.max_tokens ? "" : "at least ", wanted, " to be generated"));
  }
  const int64_t rest = std::max<int64_t>(capacity_tokens_ - prompt_tokens, 1);

  const SamplingDefaults& defaults = served->sampling_defaults;
  Request out;
  out.prompt = std::move(prompt);
  out.domain = domain;
  out.tenant = TenantOf(request.cache_salt);
  out.max_new_tokens = static_cast<int>(request.max_tokens.value_or(rest));
  out.sampling = {.temperature = static_cast<float>(request.temperature.value_or(defaults.temperature)),
                  .top_k = static_cast<int>(request.top_k.value_or(defaults.top_k)),
                  .top_p = static_cast<float>(request.top_p.value_or(defaults.top_p)),
                  .seed = request.seed ? *request.seed : RandomSeed(),
                  .logit_bias = std::move(request.logit_bias)};
  out.ignore_eos = request.ignore_eos;
  out.stop_token_ids = std::move(request.stop_token_ids);
  if (request.logprobs) out.top_logprobs = static_cast<int>(*request.logprobs);
  out.deadline = std::min(request.deadline, absl::Now() + options_.request_timeout);
  absl::StatusOr<std::unique_ptr<RequestHandle>> handle = engine.Submit(std::move(out));
  if (!handle.ok()) return handle.status();
  return std::make_unique<TextStream>(*std::move(handle),
                                      TextStream::Options{.tokenizer = engine.tokenizer(),
                                                          .stop = std::move(request.stop),
                                                          .prompt_tokens = static_cast<int>(prompt_tokens),
                                                          .metrics = options_.metrics});
}

absl::StatusOr<Admission::Scoring> Admission::Score(ScoringRequest request) const {
  SCION_ASSIGN_OR_RETURN(const ServedModel* served, Serving());
  Engine& engine = *served->engine;
  SCION_ASSIGN_OR_RETURN(const int domain,
                         ChooseDomain(engine.spec(), served->name, request.model, std::move(request.domain_wishes)));
  Scoring scoring;
  if (auto* ids = std::get_if<std::vector<int32_t>>(&request.prompt)) {
    scoring.token_ids = std::move(*ids);
  } else {
    SCION_ASSIGN_OR_RETURN(scoring.token_ids, Tokenize(std::get<std::string>(request.prompt)));
  }
  if (scoring.token_ids.empty()) return InvalidParameter("prompt", "the prompt has no tokens");
  SCION_RETURN_IF_ERROR(CheckTokenIds(engine.spec(), "prompt", scoring.token_ids));
  const int context = engine.spec().max_position_embeddings;
  if (std::cmp_greater(scoring.token_ids.size(), context)) {
    return ContextOverflow("prompt", absl::StrCat("the model's context is ", context, " tokens, but the prompt has ",
                                                  scoring.token_ids.size()));
  }
  scoring.domain = engine.spec().domains[static_cast<size_t>(domain)].name;
  Request out;
  out.prompt = scoring.token_ids;
  out.domain = domain;
  out.tenant = TenantOf(request.cache_salt);
  out.score_prompt = true;
  out.top_logprobs = 0;
  out.deadline = std::min(request.deadline, absl::Now() + options_.request_timeout);
  SCION_ASSIGN_OR_RETURN(scoring.handle, engine.Submit(std::move(out)));
  return scoring;
}

}  // namespace scion

#include "server/native_answer.h"

#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "server/generation_answer.h"
#include "server/native_request.h"
#include "server/request_error.h"

namespace scion {
namespace {

using OrderedJson = nlohmann::ordered_json;

std::string Dump(const OrderedJson& json) { return json.dump(-1, ' ', false, OrderedJson::error_handler_t::replace); }

absl::Status Starting() { return absl::UnavailableError("the server is starting: the model is being loaded"); }

absl::StatusOr<const Tokenizer*> GetTokenizer(const Admission& admission) {
  const ServedModel* model = admission.model();
  if (model == nullptr) return Starting();
  if (model->engine->tokenizer() == nullptr) return absl::FailedPreconditionError("this model has no tokenizer");
  return model->engine->tokenizer();
}

absl::StatusOr<std::string> Tokenize(const Admission& admission, std::string_view body) {
  SCION_ASSIGN_OR_RETURN(const TokenizeCall call, ParseTokenizeCall(body));
  SCION_ASSIGN_OR_RETURN(const Tokenizer* tokenizer, GetTokenizer(admission));
  std::vector<int32_t> ids;
  tokenizer->Encode(call.text, {.parse_special = call.parse_special, .add_special = call.add_special}, ids);
  return Dump({{"token_ids", ids}});
}

absl::StatusOr<std::string> Detokenize(const Admission& admission, std::string_view body) {
  SCION_ASSIGN_OR_RETURN(const DetokenizeCall call, ParseDetokenizeCall(body));
  SCION_ASSIGN_OR_RETURN(const Tokenizer* tokenizer, GetTokenizer(admission));
  for (int32_t id : call.token_ids) {
    if (id < tokenizer->size()) continue;
    return InvalidParameter("token_ids",
                            absl::StrCat("token id ", id, " is outside the vocabulary of ", tokenizer->size()));
  }
  const std::string text = tokenizer->Decode(call.token_ids, call.skip_special);
  return Dump({{"text", text}, {"bytes", std::vector<uint8_t>(text.begin(), text.end())}});
}

// What a worker thread made of the request: the body of the answer, or a score on its way.
struct Outcome {
  std::string body;
  std::optional<Admission::Scoring> scoring = {};
};

absl::StatusOr<Outcome> Work(std::string_view path, std::string_view body, std::string_view domain_header,
                             const Admission& admission) {
  if (path == kScorePath) {
    SCION_ASSIGN_OR_RETURN(ScoringRequest request, ParseScoreCall(body, domain_header));
    SCION_ASSIGN_OR_RETURN(Admission::Scoring scoring, admission.Score(std::move(request)));
    return Outcome{.body = {}, .scoring = std::move(scoring)};
  }
  SCION_ASSIGN_OR_RETURN(std::string answer,
                         path == kTokenizePath ? Tokenize(admission, body) : Detokenize(admission, body));
  return Outcome{.body = std::move(answer)};
}

// What the answer and its worker share.
struct Shared {
  std::mutex mutex;
  bool abandoned = false;        // the client has left
  std::function<void()> notify;  // until `outcome` is there
  std::optional<absl::StatusOr<Outcome>> outcome;
};

void Run(std::string_view path, std::string_view body, std::string_view domain_header, const Admission& admission,
         Shared& shared) {
  {
    std::lock_guard lock(shared.mutex);
    if (shared.abandoned) return;
  }
  absl::StatusOr<Outcome> outcome = Work(path, body, domain_header, admission);
  std::function<void()> notify;
  {
    std::lock_guard lock(shared.mutex);
    if (shared.abandoned) return;  // which cancels
    shared.outcome = std::move(outcome);
    notify = std::move(shared.notify);
  }
  if (notify) notify();
}

class NativeAnswer final : public HttpAnswer {
 public:
  NativeAnswer(std::string_view path, std::string body, std::string domain_header, const Admission& admission,
               ServerMetrics& metrics, WorkerPool& workers)
      : metrics_(path == kScorePath ? &metrics : nullptr), shared_(std::make_shared<Shared>()) {
    workers.Post([path = std::string(path), body = std::move(body), domain_header = std::move(domain_header),
                  &admission, shared = shared_] { Run(path, body, domain_header, admission, *shared); });
  }

  ~NativeAnswer() override {
    {
      std::lock_guard lock(shared_->mutex);
      shared_->abandoned = true;
      shared_->notify = nullptr;
    }
    if (!ended_) End(absl::StatusCode::kCancelled);
  }

  void SetNotify(std::function<void()> notify) override {
    notify_ = std::move(notify);
    std::lock_guard lock(shared_->mutex);
    if (!shared_->outcome) shared_->notify = notify_;
  }

  std::optional<HttpResponse> TryHead() override {
    if (!scoring_) {
      std::lock_guard lock(shared_->mutex);
      if (!shared_->outcome) return std::nullopt;
      absl::StatusOr<Outcome>& outcome = *shared_->outcome;
      if (!outcome.ok()) return Fail(outcome.status());
      if (!outcome->scoring) return Succeed(std::move(outcome->body));
      scoring_ = std::exchange(outcome->scoring, std::nullopt);
      scoring_->handle->SetNotify(notify_);
    }
    while (std::optional<Event> event = scoring_->handle->TryNext()) {
      if (event->kind == Event::Kind::kPromptScore) logprobs_.push_back(event->logprob.value_or(0));
      if (event->kind != Event::Kind::kFinished) continue;
      return event->status.ok() ? Succeed(ScoreJson()) : Fail(event->status);
    }
    return std::nullopt;
  }

  Body TryBody(std::string&) override { return Body::kEnd; }

 private:
  std::string ScoreJson() const {
    double total = 0;
    for (float logprob : logprobs_) total += logprob;
    return Dump({{"token_ids", scoring_->token_ids},
                 {"logprobs", logprobs_},
                 {"total_logprob", total},
                 {"domain", scoring_->domain}});
  }

  HttpResponse Succeed(std::string body) {
    End(absl::StatusCode::kOk);
    return {.body = std::move(body)};
  }
  HttpResponse Fail(const absl::Status& status) {
    End(status.code());
    return ErrorResponse(status);
  }
  void End(absl::StatusCode code) {
    ended_ = true;
    if (metrics_ != nullptr) metrics_->RequestEnded(Transport::kHttp, code);
  }

  ServerMetrics* const metrics_;  // null: the engine has no part in it, and it is not counted
  const std::shared_ptr<Shared> shared_;
  std::function<void()> notify_;
  std::optional<Admission::Scoring> scoring_;
  std::vector<float> logprobs_;
  bool ended_ = false;
};

}  // namespace

std::unique_ptr<HttpAnswer> MakeNativeAnswer(std::string_view path, std::string body, std::string domain_header,
                                             const Admission& admission, ServerMetrics& metrics, WorkerPool& workers) {
  return std::make_unique<NativeAnswer>(path, std::move(body), std::move(domain_header), admission, metrics, workers);
}

HttpResponse DomainsPage(const Admission& admission) {
  const ServedModel* model = admission.model();
  if (model == nullptr) return ErrorResponse(Starting());
  const ModelSpec& spec = model->engine->spec();
  const EngineStats stats = model->engine->Stats();
  OrderedJson domains = OrderedJson::array();
  for (size_t i = 0; i < spec.domains.size(); ++i) {
    const DomainStats load = i < stats.domains.size() ? stats.domains[i] : DomainStats{};
    domains.push_back({{"name", spec.domains[i].name},
                       {"num_experts", spec.domains[i].num_experts},
                       {"generation", model->engine->generations().at(i).generation},
                       {"weight_bytes", load.weight_bytes},
                       {"requests", load.requests},
                       {"prompt_tokens", load.prompt_tokens},
                       {"generated_tokens", load.generated_tokens}});
  }
  return {.body = Dump({{"model", model->name},
                        {"default_domain", spec.domains[static_cast<size_t>(spec.default_domain)].name},
                        {"domains", std::move(domains)}})};
}

}  // namespace scion

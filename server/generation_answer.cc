#include "server/generation_answer.h"

#include <iterator>
#include <mutex>
#include <optional>
#include <random>
#include <utility>

#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "server/openai_response.h"
#include "server/request_error.h"

namespace scion {
namespace {

std::string NewId(OpenAiKind kind) {
  thread_local std::mt19937_64 generator{std::random_device{}()};
  return absl::StrFormat("%s-%016x%016x", kind == OpenAiKind::kChat ? "chatcmpl" : "cmpl", generator(), generator());
}

// What the answer and its admission, on a worker thread, share.
struct Admitted {
  std::mutex mutex;
  bool abandoned = false;        // the client has left
  std::function<void()> notify;  // until `result` is there
  std::optional<absl::StatusOr<std::unique_ptr<TextStream>>> result;
  OpenAiCall call;  // written before `result`
};

void Admit(OpenAiKind kind, const std::string& body, const std::string& domain_header, const Admission& admission,
           Admitted& admitted) {
  {
    std::lock_guard lock(admitted.mutex);
    if (admitted.abandoned) return;
  }
  absl::StatusOr<std::unique_ptr<TextStream>> result;
  OpenAiCall call;
  if (absl::StatusOr<OpenAiCall> parsed = ParseOpenAiCall(kind, body, domain_header); parsed.ok()) {
    call = *std::move(parsed);
    GenerationRequest request = std::move(call.request);
    call.request = {.model = request.model, .logprobs = request.logprobs};  // what the response needs
    result = admission.Generate(std::move(request));
  } else {
    result = parsed.status();
  }
  std::function<void()> notify;
  {
    std::lock_guard lock(admitted.mutex);
    if (admitted.abandoned) return;  // which cancels
    admitted.call = std::move(call);
    admitted.result = std::move(result);
    notify = std::move(admitted.notify);
  }
  if (notify) notify();
}

class GenerationAnswer final : public HttpAnswer {
 public:
  GenerationAnswer(OpenAiKind kind, std::string body, std::string domain_header, const Admission& admission,
                   ServerMetrics& metrics, WorkerPool& workers)
      : kind_(kind), admission_(admission), metrics_(metrics), admitted_(std::make_shared<Admitted>()) {
    workers.Post([kind, body = std::move(body), domain_header = std::move(domain_header), &admission,
                  admitted = admitted_] { Admit(kind, body, domain_header, admission, *admitted); });
  }

  ~GenerationAnswer() override {
    {
      std::lock_guard lock(admitted_->mutex);
      admitted_->abandoned = true;
      admitted_->notify = nullptr;
    }
    if (!ended_) metrics_.RequestEnded(Transport::kHttp, absl::StatusCode::kCancelled);
  }

  void SetNotify(std::function<void()> notify) override {
    notify_ = std::move(notify);
    std::lock_guard lock(admitted_->mutex);
    if (!admitted_->result) admitted_->notify = notify_;
  }

  std::optional<HttpResponse> TryHead() override {
    if (stream_ == nullptr && !TakeAdmitted()) return std::nullopt;
    if (!error_.ok()) return Fail(error_);
    while (std::optional<TextChunk> chunk = stream_->TryNext()) {
      const bool is_error = chunk->finish && chunk->finish->reason == TextFinish::Reason::kError;
      if (is_error && (!streaming_ || !chunk->HasOutput())) return Fail(chunk->finish->status);
      if (streaming_) {
        AppendEvents(*chunk);
        return Head("text/event-stream; charset=utf-8", /*has_stream=*/true);
      }
      Collect(*std::move(chunk));
      if (!answer_.finish) continue;
      End(absl::StatusCode::kOk);
      HttpResponse response = Head("application/json", /*has_stream=*/false);
      response.body = response_->Whole(answer_);
      return response;
    }
    return std::nullopt;
  }

  Body TryBody(std::string& out) override {
    if (pending_.empty() && !ended_) {
      if (const std::optional<TextChunk> chunk = stream_->TryNext()) {
        AppendEvents(*chunk);
      } else {
        return Body::kWait;
      }
    }
    out += pending_;
    pending_.clear();
    return ended_ ? Body::kEnd : Body::kMore;
  }

 private:
  // False: not admitted yet.
  bool TakeAdmitted() {
    {
      std::lock_guard lock(admitted_->mutex);
      if (!admitted_->result) return false;
      if (!admitted_->result->ok()) {
        error_ = admitted_->result->status();
        return true;
      }
      stream_ = **std::move(admitted_->result);
    }
    const OpenAiCall& call = admitted_->call;
    const ServedModel& model = *admission_.model();
    streaming_ = call.stream;
    id_ = NewId(kind_);
    response_.emplace(OpenAiResponse::Options{.kind = kind_,
                                              .id = id_,
                                              .model = call.request.model.empty() ? model.name : call.request.model,
                                              .created = absl::ToUnixSeconds(absl::Now()),
                                              .include_usage = call.include_usage,
                                              .return_token_ids = call.return_token_ids,
                                              .logprobs = call.request.logprobs.has_value(),
                                              .tokenizer = model.engine->tokenizer()});
    stream_->SetNotify(notify_);
    return true;
  }

  HttpResponse Fail(const absl::Status& status) {
    End(status.code());
    return ErrorResponse(status);
  }

  HttpResponse Head(const char* content_type, bool has_stream) const {
    HttpResponse response{.content_type = content_type, .has_stream = has_stream};
    response.headers = {{"X-Request-Id", id_}};
    if (has_stream) {
      response.headers.emplace_back("Cache-Control", "no-cache");
      response.headers.emplace_back("X-Accel-Buffering", "no");
    }
    return response;
  }

  void AppendEvents(const TextChunk& chunk) {
    pending_ += response_->Events(chunk);
    if (chunk.finish) End(chunk.finish->status.code());
  }

  void Collect(TextChunk chunk) {
    answer_.text += chunk.text;
    answer_.tokens.insert(answer_.tokens.end(), std::make_move_iterator(chunk.tokens.begin()),
                          std::make_move_iterator(chunk.tokens.end()));
    answer_.finish = std::move(chunk.finish);
  }

  void End(absl::StatusCode code) {
    ended_ = true;
    metrics_.RequestEnded(Transport::kHttp, code);
  }

  const OpenAiKind kind_;
  const Admission& admission_;
  ServerMetrics& metrics_;
  const std::shared_ptr<Admitted> admitted_;
  std::function<void()> notify_;

  absl::Status error_;
  std::unique_ptr<TextStream> stream_;
  std::optional<OpenAiResponse> response_;
  std::string id_;
  bool streaming_ = false;
  TextChunk answer_;     // collected, if not streaming
  std::string pending_;  // events that are not yet taken, if streaming
  bool ended_ = false;
};

}  // namespace

HttpResponse ErrorResponse(const absl::Status& status) {
  HttpResponse response{.status = HttpStatusCode(status.code()), .body = OpenAiErrorBody(status)};
  if (response.status == 429 || response.status == 503) response.headers.emplace_back("Retry-After", "1");
  return response;
}

std::unique_ptr<HttpAnswer> MakeGenerationAnswer(OpenAiKind kind, std::string body, std::string domain_header,
                                                 const Admission& admission, ServerMetrics& metrics,
                                                 WorkerPool& workers) {
  return std::make_unique<GenerationAnswer>(kind, std::move(body), std::move(domain_header), admission, metrics,
                                            workers);
}

}  // namespace scion

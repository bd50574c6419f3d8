#include "server/grpc_generate.h"

#include <memory>
#include <mutex>
#include <optional>
#include <utility>

#include "absl/time/clock.h"
#include "server/grpc_convert.h"

namespace scion {
namespace {

// Rules that keep it free of races: gRPC is called, and the stream destroyed, without the mutex; at most one write is
// under way; Finish comes once, when no write is.
class GenerateReactor final : public grpc::ServerWriteReactor<v1::GenerateResponse>,
                              public GrpcCall,
                              public std::enable_shared_from_this<GenerateReactor> {
 public:
  GenerateReactor(grpc::CallbackServerContext* context, GrpcShared& shared) : context_(context), shared_(shared) {}

  void Start(const v1::GenerateRequest& message) {
    self_ = shared_from_this();
    registered_ = shared_.calls.Add(this);
    if (!registered_) return FinishNow(absl::ResourceExhaustedError("the server has too many calls in flight"));
    absl::StatusOr<GenerationRequest> request = FromProto(message, *context_);
    if (!request.ok()) return FinishNow(request.status());
    shared_.workers.Post([self = self_, request = *std::move(request)]() mutable { self->Admit(std::move(request)); });
  }

  void OnWriteDone(bool ok) override {
    {
      std::lock_guard lock(mutex_);
      writing_ = false;
      if (!ok) CancelLocked();
    }
    Pump();
  }

  void OnCancel() override {
    {
      std::lock_guard lock(mutex_);
      CancelLocked();
    }
    Pump();
  }

  void OnDone() override {
    if (registered_) shared_.calls.Remove(this);
    shared_.metrics.RequestEnded(Transport::kGrpc, context_->IsCancelled() && final_code_ == absl::StatusCode::kOk
                                                       ? absl::StatusCode::kCancelled
                                                       : final_code_);
    self_.reset();
  }

  void CancelIfStalled(absl::Time limit) override {
    std::lock_guard lock(mutex_);
    if (writing_ && write_start_ < limit) context_->TryCancel();
  }

 private:
  void Admit(GenerationRequest request) {
    {
      std::lock_guard lock(mutex_);
      if (finished_) return;
    }
    absl::StatusOr<std::unique_ptr<TextStream>> stream = shared_.admission.Generate(std::move(request));
    if (!stream.ok()) return FinishNow(stream.status());
    {
      std::lock_guard lock(mutex_);
      if (finished_) return;  // which cancels, as the stream goes out of scope
      stream_ = *std::move(stream);
      if (cancelled_) stream_->Cancel();
    }
    stream_->SetNotify([weak = weak_from_this()] {
      if (auto self = weak.lock()) self->Pump();
    });
    Pump();
  }

  void CancelLocked() {
    cancelled_ = true;
    if (stream_ != nullptr) stream_->Cancel();
  }

  // Writes what there is, if nothing is being written.
  void Pump() {
    const std::shared_ptr<GenerateReactor> self = shared_from_this();
    bool is_last = false;
    bool has_message = false;
    {
      std::lock_guard lock(mutex_);
      if (writing_ || finished_) return;
      if (cancelled_) {
        end_ = absl::CancelledError("the client has cancelled the call");
      } else if (!end_) {
        if (stream_ == nullptr) return;
        const std::optional<TextChunk> chunk = stream_->TryNext();
        if (!chunk) return;
        if (chunk->finish) end_ = chunk->finish->status;
        is_last = chunk->finish && chunk->finish->status.ok();
        has_message = chunk->HasOutput() || is_last;
        if (has_message) ToProto(*chunk, shared_.admission.model()->engine->tokenizer(), response_);
      }
      if (is_last || !has_message) {
        finished_ = true;
        final_code_ = end_->code();
      }
      writing_ = has_message;
      write_start_ = absl::Now();
    }
    if (is_last) {
      StartWriteAndFinish(&response_, grpc::WriteOptions(), grpc::Status::OK);
    } else if (has_message) {
      StartWrite(&response_);
    } else {
      Finish(ToGrpc(*end_));
    }
  }

  // The call ends before it had a stream.
  void FinishNow(const absl::Status& status) {
    {
      std::lock_guard lock(mutex_);
      if (finished_) return;
      finished_ = true;
      final_code_ = status.code();
    }
    Finish(ToGrpc(status));
  }

  grpc::CallbackServerContext* const context_;
  GrpcShared& shared_;
  std::shared_ptr<GenerateReactor> self_;
  bool registered_ = false;

  std::mutex mutex_;
  std::unique_ptr<TextStream> stream_;  // set once
  v1::GenerateResponse response_;       // while writing
  std::optional<absl::Status> end_;     // how the call will end, once that is known
  absl::StatusCode final_code_ = absl::StatusCode::kOk;
  absl::Time write_start_;
  bool writing_ = false;
  bool cancelled_ = false;
  bool finished_ = false;
};

class ScoreReactor final : public grpc::ServerUnaryReactor,
                           public GrpcCall,
                           public std::enable_shared_from_this<ScoreReactor> {
 public:
  ScoreReactor(grpc::CallbackServerContext* context, v1::ScoreResponse* response, GrpcShared& shared)
      : context_(context), response_(response), shared_(shared) {}

  void Start(const v1::ScoreRequest& message) {
    self_ = shared_from_this();
    registered_ = shared_.calls.Add(this);
    if (!registered_) return FinishOnce(absl::ResourceExhaustedError("the server has too many calls in flight"));
    absl::StatusOr<ScoringRequest> request = FromProto(message, *context_);
    if (!request.ok()) return FinishOnce(request.status());
    shared_.workers.Post([self = self_, request = *std::move(request)]() mutable { self->Admit(std::move(request)); });
  }

  void OnCancel() override { FinishOnce(absl::CancelledError("the client has cancelled the call")); }

  void OnDone() override {
    if (registered_) shared_.calls.Remove(this);
    shared_.metrics.RequestEnded(Transport::kGrpc, final_code_);
    self_.reset();
  }

  void CancelIfStalled(absl::Time) override {}  // one message: the client's own deadline bounds it

 private:
  void Admit(ScoringRequest request) {
    absl::StatusOr<Admission::Scoring> scoring = shared_.admission.Score(std::move(request));
    if (!scoring.ok()) return FinishOnce(scoring.status());
    {
      std::lock_guard lock(mutex_);
      if (finished_) return;
      scoring_ = *std::move(scoring);
    }
    scoring_.handle->SetNotify([weak = weak_from_this()] {
      if (auto self = weak.lock()) self->TakeEvents();
    });
    TakeEvents();
  }

  void TakeEvents() {
    const std::shared_ptr<ScoreReactor> self = shared_from_this();
    absl::Status status;
    {
      std::lock_guard lock(mutex_);
      if (finished_) return;
      std::optional<Event> event = scoring_.handle->TryNext();
      for (; event && event->kind != Event::Kind::kFinished; event = scoring_.handle->TryNext()) {
        if (event->kind == Event::Kind::kPromptScore) logprobs_.push_back(event->logprob.value_or(0));
      }
      if (!event) return;
      status = event->status;
      finished_ = true;
      final_code_ = status.code();
      if (status.ok()) FillResponse();
    }
    Finish(ToGrpc(status));
  }

  void FillResponse() {
    response_->mutable_token_ids()->Add(scoring_.token_ids.begin(), scoring_.token_ids.end());
    response_->mutable_logprobs()->Add(logprobs_.begin(), logprobs_.end());
    double total = 0;
    for (float logprob : logprobs_) total += logprob;
    response_->set_total_logprob(total);
    response_->set_domain(scoring_.domain);
  }

  void FinishOnce(const absl::Status& status) {
    {
      std::lock_guard lock(mutex_);
      if (finished_) return;
      finished_ = true;
      final_code_ = status.code();
      if (scoring_.handle != nullptr) scoring_.handle->Cancel();
    }
    Finish(ToGrpc(status));
  }

  grpc::CallbackServerContext* const context_;
  v1::ScoreResponse* const response_;
  GrpcShared& shared_;
  std::shared_ptr<ScoreReactor> self_;
  bool registered_ = false;

  std::mutex mutex_;
  Admission::Scoring scoring_;
  std::vector<float> logprobs_;
  absl::StatusCode final_code_ = absl::StatusCode::kOk;
  bool finished_ = false;
};

}  // namespace

grpc::ServerWriteReactor<v1::GenerateResponse>* StartGenerate(grpc::CallbackServerContext* context,
                                                              const v1::GenerateRequest& request, GrpcShared& shared) {
  auto reactor = std::make_shared<GenerateReactor>(context, shared);
  reactor->Start(request);
  return reactor.get();
}

grpc::ServerUnaryReactor* StartScore(grpc::CallbackServerContext* context, const v1::ScoreRequest& request,
                                     v1::ScoreResponse* response, GrpcShared& shared) {
  auto reactor = std::make_shared<ScoreReactor>(context, response, shared);
  reactor->Start(request);
  return reactor.get();
}

}  // namespace scion

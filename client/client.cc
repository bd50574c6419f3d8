#include "client/client.h"

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "scion/v1/inference.grpc.pb.h"

namespace scion::client {

bool CancelSource::Cancel() {
  std::lock_guard lock(mutex_);
  cancelled_ = true;
  for (grpc::ClientContext* call : calls_) call->TryCancel();
  return !calls_.empty();
}

bool CancelSource::cancelled() const {
  std::lock_guard lock(mutex_);
  return cancelled_;
}

// A call's context, known to the caller's CancelSource for as long as the call lasts.
class ScopedCall {
 public:
  explicit ScopedCall(const CallOptions& options) : cancel_(options.cancel) {
    if (options.timeout != absl::InfiniteDuration()) {
      context_.set_deadline(absl::ToChronoTime(absl::Now() + options.timeout));
    }
    if (cancel_ == nullptr) return;
    std::lock_guard lock(cancel_->mutex_);
    cancel_->calls_.insert(&context_);
    if (cancel_->cancelled_) context_.TryCancel();
  }

  ~ScopedCall() {
    if (cancel_ == nullptr) return;
    std::lock_guard lock(cancel_->mutex_);
    cancel_->calls_.erase(&context_);
  }

  grpc::ClientContext& context() { return context_; }

 private:
  grpc::ClientContext context_;
  CancelSource* cancel_;
};

namespace {

constexpr int kMaxMessageBytes = 64 << 20;

absl::Status FromGrpc(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
}

absl::Status NoServer(const std::string& address) {
  return absl::UnavailableError(
      absl::StrCat("no Scion server answers at ", address,
                   "; start one (moe-serve MODEL), or name the gRPC address that its 'ready' line prints with "
                   "--address HOST:PORT or SCION_ADDRESS"));
}

class GrpcGenerateStream final : public GenerateStream {
 public:
  GrpcGenerateStream(v1::Inference::Stub& stub, const v1::GenerateRequest& request, const CallOptions& options)
      : call_(options), reader_(stub.Generate(&call_.context(), request)) {}

  ~GrpcGenerateStream() override {
    if (done_) return;
    call_.context().TryCancel();
    (void)Finish();
  }

  bool Next(v1::GenerateResponse* response) override {
    if (done_ || !reader_->Read(response)) return false;
    finish_seen_ = finish_seen_ || response->has_finish();
    return true;
  }

  absl::Status Finish() override {
    if (!done_) {
      v1::GenerateResponse rest;  // gRPC wants the stream read to its end first
      while (Next(&rest)) {
      }
      done_ = true;
      status_ = FromGrpc(reader_->Finish());
      if (status_.ok() && !finish_seen_) {
        status_ = absl::InternalError("the server ended the stream without saying why the text ends");
      }
    }
    return status_;
  }

 private:
  ScopedCall call_;
  std::unique_ptr<grpc::ClientReader<v1::GenerateResponse>> reader_;
  bool finish_seen_ = false;
  bool done_ = false;
  absl::Status status_;
};

class GrpcClient final : public Client {
 public:
  GrpcClient(std::string address, std::shared_ptr<grpc::Channel> channel)
      : address_(std::move(address)), stub_(v1::Inference::NewStub(std::move(channel))) {}

  const std::string& address() const override { return address_; }

  std::unique_ptr<GenerateStream> Generate(const v1::GenerateRequest& request, const CallOptions& options) override {
    return std::make_unique<GrpcGenerateStream>(*stub_, request, options);
  }
  absl::StatusOr<v1::ScoreResponse> Score(const v1::ScoreRequest& request, const CallOptions& options) override {
    return Unary<v1::ScoreResponse>(&v1::Inference::Stub::Score, request, options);
  }
  absl::StatusOr<v1::TokenizeResponse> Tokenize(const v1::TokenizeRequest& request,
                                                const CallOptions& options) override {
    return Unary<v1::TokenizeResponse>(&v1::Inference::Stub::Tokenize, request, options);
  }
  absl::StatusOr<v1::DetokenizeResponse> Detokenize(const v1::DetokenizeRequest& request,
                                                    const CallOptions& options) override {
    return Unary<v1::DetokenizeResponse>(&v1::Inference::Stub::Detokenize, request, options);
  }
  absl::StatusOr<v1::ListDomainsResponse> ListDomains(const CallOptions& options) override {
    return Unary<v1::ListDomainsResponse>(&v1::Inference::Stub::ListDomains, v1::ListDomainsRequest(), options);
  }

 private:
  template <typename Response, typename Request>
  absl::StatusOr<Response> Unary(grpc::Status (v1::Inference::Stub::*method)(grpc::ClientContext*, const Request&,
                                                                             Response*),
                                 const Request& request, const CallOptions& options) {
    ScopedCall call(options);
    Response response;
    absl::Status status = FromGrpc(((*stub_).*method)(&call.context(), request, &response));
    if (!status.ok()) return status;
    return response;
  }

  std::string address_;
  std::unique_ptr<v1::Inference::Stub> stub_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Client>> Client::Connect(const std::string& address, absl::Duration timeout) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  arguments.SetMaxReceiveMessageSize(kMaxMessageBytes);
  auto channel = grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
  const std::chrono::system_clock::time_point deadline = absl::ToChronoTime(absl::Now() + timeout);
  for (auto state = channel->GetState(/*try_to_connect=*/true); state != GRPC_CHANNEL_READY;
       state = channel->GetState(true)) {
    // The first refusal counts: whoever waits for a server to start asks its readiness page.
    if (state == GRPC_CHANNEL_TRANSIENT_FAILURE || state == GRPC_CHANNEL_SHUTDOWN) return NoServer(address);
    if (!channel->WaitForStateChange(state, deadline)) return NoServer(address);
  }
  return std::make_unique<GrpcClient>(address, std::move(channel));
}

}  // namespace scion::client

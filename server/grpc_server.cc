#include "server/grpc_server.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>

#include <chrono>
#include <utility>

#include "absl/strings/match.h"
#include "engine/base/status.h"
#include "scion/v1/inference.grpc.pb.h"
#include "server/grpc_convert.h"
#include "server/grpc_generate.h"
#include "server/listen_error.h"
#include "server/request_error.h"

namespace scion {
namespace {

constexpr char kServiceName[] = "scion.v1.Inference";
constexpr int kMaxStreamsPerConnection = 1024;
constexpr int kKeepaliveMs = 60'000;         // a connection without traffic for this long is asked whether it lives
constexpr int kKeepaliveTimeoutMs = 20'000;  // and closed when it does not answer
constexpr int kMinClientPingMs = 10'000;     // clients that ping more often are told to go away

class InferenceService final : public v1::Inference::CallbackService {
 public:
  InferenceService(const Admission& admission, ServerMetrics& metrics, WorkerPool& workers, const GrpcLimits& limits)
      : calls_(limits.max_calls, limits.write_timeout, metrics),
        shared_{.admission = admission, .metrics = metrics, .workers = workers, .calls = calls_} {}

  grpc::ServerWriteReactor<v1::GenerateResponse>* Generate(grpc::CallbackServerContext* context,
                                                           const v1::GenerateRequest* request) override {
    return StartGenerate(context, *request, shared_);
  }

  grpc::ServerUnaryReactor* Score(grpc::CallbackServerContext* context, const v1::ScoreRequest* request,
                                  v1::ScoreResponse* response) override {
    return StartScore(context, *request, response, shared_);
  }

  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context, const v1::TokenizeRequest* request,
                                     v1::TokenizeResponse* response) override {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    // The messages live until Finish.
    shared_.workers.Post([this, reactor, request, response] {
      const absl::StatusOr<const Tokenizer*> tokenizer = GetTokenizer();
      if (!tokenizer.ok()) return reactor->Finish(ToGrpc(tokenizer.status()));
      std::vector<int32_t> ids;
      (*tokenizer)
          ->Encode(request->text(), {.parse_special = request->parse_special(), .add_special = request->add_special()},
                   ids);
      response->mutable_token_ids()->Add(ids.begin(), ids.end());
      reactor->Finish(grpc::Status::OK);
    });
    return reactor;
  }

  grpc::ServerUnaryReactor* Detokenize(grpc::CallbackServerContext* context, const v1::DetokenizeRequest* request,
                                       v1::DetokenizeResponse* response) override {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    shared_.workers.Post([this, reactor, request, response] {
      const absl::StatusOr<const Tokenizer*> tokenizer = GetTokenizer();
      if (!tokenizer.ok()) return reactor->Finish(ToGrpc(tokenizer.status()));
      for (int32_t id : request->token_ids()) {
        if (id < 0 || id >= (*tokenizer)->size()) {
          return reactor->Finish(ToGrpc(absl::InvalidArgumentError(
              absl::StrCat("token id ", id, " is outside the vocabulary of ", (*tokenizer)->size()))));
        }
      }
      const std::vector<int32_t> ids(request->token_ids().begin(), request->token_ids().end());
      response->set_text((*tokenizer)->Decode(ids, request->skip_special()));
      reactor->Finish(grpc::Status::OK);
    });
    return reactor;
  }

  grpc::ServerUnaryReactor* ListDomains(grpc::CallbackServerContext* context, const v1::ListDomainsRequest*,
                                        v1::ListDomainsResponse* response) override {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    const ServedModel* model = shared_.admission.model();
    if (model == nullptr) {
      reactor->Finish(ToGrpc(Starting()));
      return reactor;
    }
    const ModelSpec& spec = model->engine->spec();
    const EngineStats stats = model->engine->Stats();
    response->set_model(model->name);
    response->set_default_domain(spec.domains[static_cast<size_t>(spec.default_domain)].name);
    for (size_t i = 0; i < spec.domains.size(); ++i) {
      v1::Domain& domain = *response->add_domains();
      domain.set_name(spec.domains[i].name);
      domain.set_num_experts(spec.domains[i].num_experts);
      domain.set_generation(model->engine->generations().at(i).generation);
      if (i >= stats.domains.size()) continue;
      domain.set_weight_bytes(stats.domains[i].weight_bytes);
      domain.set_requests(stats.domains[i].requests);
      domain.set_prompt_tokens(stats.domains[i].prompt_tokens);
      domain.set_generated_tokens(stats.domains[i].generated_tokens);
    }
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }

 private:
  static absl::Status Starting() { return absl::UnavailableError("the server is starting: the model is being loaded"); }

  absl::StatusOr<const Tokenizer*> GetTokenizer() const {
    const ServedModel* model = shared_.admission.model();
    if (model == nullptr) return Starting();
    if (model->engine->tokenizer() == nullptr) return absl::FailedPreconditionError("this model has no tokenizer");
    return model->engine->tokenizer();
  }

  GrpcCalls calls_;
  GrpcShared shared_;
};

class GrpcServerImpl final : public GrpcServer {
 public:
  GrpcServerImpl(const Admission& admission, ServerMetrics& metrics, WorkerPool& workers, const GrpcLimits& limits)
      : service_(admission, metrics, workers, limits) {}
  ~GrpcServerImpl() override { Stop(); }

  absl::Status Listen(const Options& options) {
    if (absl::Status status = ProbeListen("gRPC", options.host, options.port); !status.ok()) return status;
    static const bool kPluginsReady = [] {
      grpc::EnableDefaultHealthCheckService(true);
      grpc::reflection::InitProtoReflectionServerBuilderPlugin();
      return true;
    }();
    (void)kPluginsReady;
    grpc::ServerBuilder builder;
    builder.RegisterService(&service_);
    const bool is_ipv6 = absl::StrContains(options.host, ":");
    builder.AddListeningPort(absl::StrCat(is_ipv6 ? "[" : "", options.host, is_ipv6 ? "]:" : ":", options.port),
                             grpc::InsecureServerCredentials(), &port_);
    builder.SetMaxReceiveMessageSize(options.limits.max_message_bytes);
    builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, options.limits.max_metadata_bytes);
    builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, kMaxStreamsPerConnection);
    builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveMs);
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs);
    builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, kMinClientPingMs);
    // Reflection is the only service that uses threads of its own.
    builder.SetSyncServerOption(grpc::ServerBuilder::SyncServerOption::NUM_CQS, 1);
    builder.SetSyncServerOption(grpc::ServerBuilder::SyncServerOption::MAX_POLLERS, 2);
    server_ = builder.BuildAndStart();
    if (server_ == nullptr || port_ == 0) {
      return absl::UnavailableError(absl::StrCat("gRPC cannot listen on ", options.host, " port ", options.port));
    }
    SetServing(false);
    return absl::OkStatus();
  }

  int port() const override { return port_; }

  void SetServing(bool serving) override {
    grpc::HealthCheckServiceInterface* health = server_->GetHealthCheckService();
    health->SetServingStatus(serving);
    health->SetServingStatus(kServiceName, serving);
  }

  void Stop() override {
    if (server_ == nullptr) return;
    server_->Shutdown(std::chrono::system_clock::now());
    server_->Wait();
    server_ = nullptr;
  }

 private:
  InferenceService service_;
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<GrpcServer>> GrpcServer::Start(const Options& options, const Admission& admission,
                                                              ServerMetrics& metrics, WorkerPool& workers) {
  auto server = std::make_unique<GrpcServerImpl>(admission, metrics, workers, options.limits);
  if (absl::Status status = server->Listen(options); !status.ok()) return status;
  return server;
}

}  // namespace scion

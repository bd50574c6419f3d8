#include "server/server.h"

#include <optional>
#include <thread>
#include <utility>

#include "absl/time/clock.h"
#include "engine/base/status.h"
#include "server/http_service.h"
#include "server/metrics.h"
#include "server/worker_pool.h"

namespace scion {
namespace {

constexpr absl::Duration kIdlePollInterval = absl::Milliseconds(5);

class ServerImpl final : public Server {
 public:
  explicit ServerImpl(const ServerOptions& options)
      : admission_({.request_timeout = options.request_timeout, .metrics = &metrics_}),
        workers_(std::in_place, options.worker_threads),
        http_service_(options.version, admission_, metrics_, *workers_) {}
  ~ServerImpl() override { Stop(); }

  absl::Status Listen(ServerOptions options) {
    options.http.connections = &metrics_.http_connections;
    SCION_ASSIGN_OR_RETURN(http_, HttpServer::Start(options.http, http_service_));
    SCION_ASSIGN_OR_RETURN(grpc_, GrpcServer::Start(options.grpc, admission_, metrics_, *workers_));
    return absl::OkStatus();
  }

  int http_port() const override { return http_->port(); }
  int grpc_port() const override { return grpc_->port(); }

  void Open(ServedModel model) override {
    admission_.Open(std::move(model));
    grpc_->SetServing(admission_.ready());
  }

  void StartDraining() override {
    admission_.StartDraining();
    grpc_->SetServing(false);
    http_->StartDraining();
  }

  int requests_in_flight() const override { return http_->active_requests() + metrics_.grpc_calls.load(); }

  bool WaitUntilIdle(absl::Duration timeout) override {
    const absl::Time limit = absl::Now() + timeout;
    for (;;) {
      const ServedModel* model = admission_.model();
      if (requests_in_flight() == 0 && (model == nullptr || model->engine->Idle())) return true;
      if (absl::Now() >= limit) return false;
      absl::SleepFor(kIdlePollInterval);
    }
  }

  void Stop() override {
    // Transports first, which destroys all streams; then the jobs they left; the engine (in admission_) last.
    if (grpc_ != nullptr) grpc_->Stop();
    if (http_ != nullptr) http_->Stop();
    workers_.reset();
  }

 private:
  ServerMetrics metrics_;
  Admission admission_;
  std::optional<WorkerPool> workers_;
  OpenAiHttpService http_service_;
  std::unique_ptr<HttpServer> http_;
  std::unique_ptr<GrpcServer> grpc_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Server>> Server::Start(ServerOptions options) {
  auto server = std::make_unique<ServerImpl>(options);
  if (absl::Status status = server->Listen(std::move(options)); !status.ok()) return status;
  return server;
}

}  // namespace scion

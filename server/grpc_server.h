// The gRPC side: scion.v1.Inference, grpc.health.v1 and reflection on one port.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/admission.h"
#include "server/metrics.h"
#include "server/worker_pool.h"

namespace scion {

struct GrpcLimits {
  int max_calls = 4096;                              // in flight; more get ResourceExhausted
  int max_message_bytes = 4 << 20;                   // received
  int max_metadata_bytes = 16 << 10;                 // of one call
  absl::Duration write_timeout = absl::Seconds(30);  // of one message: a client that takes longer is dropped
};

class GrpcServer {
 public:
  struct Options {
    std::string host = "127.0.0.1";  // an address
    int port = 0;                    // 0: any free one
    GrpcLimits limits;
  };

  // Listens from the return on, health being NOT_SERVING. Errors as HttpServer::Start. The references must outlive it.
  static absl::StatusOr<std::unique_ptr<GrpcServer>> Start(const Options& options, const Admission& admission,
                                                           ServerMetrics& metrics, WorkerPool& workers);
  virtual ~GrpcServer() = default;

  virtual int port() const = 0;
  // What grpc.health.v1 says, of "" and of "scion.v1.Inference".
  virtual void SetServing(bool serving) = 0;
  // Takes no more calls, cancels those in flight, and returns when all have ended.
  virtual void Stop() = 0;
};

}  // namespace scion

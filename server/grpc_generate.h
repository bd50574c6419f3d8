// One call of Generate: admitted on a worker thread, then written message by message, driven by the engine's events.
#pragma once

#include <grpcpp/support/server_callback.h>

#include "scion/v1/inference.pb.h"
#include "server/admission.h"
#include "server/grpc_calls.h"
#include "server/metrics.h"
#include "server/worker_pool.h"

namespace scion {

// What all calls of the service share.
struct GrpcShared {
  const Admission& admission;
  ServerMetrics& metrics;
  WorkerPool& workers;
  GrpcCalls& calls;
};

// The reactors own themselves until their call is done.
grpc::ServerWriteReactor<v1::GenerateResponse>* StartGenerate(grpc::CallbackServerContext* context,
                                                              const v1::GenerateRequest& request, GrpcShared& shared);
grpc::ServerUnaryReactor* StartScore(grpc::CallbackServerContext* context, const v1::ScoreRequest& request,
                                     v1::ScoreResponse* response, GrpcShared& shared);

}  // namespace scion
